"""The power of two choices (Mitzenmacher 2001): of two instances drawn at random, the one with less to do.

What a balancer does that would rather not look at everyone. The draw depends on the request's id alone. The paper's
load is a queue's length, which is `least_tokens`' measure of requests; its others can be had. Promises and priorities
are not looked at.
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
from hyperflexis.policies.chance import draw
from hyperflexis.policies.least_tokens import MEASURES, Measure, least


class TwoChoices:
    """Two different ones, each pair as likely as any other."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        one = draw(request.id, 0, len(instances))
        drawn = [instances[one]]
        if len(instances) > 1:
            other = draw(request.id, 1, len(instances) - 1)
            drawn.append(instances[other + (other >= one)])
        chosen = least(drawn, self._measure)
        return Placement(chosen, Reason(Why.LEAST_LOADED, (("load", self._measure(chosen)),)))


def policy(prefill_tokens_max: int, *, count: str = "requests", chunk: int = 0, engine: str = "first_come") -> Policy:
    measure = engines.named("count", count, MEASURES)
    return Policy("power_of_two", TwoChoices(measure), engines.rules(engine, prefill_tokens_max, chunk))
