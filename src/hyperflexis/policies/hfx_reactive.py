"""A fleet that reacts to promises that were broken, as HFX (HyperFlexis, arXiv 2508.15919) does by what is said of it.

THE RULES BELOW ARE OUR READING: its thresholds, windows and cost function are not published in a form that this project
has. TokenScale names it among the scalers that act on performance, that is, after promises were missed.

    up      attainment of the last `window_s` under `attainment_min`, or requests that wait and will be late: `step`
            more, one decision at a time: while a start is under way there is none
    down    n - 1 instances would have been enough, at `headroom`, for all of `cool_down_s`: one fewer
"""

from __future__ import annotations

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.control import Policy
from hyperflexis.core.sizing import Sizing, Wanted
from hyperflexis.policies import elastic

TICK_S = 1.0


class Reactive:
    def __init__(self, attainment_min: float, window_s: float, step: int, cool_down_s: float, headroom: float) -> None:
        self._attainment_min = attainment_min
        self._step = step
        self._cool_down_s = cool_down_s
        self._headroom = headroom
        self._ended, self._kept = elastic.Window(window_s), elastic.Window(window_s)
        self._usage = elastic.Usage(window_s)
        self._ticks = elastic.Ticks(TICK_S)
        self._enough = elastic.Spell()
        """With fewer instances."""

    def plan(self, cluster: Cluster, sizing: Sizing, now: float) -> Wanted | None:
        if not cluster.ready:
            return elastic.first(cluster, sizing)
        if not self._ticks.due(now):
            return None
        self._ended.add(cluster.ended, now)
        self._kept.add(cluster.kept, now)
        have, late = sizing.wanted, elastic.late(cluster, now)
        attainment = self._kept.growth / self._ended.growth if self._ended.growth else 1.0
        enough = self._usage.instances(cluster, now) / self._headroom
        if enough > have - 1 or late:
            self._enough.begin(now)
        if (late or attainment < self._attainment_min) and not elastic.is_open(sizing):
            self._enough.begin(now)
            return elastic.wanted(sizing, have + self._step, attainment=attainment, late=late)
        if self._enough.seconds(now) >= self._cool_down_s:
            self._enough.begin(now)
            return elastic.wanted(sizing, have - 1, enough=enough)
        return None


def policy(
    prefill_tokens_max: int,
    *,
    attainment_min: float = 0.99,
    window_s: float = 10.0,
    step: int = 1,
    cool_down_s: float = 30.0,
    headroom: float = 0.8,
) -> Policy:
    elastic.above(attainment_min=attainment_min, window_s=window_s, step=step, headroom=headroom)
    elastic.above(cool_down_s=cool_down_s)
    scaler = Reactive(attainment_min, window_s, step, cool_down_s, headroom)
    return elastic.policy("hfx_reactive", prefill_tokens_max, scaler)
