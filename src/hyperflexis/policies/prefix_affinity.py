"""Prefix (and so session) affinity: where most of the prompt is believed to be, unless too much is to do there.

The shape is that of cache-aware routers such as SGLang's: an instance may have so many times the least load, and a
margin, before affinity gives way to the least loaded; short matches count for nothing. A session's turns share their
prefix, so no session id is needed. The measure of load and the numbers are our choice. What is held is believed, from
what was dispatched there, not asked. Promises and priorities are not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import Placement
from hyperflexis.core.instance import Instance
from hyperflexis.core.request import Request
from hyperflexis.policies import engines
from hyperflexis.policies.least_tokens import MEASURES, Measure, least


class Affinity:
    """`share_min` of the prompt has to be there; `overload` and `margin_tokens` bound the load it may find there."""

    def __init__(self, measure: Measure, share_min: float, overload: float, margin_tokens: int) -> None:
        self._measure = measure
        self._share_min = share_min
        self._overload = overload
        self._margin_tokens = margin_tokens

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        idlest = least(instances, self._measure)
        cached = {instance.id: instance.cached_tokens(request) for instance in instances}
        longest = max(cached.values())
        if longest and longest >= self._share_min * request.prompt_tokens:
            holder = least([instance for instance in instances if cached[instance.id] == longest], self._measure)
            if self._measure(holder) <= self._overload * self._measure(idlest) + self._margin_tokens:
                return Placement(holder, Reason(Why.HAS_PREFIX, (("cached_tokens", float(longest)),)))
        return Placement(idlest, Reason(Why.LEAST_LOADED, (("load", self._measure(idlest)),)))


def policy(
    prefill_tokens_max: int,
    *,
    share_min: float = 0.1,
    overload: float = 1.5,
    margin_tokens: int = 16_384,
    count: str = "outstanding",
    chunk: int = 0,
    engine: str = "first_come",
) -> Policy:
    if not 0 <= share_min <= 1:
        raise ValueError(f"share_min must be between 0 and 1, not {share_min}")
    if overload < 1:
        raise ValueError(f"overload must be at least 1, not {overload}")
    dispatcher = Affinity(engines.named("count", count, MEASURES), share_min, overload, margin_tokens)
    return Policy("prefix_affinity", dispatcher, engines.rules(engine, prefill_tokens_max, chunk))
