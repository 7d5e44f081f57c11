"""Knative's autoscaler by concurrency (KPA): what a fleet has that knows nothing of language models.

As published: desired = mean requests in the system over a stable window of 60 s / the target of one instance. While the
same over a panic window of 6 s asks for twice what is ready, or more, that one decides and nothing is taken away; panic
ends when it has not been so for a stable window. Looked at every 2 s; up to 1000 times as many at once, down to a half.

The target depends on what instances bear and has no default that fits: it is tuned.
"""

from __future__ import annotations

import math

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.control import Policy
from hyperflexis.core.sizing import Sizing, Wanted
from hyperflexis.policies import elastic

TICK_S = 2.0
PANIC_FACTOR = 2.0
SAMPLE_S = 0.5


class Concurrency:
    def __init__(self, target: float, stable_s: float, panic_s: float) -> None:
        self._target = target
        self._stable_s = stable_s
        self._stable, self._panic = elastic.Window(stable_s), elastic.Window(panic_s)
        self._ticks, self._samples = elastic.Ticks(TICK_S), elastic.Ticks(SAMPLE_S)
        self._panicked_s = -math.inf

    def plan(self, cluster: Cluster, sizing: Sizing, now: float) -> Wanted | None:
        if self._samples.due(now):
            for window in (self._stable, self._panic):
                window.add(len(cluster.requests), now)
        if not cluster.ready:
            return elastic.first(cluster, sizing)
        if not self._ticks.due(now):
            return None
        stable, panic = (math.ceil(window.mean / self._target) for window in (self._stable, self._panic))
        ready = len(cluster.ready)
        if panic >= PANIC_FACTOR * ready:
            self._panicked_s = now
        count = max(stable, math.floor(ready / 2))
        if now - self._panicked_s < self._stable_s:
            count = max(panic, stable, sizing.wanted)
        return elastic.wanted(sizing, count, stable=stable, panic=panic)


def policy(prefill_tokens_max: int, *, target: float = 16.0, stable_s: float = 60.0, panic_s: float = 6.0) -> Policy:
    elastic.above(target=target, stable_s=stable_s, panic_s=panic_s)
    return elastic.policy("kpa", prefill_tokens_max, Concurrency(target, stable_s, panic_s))
