"""What arriving requests ask of instances: seconds of prefill and of decodes, room for KV, bytes to move.

Counted from arrivals and mean answers, not from what is running: work that has not begun counts at once, and a change
of demand is seen before its decodes pile up. How much of it an instance can do is not known here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from hyperflexis.core import loads
from hyperflexis.core.instance import Instance


class Demand(NamedTuple):
    """What arrives per second, or has arrived in all."""

    prefill_s: float = 0.0
    """Seconds of prefill on an instance."""
    decode_s: float = 0.0
    """Seconds of decodes, without fixed parts of steps."""
    kv_token_s: float = 0.0
    """Tokens in blocks times the seconds for which they stay, at the promised pace."""
    prompt_tokens: float = 0.0
    """What is to be moved, if it is prefilled elsewhere."""

    def plus(self, other: Demand) -> Demand:
        return Demand(*(one + two for one, two in zip(self, other, strict=True)))

    def rate(self, before: Demand, elapsed_s: float) -> Demand:
        """Per second since then."""
        return Demand(*((one - two) / elapsed_s for one, two in zip(self, before, strict=True)))

    def most(self, other: Demand) -> Demand:
        return Demand(*(max(one, two) for one, two in zip(self, other, strict=True)))


def demand_of(prompt_tokens: int, answer_tokens: float, pace_s: float, instance: Instance) -> Demand:
    """What one request adds, on instances like this one."""
    model = instance.latency.model
    context = prompt_tokens + answer_tokens / 2
    pace_s = min(pace_s, loads.pace_cap_s(instance))
    return Demand(
        prefill_s=model.chunk_s(prompt_tokens, 0),
        decode_s=answer_tokens * (model.decode_seq_s + model.context_token_s * context),
        kv_token_s=context * answer_tokens * (pace_s if math.isfinite(pace_s) else 0.0),
        prompt_tokens=prompt_tokens,
    )
