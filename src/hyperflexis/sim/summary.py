"""An outcome in figures: what a row of results says, and the curves that a report draws.

Percentiles are linear ones (numpy's default, type 7 of Hyndman and Fan), over the requests that have the figure: a
rejected request has no ttft, an answer of one token no tpot. A figure over no requests is None. Attainment and goodput
count all requests that arrived. Knows nothing of how rows are shown.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hyperflexis.sim.outcome import Floats, Outcome

METRICS = ("ttft_s", "tpot_s", "e2e_s")
MINUTE_S = 60.0
MINUTE_ARRIVALS_MIN = 10
"""Arrivals of one class that make a minute count for `worst_minute`: fewer say nothing."""
CURVE_POINTS = 101

Bools = npt.NDArray[np.bool_]


def row(outcome: Outcome) -> dict[str, Any]:
    """All figures of one simulation, in the order in which they are told; JSON can hold them."""
    attained = int(np.count_nonzero(outcome.attained))
    return {
        "requests": int(outcome.attained.size),
        "finished": int(np.count_nonzero(outcome.finished)),
        "rejected": int(np.count_nonzero(outcome.rejected)),
        "attainment": _share(outcome.attained),
        "attainment_by_class": attainment_by_class(outcome),
        "requests_by_class": requests_by_class(outcome),
        "worst_minute": worst_minute(outcome),
        "goodput_rps": attained / outcome.sim_seconds if outcome.sim_seconds > 0 else 0.0,
        **{metric: _spread(_known(getattr(outcome, metric))) for metric in METRICS},
        "longest_ttft_s": _largest(_known(outcome.ttft_s)),
        "instance_seconds": float(outcome.usage.awake_s),
        "asleep_seconds": float(outcome.usage.asleep_s),
        "cost": float(outcome.usage.cost),
        "migrations": int(outcome.migrations),
        "role_changes": int(outcome.role_changes),
        "scale_events": int(outcome.scale_events),
        "sim_seconds": float(outcome.sim_seconds),
    }


def curves(outcome: Outcome) -> dict[str, tuple[float, ...]]:
    """Each metric's quantiles from 0 to 1 in equal steps; no points where nothing has the metric."""
    shares = np.linspace(0.0, 1.0, CURVE_POINTS)
    return {metric: _quantiles(_known(getattr(outcome, metric)), shares) for metric in METRICS}


def attainment_by_class(outcome: Outcome) -> dict[str, float | None]:
    """The share of each class's requests that got all they were promised; None where a class had no request."""
    return {
        name: _share(outcome.attained[outcome.service_class == index]) for index, name in enumerate(outcome.classes)
    }


def requests_by_class(outcome: Outcome) -> dict[str, int]:
    """How many there were of each."""
    return {name: int(np.count_nonzero(outcome.service_class == index)) for index, name in enumerate(outcome.classes)}


def worst_minute(outcome: Outcome) -> float | None:
    """The lowest attainment of any class among the arrivals of one minute; None where no minute had enough of any."""
    minute = np.floor(outcome.arrived_s / MINUTE_S).astype(np.int64)
    lowest = [_lowest_minute(minute, outcome.attained, outcome.service_class == each) for each in _indices(outcome)]
    return min((share for share in lowest if share is not None), default=None)


def _indices(outcome: Outcome) -> range:
    return range(len(outcome.classes))


def _lowest_minute(minute: npt.NDArray[np.int64], attained: Bools, chosen: Bools) -> float | None:
    if not chosen.any():
        return None
    _, place = np.unique(minute[chosen], return_inverse=True)
    arrivals = np.bincount(place)
    kept = np.bincount(place, weights=attained[chosen].astype(np.float64))
    is_counted = arrivals >= MINUTE_ARRIVALS_MIN
    if not is_counted.any():
        return None
    return float((kept[is_counted] / arrivals[is_counted]).min())


def _known(values: Floats) -> Floats:
    return values[~np.isnan(values)]


def _share(flags: Bools) -> float | None:
    return float(np.count_nonzero(flags) / flags.size) if flags.size else None


def _spread(values: Floats) -> dict[str, float | None]:
    if not values.size:
        return {"mean": None, "p50": None, "p90": None, "p99": None}
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return {"mean": float(values.mean()), "p50": float(p50), "p90": float(p90), "p99": float(p99)}


def _largest(values: Floats) -> float | None:
    return float(values.max()) if values.size else None


def _quantiles(values: Floats, shares: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in np.quantile(values, shares)) if values.size else ()
