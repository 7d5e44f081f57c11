"""Llumnix v1 with SLOs: predict TTFT and TPOT on every instance, drop those near the promise, take the lowest.

From its published documentation: predictions by interpolation in a profile, a filter at SLO x threshold, the lowest of
what passes. Our reading for instances that do both stages: both predictions have to pass, and the lowest TTFT wins, or
the lowest TPOT (`lowest`), which is its rule for decode instances; where nothing passes, the lowest of all. Its batches
count dispatches at once, as here.

Not here: migration between instances and its adaptive split of prefill and decode instances (later parts of this
project), nor its correction of stale load, as load is modelled here. Inside is vLLM.
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
from hyperflexis.policies.forecast import Forecast

LOWEST: dict[str, Callable[[Forecast], float]] = {
    "ttft": lambda predicted: predicted.ttft_s,
    "tpot": lambda predicted: predicted.tpot_s,
}


class LowestPredicted:
    """`threshold` is the share of each promise that a prediction may reach."""

    def __init__(self, chunk: int, threshold: float, lowest: Callable[[Forecast], float]) -> None:
        self._chunk = chunk
        self._threshold = threshold
        self._lowest = lowest

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        expected = cluster.expected_tokens(request)
        predicted = {each.id: forecast.first_come(request, each, self._chunk, now) for each in instances}
        passing = [
            each
            for each in instances
            if self._passes(request, predicted[each.id]) and forecast.has_room(request, each, expected)
        ]
        chosen = min(
            passing or instances, key=lambda each: (self._lowest(predicted[each.id]), each.dispatches, each.id)
        )
        ttft_s, tpot_s = predicted[chosen.id]
        why = Why.FEASIBLE if passing else Why.LEAST_HARM
        return Placement(chosen, Reason(why, (("ttft_s", ttft_s), ("tpot_s", tpot_s))), ttft_s, tpot_s)

    def _passes(self, request: Request, predicted: Forecast) -> bool:
        return predicted.ttft_s <= self._threshold * forecast.ttft_slo_s(
            request
        ) and predicted.tpot_s <= self._threshold * forecast.tpot_slo_s(request)


def policy(
    prefill_tokens_max: int,
    *,
    threshold: float = 0.85,
    lowest: str = "ttft",
    chunk: int = 0,
    engine: str = "first_come",
) -> Policy:
    if threshold <= 0:
        raise ValueError(f"threshold must be above 0, not {threshold}")
    rules = engines.rules(engine, prefill_tokens_max, chunk)
    dispatcher = LowestPredicted(rules.prefill_tokens_max, threshold, engines.named("lowest", lowest, LOWEST))
    return Policy("llumnix_v1", dispatcher, rules)
