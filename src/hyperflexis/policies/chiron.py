"""Chiron (arXiv 2501.08090): back-pressure of interactive requests sizes the fleet, and batch work waits in troughs.

    interactive    back-pressure = instances that interactive requests need / instances; more than `pressure` + `margin`
                   of it, or less than `pressure` - `margin`: as many as bring it to `pressure`
    batch          what may wait counts for nothing, until what waits would take longer than it may

The paper holds a third, for bursts of three times the mean. Its local part, a batch as large as promises bear, is what
our steps do. Ours: what requests need is the time and memory that they take of an instance, over `window_s`; batch work
is what has more than a minute to its first token, or to its end where no first token is promised.
"""

from __future__ import annotations

import math

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.control import Policy
from hyperflexis.core.due_work import DEFERRABLE_S
from hyperflexis.core.sizing import Sizing, Wanted
from hyperflexis.policies import elastic

TICK_S = 1.0


class BackPressure:
    def __init__(self, pressure: float, margin: float, window_s: float, cool_down_s: float) -> None:
        self._pressure = pressure
        self._margin = margin
        self._cool_down_s = cool_down_s
        self._usage = elastic.Usage(window_s)
        self._ticks = elastic.Ticks(TICK_S)
        self._calm = elastic.Spell()

    def plan(self, cluster: Cluster, sizing: Sizing, now: float) -> Wanted | None:
        if not cluster.ready:
            return elastic.first(cluster, sizing)
        if not self._ticks.due(now):
            return None
        have = sizing.wanted
        used = self._usage.instances(cluster, now)
        batch = self._for_batch(cluster, now)
        count = max(math.ceil(used / self._pressure), math.ceil(used + batch))
        if used >= (self._pressure - self._margin) * have or count >= have:
            self._calm.begin(now)
        if used > (self._pressure + self._margin) * have or batch > have - used:
            return elastic.wanted(sizing, max(have, count), used=used, batch=batch)
        if self._calm.seconds(now) >= self._cool_down_s:
            return elastic.wanted(sizing, count, used=used, batch=batch)
        return None

    def _for_batch(self, cluster: Cluster, now: float) -> float:
        """Instances that what may wait needs from now on to be done when it is due."""
        due = sorted(
            (request.first_deadline_s, instance.prefill_work_s(request, 0))
            for instance in cluster.ready
            for request in instance.waiting.values()
            if request.term_s > DEFERRABLE_S and request.first_deadline_s < math.inf
        )
        need = done_s = 0.0
        for deadline_s, work_s in due:
            done_s += work_s
            need = max(need, done_s / max(TICK_S, deadline_s - now))
        return need


def policy(
    prefill_tokens_max: int,
    *,
    pressure: float = 1 / 3,
    margin: float = 0.05,
    window_s: float = 10.0,
    cool_down_s: float = 10.0,
) -> Policy:
    elastic.above(pressure=pressure, window_s=window_s)
    if not 0 <= margin < pressure:
        raise ValueError(f"margin must be at least 0 and less than pressure, not {margin}")
    return elastic.policy("chiron", prefill_tokens_max, BackPressure(pressure, margin, window_s, cool_down_s))
