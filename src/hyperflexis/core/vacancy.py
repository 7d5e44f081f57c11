"""When one of the requests that are here will have ended, so that another can come: what a refused one is told.

The least over all instances of what is left of an answer, at the pace of its decodes now, with what waits there
computed before. Wrong where answers end sooner or later than is expected of their class. Nobody is promised the place:
of those who come again, the first has it.
"""

from __future__ import annotations

import math

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.instance import Instance

REMEMBERED_S = 0.1
"""How long an answer is good for: in a flood everybody who is refused asks, and looking at all takes a while."""


class Vacancy:
    """Of one fleet."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._looked_s = -math.inf
        self._at_s = 0.0

    def wait_s(self, now: float) -> float:
        """Predicted time until somebody ends; 0 where nobody is on an instance."""
        if now >= self._looked_s + REMEMBERED_S:
            ends_s = [_first_end_s(each, now) for each in self._cluster.ready if not each.is_empty]
            self._looked_s, self._at_s = now, now + min(ends_s, default=0.0)
        return max(0.0, self._at_s - now)


def _first_end_s(instance: Instance, now: float) -> float:
    ending = (instance.decoding or instance.waiting).values()
    left = min(max(1, each.planned_tokens - each.context_tokens) for each in ending)
    step_s = instance.latency.decode_step_s(len(ending), instance.context_tokens)
    return instance.residual_s(now) + instance.waiting_s() + left * step_s
