"""The search of the disaggregation comparison: the rate at which attainment falls below a share.

Rates lie on a grid, each 3 % above the last, so that policies are shown the same loads. Between the last rate that is
borne and the first that is not, the crossing is read off the line through the two. Knows nothing of how a load is
simulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

GRID = 1.03
"""A rate over the one below it: what the search is exact to."""
NEAR, FAR = 1, 2
"""Grid steps from a good guess, or from any, to the rate that is tried next; doubled until the crossing is passed."""
STEPS_MAX = 80
"""Rates beyond so many steps from the load's own are not tried: a tenth of it, and ten times it."""
ROUNDING = 1e-9
"""By which a mean may be short of a share and still be it."""

IsBorne = Callable[[int], bool]
Attainment = Callable[[int], float]


def factor(step: float) -> float:
    """The rate of a grid step, as a multiple of the load's own."""
    return float(GRID**step)


def step_of(multiple: float) -> int:
    """The highest grid step whose rate is no higher."""
    return math.floor(math.log(multiple) / math.log(GRID) + ROUNDING)


def highest(is_borne: IsBorne, guess: int, stride: int = FAR) -> int | None:
    """The highest step that is borne, if each step below a borne one is, too; None where none is."""
    guess = max(-STEPS_MAX, min(STEPS_MAX, guess))
    up = is_borne(guess)
    reached = guess
    while abs(ahead := reached + (stride if up else -stride)) <= STEPS_MAX and is_borne(ahead) == up:
        reached, stride = ahead, 2 * stride
    low, high = (reached, ahead) if up else (ahead, reached)
    low, high = max(low, -STEPS_MAX - 1), min(high, STEPS_MAX + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_borne(middle) else (low, middle)
    return low if low >= -STEPS_MAX else None


def crossing(attainment: Attainment, least: float, step: int | None) -> float:
    """Where between a step, the highest that is borne, and the next one the line through both crosses the share.

    As a multiple of the load's own rate; 0 where nothing is borne.
    """
    if step is None:
        return 0.0
    if step == STEPS_MAX:
        return factor(step)
    low, high = attainment(step), attainment(step + 1)
    share = (low - least) / (low - high) if low > high else 0.0
    return factor(step + min(1.0, max(0.0, share)))


def best_of(
    names: Sequence[str], is_borne: Callable[[str, int], bool], guess: int, stride: int = FAR
) -> tuple[str, int | None]:
    """The name with the highest step, the first among equals, and that step. Only the best is searched to the end."""
    best, reached = names[0], highest(partial(is_borne, names[0]), guess, stride)
    for name in names[1:]:
        above = -STEPS_MAX if reached is None else reached + 1
        if reached is not None and not is_borne(name, above):
            continue
        step = highest(partial(is_borne, name), guess if reached is None else above)
        if step is not None:
            best, reached = name, step
    return best, reached


def climb(
    names: Sequence[str], start: int, is_borne: Callable[[str, int], bool], guess: int, stride: int = FAR
) -> tuple[str, int | None]:
    """As `best_of`, for names in an order in which they get better up to the best and worse behind it."""
    best, reached = start, highest(partial(is_borne, names[start]), guess, stride)
    for way in (1, -1):
        while 0 <= best + way < len(names):
            name = names[best + way]
            if reached is not None and not is_borne(name, reached + 1):
                break
            step = highest(partial(is_borne, name), guess if reached is None else reached + 1)
            if step is None and reached is not None:
                break
            best, reached = best + way, step
        if best != start and reached is not None:  # What lies the other way is known to be worse.
            break
    return names[best], reached
