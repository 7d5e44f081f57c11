"""One request as a workload describes it, before anything has been decided about it.

A job knows the true length of its answer; only the simulated instance may look at that. Knows nothing of SLOs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Job(NamedTuple):
    """What arrives, when, and how long the answer will turn out to be."""

    at_s: float
    """Arrival, seconds after the workload's start."""
    prompt_tokens: int
    output_tokens: int
    """True length of the answer."""
    service_class: str
    block_hashes: tuple[bytes, ...] = ()
    """Content of the prompt's whole KV blocks, from its start; empty where prefixes are not known or not shared."""
    follow_up: Callable[[float], Job | None] | None = None
    """Closed loop: called with the instant at which this job's answer ended, gives the next turn, if there is one."""
    max_tokens: int = 0
    """Longest answer that its client allows; 0 takes what the fleet's clients allow."""
