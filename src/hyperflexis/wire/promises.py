"""How promises are called where they travel beside the sampling parameters of a foreign engine (vLLM's `vllm_xargs`).

Each is a number of seconds from the request's arrival at that engine. Who does not know these names carries them along
unread.
"""

from __future__ import annotations

TTFT, TPOT, DEADLINE = "hyperflexis_ttft_s", "hyperflexis_tpot_s", "hyperflexis_deadline_s"
