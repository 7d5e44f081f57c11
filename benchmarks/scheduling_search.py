"""The arithmetic of the scheduling comparison: loads as steps of a grid, the highest that holds, means over seeds.

Loads lie on one grid, each 4 % above the last, so that what one search simulates serves the next. Knows nothing of how
a load is simulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

GRID = 1.04
"""A load over the one below it; what a capacity is exact to."""
STRIDE = 4
"""Grid steps between the loads that are tried first."""
STEP_MIN, STEP_MAX = -80, 80
"""Loads from a 23rd to 23 times the trace's own; beyond these a capacity is nought, or the last one."""

ROUNDING = 1e-9
"""By which a mean may be short of a share and still be it."""

Point = Mapping[str, Any]
"""What one simulation gave."""
Figure = Callable[[Point], float]


def rate_of(step: int) -> float:
    """The rate multiplier of a grid step; 0 is the trace's own speed."""
    return round(GRID**step, 6)


def step_of(rate: float) -> int:
    """The grid step nearest to a rate."""
    return round(math.log(rate) / math.log(GRID))


@dataclass(frozen=True, slots=True)
class Criterion:
    """What a load has to keep for its rate to count: the mean over the seeds, of each class."""

    name: str
    share: float
    figure: str = "attainment"
    """Which figure of a class."""

    def values(self, point: Point) -> list[float]:
        """The figure of each class that has it."""
        found = (each[self.figure] for each in point["classes"].values())
        return [value for value in found if value is not None]


CRITERIA = (
    Criterion("95", 0.95),
    Criterion("90", 0.90),
    Criterion("minute", 0.80, "worst_minute"),
)
"""Every class at 95 and 90 % over the window, and every class at 80 % among the arrivals of its worst minute."""


def holds(criterion: Criterion, points: Sequence[Point]) -> bool:
    """Whether every class keeps the share in the mean over these seeds."""
    return all(mean >= criterion.share - ROUNDING for mean in class_means(criterion.figure, points).values())


def can_hold(criterion: Criterion, points: Sequence[Point], seeds: int) -> bool:
    """Whether it could still hold if every seed that is missing were perfect."""
    missing = seeds - len(points)
    sums: dict[str, float] = {}
    for point in points:
        for name, each in point["classes"].items():
            value = each[criterion.figure]
            sums[name] = sums.get(name, 0.0) + (1.0 if value is None else value)
    return all((total + missing) / seeds >= criterion.share - ROUNDING for total in sums.values())


def class_means(figure: str, points: Sequence[Point]) -> dict[str, float]:
    """By class, the mean over the seeds that have the figure."""
    names = dict.fromkeys(name for point in points for name in point["classes"])
    known = {
        name: [value for point in points if (value := point["classes"][name][figure]) is not None] for name in names
    }
    return {name: fmean(values) for name, values in known.items() if values}


def worst(points: Sequence[Point], figure: str = "attainment") -> float:
    """The mean over the seeds of the class that has least."""
    return min(class_means(figure, points).values(), default=1.0)


def highest(is_kept: Callable[[int], bool], start: int) -> int | None:
    """The highest step that is kept, if one step below a kept one always is too; None where none is.

    Strides out from `start` until one step is kept and one is not, then halves what lies between.
    """
    start = min(STEP_MAX, max(STEP_MIN, start))
    if is_kept(start):
        low, high = start, start + STRIDE
        while high <= STEP_MAX and is_kept(high):
            low, high = high, high + STRIDE
    else:
        low, high = start - STRIDE, start
        while low >= STEP_MIN and not is_kept(low):
            low, high = low - STRIDE, low
    found = _between(is_kept, max(low, STEP_MIN - 1), min(high, STEP_MAX + 1))
    return found if found >= STEP_MIN else None


def _between(is_kept: Callable[[int], bool], low: int, high: int) -> int:
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_kept(middle) else (low, middle)
    return low


def best_of(names: Sequence[str], is_kept: Callable[[str, int], bool], start: int) -> tuple[str, dict[str, int | None]]:
    """The name with the highest step, the first among equals; and what is known of each: its step, or a bound.

    Only the best is searched to the end. Of the others, the steps given are where they were last seen to hold, or None.
    """
    best, steps = names[0], {names[0]: highest(partial(is_kept, names[0]), start)}
    for name in names[1:]:
        reached = steps[best]
        above = STEP_MIN if reached is None else reached + 1
        if reached is not None and not is_kept(name, above):
            steps[name] = None
            continue
        steps[name] = highest(partial(is_kept, name), start if reached is None else above)
        if steps[name] is not None:
            best = name
    return best, steps


def seeds_complete(points: Sequence[Point], seeds: Sequence[int]) -> bool:
    return sorted(point["seed"] for point in points) == sorted(seeds)


def rounded(value: Any, digits: int = 4) -> Any:
    """Floats to so many significant digits, however deep they lie."""
    if isinstance(value, dict):
        return {key: rounded(each, digits) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each, digits) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value
