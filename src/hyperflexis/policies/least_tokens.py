"""The instance with the least to do, as load balancers that count tokens (or requests) have it.

    outstanding   tokens that are still to be computed or emitted: prompts that wait, and answers as long as expected
    prompts       prompt tokens that wait to be computed
    requests      4 x waiting + running requests, as vLLM's balancer between its data-parallel engines counts

A standard rule, of no single paper. The control plane's own dispatches count at once, which published balancers do not
all do. Promises and priorities are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import Placement
from hyperflexis.core.instance import Instance
from hyperflexis.core.request import Request
from hyperflexis.policies import engines, forecast

WAITING_WEIGHT = 4


def outstanding(instance: Instance) -> float:
    """Tokens of prompts and answers that are believed to come."""
    cached = sum(request.cached_tokens for request in instance.waiting.values())
    return instance.planned_tokens - instance.context_tokens - instance.progress_tokens - cached


def requests(instance: Instance) -> float:
    """Waiting ones count as several."""
    return WAITING_WEIGHT * len(instance.waiting) + len(instance.decoding)


Measure = Callable[[Instance], float]

MEASURES: dict[str, Measure] = {
    "outstanding": outstanding,
    "prompts": forecast.waiting_tokens,
    "requests": requests,
}


def least(instances: Sequence[Instance], measure: Measure) -> Instance:
    """Between equals, the one that was sent the fewest requests so far, so that idle instances take turns."""
    return min(instances, key=lambda instance: (measure(instance), instance.dispatches, instance.id))


class LeastLoaded:
    """The least of all."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        chosen = least(instances, self._measure)
        return Placement(chosen, Reason(Why.LEAST_LOADED, (("load", self._measure(chosen)),)))


def policy(
    prefill_tokens_max: int, *, count: str = "outstanding", chunk: int = 0, engine: str = "first_come"
) -> Policy:
    measure = engines.named("count", count, MEASURES)
    return Policy("least_tokens", LeastLoaded(measure), engines.rules(engine, prefill_tokens_max, chunk))
