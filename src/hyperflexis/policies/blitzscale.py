"""BlitzScale's bounds (OSDI 2025): a load between a low and a high share of what instances bear is left alone.

As published: prefill .8 and .5, decode .95 and .75, an instance goes after 333 ms of too little load.

    need(share)    seconds of prefill that wait / share, and blocks in use / share / blocks of an instance
    up             fewer than need(high): at once to the middle between need(high) and need(low)
    down           more than need(low), and so for `idle_s`: one fewer

An instance that drains is taken back first; that is built into this project's fleets. Ours: one pool, so that both
needs are summed before they are rounded; prefill is what waits and what came within the last second, or the rule would
see no load until a queue has formed; decodes count by the larger of blocks and share of the pace, for on large
accelerators blocks are not what binds. Its transfer bounds and its change of prefill into decode instances are about
pools apart, and left out.
"""

from __future__ import annotations

import math

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.control import Policy
from hyperflexis.core.due_work import WorkHistory
from hyperflexis.core.scaling import fleet_state
from hyperflexis.core.sizing import Sizing, Wanted
from hyperflexis.policies import elastic

ARRIVED_S = 1.0
PREFILL_HIGH, PREFILL_LOW = 0.8, 0.5
DECODE_HIGH, DECODE_LOW = 0.95, 0.75


class Bounds:
    def __init__(self, scale: float, idle_s: float) -> None:
        self._scale = scale
        self._idle_s = idle_s
        self._work = WorkHistory()
        self._idle = elastic.Spell()
        """With too little load."""

    def plan(self, cluster: Cluster, sizing: Sizing, now: float) -> Wanted | None:
        if not cluster.ready:
            return elastic.first(cluster, sizing)
        prefill, decode = self._loads(cluster, now)
        high = math.ceil((prefill / PREFILL_HIGH + decode / DECODE_HIGH) / self._scale)
        low = math.ceil((prefill / PREFILL_LOW + decode / DECODE_LOW) / self._scale)
        have = sizing.wanted
        if have <= low:
            self._idle.begin(now)
        if have < high:
            return elastic.wanted(sizing, math.ceil((high + low) / 2), high=high, low=low)
        if have > low and self._idle.seconds(now) >= self._idle_s:
            self._idle.begin(now)
            return elastic.wanted(sizing, have - 1, high=high, low=low)
        return None

    def _loads(self, cluster: Cluster, now: float) -> tuple[float, float]:
        """Of prefill and decode, in instances that do nothing else."""
        self._work.observe(cluster.due_work.by_term, now)
        state = fleet_state(cluster, cluster.ready[0])
        waiting_s = sum(instance.waiting_s() for instance in cluster.ready)
        prefill = max(waiting_s, ARRIVED_S * self._work.rate(ARRIVED_S, now)) / ARRIVED_S
        busy = state.decode_share / max(elastic.SHARE_MIN, 1 - state.fixed_share)
        return prefill, max(busy, state.kv_tokens / state.kv_capacity)


def policy(prefill_tokens_max: int, *, scale: float = 1.0, idle_s: float = 0.333) -> Policy:
    """`scale` multiplies all bounds."""
    elastic.above(scale=scale)
    if idle_s < 0:
        raise ValueError(f"idle_s must be at least 0, not {idle_s}")
    return elastic.policy("blitzscale", prefill_tokens_max, Bounds(scale, idle_s))
