"""llm-d's scaling by saturation: shares of promises, smoothed for long, with thresholds that are low for that reason.

As published:

    saturation    the larger of P90 TTFT and P90 TPOT as shares of their promises, at most 2, mean of 45 s
    up            above .55, by saturation / .55; at most to twice as many, or 4 more, in a minute
    down          below .40, one in two minutes; between, nothing
    warming       while instances start, the demand counts by ready / provisioned, on the way up only

Ours: percentiles over the requests that are here, by what was predicted of each when it was dispatched.
"""

from __future__ import annotations

import math

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.control import Policy
from hyperflexis.core.sizing import Sizing, Wanted
from hyperflexis.policies import elastic, forecast

TICK_S = 1.0
UP_EVERY_S, DOWN_EVERY_S = 60.0, 120.0
UP_MIN = 4
SATURATION_MAX = 2.0


class Saturation:
    def __init__(self, high: float, low: float, window_s: float, pace: float) -> None:
        self._high, self._low = high, low
        self._window = elastic.Window(window_s)
        self._pace = pace
        self._ticks = elastic.Ticks(TICK_S)
        self._changed_s = -math.inf

    def plan(self, cluster: Cluster, sizing: Sizing, now: float) -> Wanted | None:
        if not cluster.ready:
            return elastic.first(cluster, sizing)
        if not self._ticks.due(now):
            return None
        self._window.add(_saturation(cluster), now)
        have, saturation = sizing.wanted, self._window.mean
        passed_s = (now - self._changed_s) * self._pace
        if saturation > self._high and passed_s >= UP_EVERY_S:
            demand = len(cluster.ready) * saturation / self._high
            count = min(math.ceil(demand), have + max(have, UP_MIN))
            if count > have:
                self._changed_s = now
                return elastic.wanted(sizing, count, saturation=saturation)
        if saturation < self._low and passed_s >= DOWN_EVERY_S:
            self._changed_s = now
            return elastic.wanted(sizing, have - 1, saturation=saturation)
        return None


def _saturation(cluster: Cluster) -> float:
    """Now."""
    requests = cluster.requests.values()
    firsts = [_share(each.predicted_ttft_s, forecast.ttft_slo_s(each)) for each in requests]
    paces = [_share(each.predicted_tpot_s, forecast.tpot_slo_s(each)) for each in requests]
    return min(SATURATION_MAX, max(_p90(firsts), _p90(paces)))


def _share(predicted_s: float | None, promised_s: float) -> float:
    return predicted_s / promised_s if predicted_s is not None else 0.0


def _p90(values: list[float]) -> float:
    return sorted(values)[int(0.9 * len(values))] if values else 0.0


def policy(
    prefill_tokens_max: int, *, high: float = 0.55, low: float = 0.4, window_s: float = 45.0, pace: float = 1.0
) -> Policy:
    """`pace` is how many times as often it may act as published."""
    elastic.above(low=low, window_s=window_s, pace=pace)
    if not low < high:
        raise ValueError(f"low must be less than high, not {low} with {high}")
    return elastic.policy("llm_d_saturation", prefill_tokens_max, Saturation(high, low, window_s, pace))
