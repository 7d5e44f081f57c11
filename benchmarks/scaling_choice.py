"""Which fixed fleet is just large enough, which tuning of a scaler is taken, and whether a scaler keeps as much.

A fixed fleet is large enough that keeps 99 % of every class; where none does, half a point less than the best keeps.
A scaler keeps as much whose every class is within a point of that fleet, over all seeds together; it is tuned to be
within half a point, for the windows that are reported are others. Knows no simulations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

ENOUGH, SHORT_OF_BEST = 0.99, 0.005
WITHIN, TUNED_WITHIN = 0.01, 0.005
ROUNDING = 1e-9

Figures = Mapping[str, Any]


def attainment(runs: Iterable[Figures]) -> dict[str, float]:
    """By class, over all runs."""
    sums: dict[str, list[int]] = {}
    for run in runs:
        for name, counts in run["classes"].items():
            sums[name] = [one + two for one, two in zip(sums.get(name, [0, 0]), counts, strict=True)]
    return {name: kept / requests for name, (requests, kept) in sums.items()}


def worst(runs: Iterable[Figures]) -> float:
    """The attainment of the class that keeps least."""
    return min(attainment(runs).values())


def instance_s(runs: Iterable[Figures]) -> float:
    return sum(float(run["instance_s"]) for run in runs)


def shortfall(runs: Sequence[Figures], static: Sequence[Figures]) -> float:
    """By how much the class that falls furthest behind a fixed fleet does; negative if none does."""
    own, theirs = attainment(runs), attainment(static)
    return max(theirs[name] - own[name] for name in theirs)


def keeps(runs: Sequence[Figures], static: Sequence[Figures], within: float = WITHIN) -> bool:
    return shortfall(runs, static) <= within + ROUNDING


def smallest(run: Callable[[int], Figures], most: int) -> dict[str, Any]:
    """The fixed fleet: how many instances, what it gave, and whether it keeps 99 % of every class."""
    largest = worst([run(most)])
    enough = ENOUGH if largest >= ENOUGH else largest - SHORT_OF_BEST
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if worst([run(middle)]) >= enough else (middle, high)
    return {"instances": high, "is_enough": largest >= ENOUGH, **run(high)}


def cheapest(texts: Sequence[str], run: Callable[[str, int], Figures], peaks: Mapping[int, Figures]) -> str:
    """The tuning that costs least of those that keep as much as the fixed fleets; if none does, that is least behind.

    Seeds that cannot change the answer are not run.
    """
    first, *others = peaks
    found = {text: [run(text, first)] for text in texts}
    able = [text for text in texts if keeps(found[text], [peaks[first]], WITHIN)] or [
        min(texts, key=lambda text: shortfall(found[text], [peaks[first]]))
    ]
    static = list(peaks.values())
    for text in sorted(able, key=lambda text: instance_s(found[text])):
        found[text] += [run(text, seed) for seed in others]
        if keeps(found[text], static, TUNED_WITHIN):
            return text
    tried = [text for text in able if len(found[text]) == len(peaks)]
    return min(tried, key=lambda text: shortfall(found[text], static))


def told(runs: Sequence[Figures]) -> str:
    """In one line."""
    shares = ", ".join(f"{name} {100 * share:.1f}" for name, share in attainment(runs).items())
    return f"{instance_s(runs):.0f} instance-s; {shares}"
