"""Static pools: some instances prefill, the others decode, in the ratio that the fleet was started with.

After DistServe (OSDI 2024), a published system that finds the ratio by simulated search per workload; here the ratio is
the fleet's, and whoever compares searches. Order, chunks and the choice of instance are ours.
"""

from __future__ import annotations

from hyperflexis.core.binding import LeastPace
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import SloDispatcher
from hyperflexis.core.step import StepRules


def policy(prefill_tokens_max: int) -> Policy:
    rules = StepRules(prefill_tokens_max=prefill_tokens_max)
    return Policy("distserve", SloDispatcher(separation=0), rules, binder=LeastPace())
