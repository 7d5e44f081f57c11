"""TokenScale's scaling (arXiv 2512.03416) of a fleet whose instances do both stages: tokens that come over velocities.

    instances    prompt tokens per second / V_P + sum over buckets of their tokens per second / V_D

Velocities and buckets are those of `tokenscale`, where they are explained. Ours: one pool, so that both needs are
summed; prompts count by the larger rate of `window_s` and of the last second, for bursts; `headroom` is the share of a
velocity that is counted on; fewer are wanted once that has been so for `cool_down_s`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import Dispatcher, Placement
from hyperflexis.core.instance import Instance
from hyperflexis.core.request import Request
from hyperflexis.core.sizing import Sizing, Wanted
from hyperflexis.policies import elastic
from hyperflexis.policies.tokenscale import Demand, Velocities, prefill_velocity

TICK_S = 1.0


class Counting:
    """Our dispatcher, with what comes counted."""

    def __init__(self, dispatcher: Dispatcher, demand: Demand) -> None:
        self._dispatcher = dispatcher
        self._demand = demand

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        if not request.dispatches:
            self._demand.add(request, cluster.expected_tokens(request), now)
        return self._dispatcher.choose(request, instances, cluster, now)


class ByVelocity:
    def __init__(self, demand: Demand, headroom: float, cool_down_s: float) -> None:
        self._demand = demand
        self._headroom = headroom
        self._cool_down_s = cool_down_s
        self._ticks = elastic.Ticks(TICK_S)
        self._enough = elastic.Spell()
        """With fewer instances."""
        self._most = 0

    def plan(self, cluster: Cluster, sizing: Sizing, now: float) -> Wanted | None:
        if not cluster.ready:
            return elastic.first(cluster, sizing)
        if not self._ticks.due(now):
            return None
        instance, demand = cluster.ready[0], self._demand
        prefill, decode = Velocities(demand, 0.0).needs(instance, cluster, now)
        burst = demand.burst.per_s(now) / prefill_velocity(instance, self._prompt_tokens(now))
        count = math.ceil((max(prefill, burst) + decode) / self._headroom)
        self._most = max(self._most, count)
        if count >= sizing.wanted:
            self._enough.begin(now)
            self._most = 0
            return elastic.wanted(sizing, count, prefill=prefill, burst=burst, decode=decode)
        if self._enough.seconds(now) >= self._cool_down_s:
            self._enough.begin(now)
            most, self._most = self._most, 0
            return elastic.wanted(sizing, most, prefill=prefill, burst=burst, decode=decode)
        return None

    def _prompt_tokens(self, now: float) -> float:
        """Mean."""
        buckets = self._demand.buckets.values()
        requests = sum(each.requests.per_s(now) for each in buckets)
        return sum(each.prompt_tokens.per_s(now) for each in buckets) / requests if requests > 1e-6 else 1.0


def policy(
    prefill_tokens_max: int, *, headroom: float = 1.0, window_s: float = 10.0, cool_down_s: float = 10.0
) -> Policy:
    elastic.above(headroom=headroom, window_s=window_s)
    demand = Demand(window_s)
    made = elastic.policy("tokenscale_scaler", prefill_tokens_max, ByVelocity(demand, headroom, cool_down_s))
    return replace(made, dispatcher=Counting(made.dispatcher, demand))
