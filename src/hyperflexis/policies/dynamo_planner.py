"""Dynamo's planner (NVIDIA, SLA planner): a slow loop by throughput, which is the floor of a quick one by load.

As published, for pools of prefill and decode engines, the loops every 180 s and 5 s:

    throughput    P = ceil(rate x isl x min(1, correction) / prefill throughput), D from what an engine emits at the
                  promised itl with contexts of isl + osl / 2; the next interval is believed to be like the last
    load          one more where all engines are predicted to break their promises, one fewer where all are under .8 of
                  them; one at a time, and none while a start is under way

Ours: one pool, so that P and D are summed before they are rounded; corrections are 1, as the model is exact; what an
engine is predicted is the work that waits there against the shortest promise of a first token, and its decodes at
their expected lengths against the strictest pace there. Runs of minutes may want shorter loops: they are tunable.
"""

from __future__ import annotations

import math

from hyperflexis.core import demand
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.control import Policy
from hyperflexis.core.demand import Ledger
from hyperflexis.core.instance import Instance
from hyperflexis.core.scaling import fleet_state
from hyperflexis.core.sizing import Sizing, Wanted
from hyperflexis.policies import elastic, forecast


class TwoLoops:
    def __init__(self, throughput_s: float, load_s: float, low: float, headroom: float) -> None:
        self._throughput = elastic.Ticks(throughput_s)
        self._load = elastic.Ticks(load_s)
        self._low = low
        self._headroom = headroom
        self._asked: Ledger = {}
        self._since_s = math.nan
        self._floor = 0

    def plan(self, cluster: Cluster, sizing: Sizing, now: float) -> Wanted | None:
        if not cluster.ready:
            return elastic.first(cluster, sizing)
        count = sizing.wanted
        if self._throughput.due(now):
            self._floor = self._by_throughput(cluster, now)
        if self._load.due(now) and not elastic.is_open(sizing):
            count += self._by_load(cluster)
        count = max(self._floor, count)
        return elastic.wanted(sizing, count, floor=self._floor) if count != sizing.wanted else None

    def _by_throughput(self, cluster: Cluster, now: float) -> int:
        asked, since_s = demand.with_running(cluster.asked, cluster.requests.values()), self._since_s
        before, self._asked, self._since_s = self._asked, asked, now
        if not now > since_s:
            return 0
        rate = demand.per_second(asked, before, before, now - since_s, cluster.ready[0])
        fixed = fleet_state(cluster, cluster.ready[0]).fixed_share
        need = rate.prefill_s + rate.decode_s / max(elastic.SHARE_MIN, 1 - fixed)
        return math.ceil(need / self._headroom)

    def _by_load(self, cluster: Cluster) -> int:
        shortest_s = min((forecast.ttft_slo_s(request) for request in cluster.requests.values()), default=math.inf)
        shares = [_share(instance, shortest_s) for instance in cluster.ready]
        return 1 if min(shares) > 1 else -1 if max(shares) < self._low else 0


def _share(instance: Instance, ttft_s: float) -> float:
    """The larger share of its promises that an engine is predicted to use."""
    first_s = instance.waiting_s() + instance.latency.model.prefill_base_s if instance.waiting else 0.0
    step_s = instance.latency.decode_step_s(instance.requests, instance.planned_tokens) if instance.requests else 0.0
    return max(first_s / ttft_s, step_s / instance.strictest_pace_s())


def policy(
    prefill_tokens_max: int,
    *,
    throughput_s: float = 180.0,
    load_s: float = 5.0,
    low: float = 0.8,
    headroom: float = 1.0,
) -> Policy:
    elastic.above(throughput_s=throughput_s, load_s=load_s, low=low, headroom=headroom)
    return elastic.policy("dynamo_planner", prefill_tokens_max, TwoLoops(throughput_s, load_s, low, headroom))
