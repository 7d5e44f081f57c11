"""llm-d's routing by predicted latency (the latency scorer of the Gateway API's inference extension).

From its published source: headroom = SLO - predicted, of TTFT and TPOT. Among instances where neither is negative,
both are normalised to 0 .. 1 and blended .8 to .2; the lower the blend (strategy least, to pack) or the higher (most,
to spread), the likelier the instance: the weight is 100 times that, and the draw is random. Where some are positive,
one request in a hundred explores the others. Where none is, an instance without requests is preferred; the shortfalls
are normalised and blended in the same way among those of one kind (both negative, TTFT, TPOT), with weights up to 80.

Our reading: the predictor is the latency model, not boosted trees; exploration is off unless asked for, since nothing
is learnt from it here; `draws` off takes the likeliest instead of drawing; a promise that was not made has no headroom
to lack. Shedding (of negative priorities only) and affinity to prefixes, but in the predicted TTFT, are left out.
Inside is vLLM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import Placement
from hyperflexis.core.instance import Instance
from hyperflexis.core.request import Request
from hyperflexis.policies import engines, forecast
from hyperflexis.policies.chance import draw
from hyperflexis.policies.forecast import Forecast

POSITIVE_RANGE = 99
NEGATIVE_RANGE = 80
WEIGHT_MIN = 1
STRATEGIES = {"least": True, "most": False}
_PER_MILLE = 1000


class Headroom(NamedTuple):
    """What an instance would leave of each promise, seconds; infinite where there is none."""

    instance: Instance
    predicted: Forecast
    ttft_s: float
    tpot_s: float

    @property
    def is_positive(self) -> bool:
        return self.ttft_s >= 0 and self.tpot_s >= 0


class PredictedHeadroom:
    """Weights, then a draw."""

    def __init__(self, chunk: int, packs: bool, ttft_weight: float, draws: bool, explore: float) -> None:
        self._chunk = chunk
        self._packs = packs
        self._ttft_weight = ttft_weight
        self._draws = draws
        self._explore_per_mille = round(_PER_MILLE * explore)

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        found = [self._headroom(request, instance, now) for instance in instances]
        positive = [each for each in found if each.is_positive]
        negative = [each for each in found if not each.is_positive]
        explores = draw(request.id, 0, _PER_MILLE) < self._explore_per_mille
        if positive and not (negative and explores):
            chosen, why = self._pick(request, positive, self._positive_weights(positive)), Why.FEASIBLE
        else:
            idle = [each for each in negative if each.instance.is_empty] or negative
            chosen, why = self._pick(request, idle, self._negative_weights(idle)), Why.LEAST_HARM
        ttft_s, tpot_s = chosen.predicted
        numbers = (("ttft_s", ttft_s), ("tpot_s", tpot_s))
        return Placement(chosen.instance, Reason(why, numbers), ttft_s, tpot_s)

    def _headroom(self, request: Request, instance: Instance, now: float) -> Headroom:
        predicted = forecast.first_come(request, instance, self._chunk, now)
        ttft_s = forecast.ttft_slo_s(request) - predicted.ttft_s
        return Headroom(instance, predicted, ttft_s, forecast.tpot_slo_s(request) - predicted.tpot_s)

    def _positive_weights(self, found: Sequence[Headroom]) -> list[int]:
        blended = self._blend([each.ttft_s for each in found], [each.tpot_s for each in found], 0.5)
        likely = [1.0 - share if self._packs else share for share in blended]
        return [int(share * POSITIVE_RANGE) + WEIGHT_MIN + 1 for share in likely]

    def _negative_weights(self, found: Sequence[Headroom]) -> list[int]:
        weights = [WEIGHT_MIN] * len(found)
        for kind in ((True, True), (True, False), (False, True)):
            rows = [row for row, each in enumerate(found) if (each.ttft_s < 0, each.tpot_s < 0) == kind]
            late = [max(0.0, -found[row].ttft_s) for row in rows]
            slow = [max(0.0, -found[row].tpot_s) for row in rows]
            for row, badness in zip(rows, self._blend(late, slow, 0.0), strict=True):
                weights[row] = int((1.0 - badness) * NEGATIVE_RANGE) + WEIGHT_MIN + 1
        return weights

    def _blend(self, ttfts_s: Sequence[float], tpots_s: Sequence[float], alike: float) -> list[float]:
        pairs = zip(_normalised(ttfts_s, alike), _normalised(tpots_s, alike), strict=True)
        return [self._ttft_weight * ttft + (1 - self._ttft_weight) * tpot for ttft, tpot in pairs]

    def _pick(self, request: Request, found: Sequence[Headroom], weights: Sequence[int]) -> Headroom:
        if not self._draws:
            pairs = zip(weights, found, strict=True)
            return min(pairs, key=lambda pair: (-pair[0], pair[1].instance.dispatches, pair[1].instance.id))[1]
        drawn = draw(request.id, 1, sum(weights))
        for each, weight in zip(found, weights, strict=True):
            drawn -= weight
            if drawn < 0:
                return each
        raise AssertionError("a draw beyond all weights")


def _normalised(values: Sequence[float], alike: float) -> list[float]:
    """To 0 .. 1 between the least and the most; all of them `alike` where these are equal."""
    if not values:
        return []
    low, high = min(values), max(values)
    if not math.isfinite(high) or high - low <= 1e-9:
        return [alike] * len(values)
    return [(value - low) / (high - low) for value in values]


def policy(
    prefill_tokens_max: int,
    *,
    strategy: str = "least",
    ttft_weight: float = 0.8,
    draws: bool = True,
    explore: float = 0.0,
    chunk: int = 0,
    engine: str = "first_come",
) -> Policy:
    for name, share in (("ttft_weight", ttft_weight), ("explore", explore)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be between 0 and 1, not {share}")
    rules = engines.rules(engine, prefill_tokens_max, chunk)
    packs = engines.named("strategy", strategy, STRATEGIES)
    return Policy("llm_d", PredictedHeadroom(rules.prefill_tokens_max, packs, ttft_weight, draws, explore), rules)
