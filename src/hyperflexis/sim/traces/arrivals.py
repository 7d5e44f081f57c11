"""Arrival processes: gaps of a given mean and coefficient of variation (CV), from a seed.

Gamma with shape k has CV 1/sqrt(k). Weibull with shape k has CV² = Γ(1+2/k)/Γ(1+1/k)² - 1, which is solved for k by
bisection. Knows nothing of what arrives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CHUNK = 1024
"""Gaps drawn at a time."""
WEIBULL_SHAPES = (0.02, 100.0)


def renewal(rate_per_s: float, cv: float, rng: np.random.Generator) -> Iterator[float]:
    """Instants without end, the first one gap after 0."""
    at = 0.0
    while True:
        instants = at + np.cumsum(unit_gaps("Gamma", cv, CHUNK, rng))
        at = float(instants[-1])
        yield from (instants / rate_per_s).tolist()


def unit_gaps(pattern: str, cv: float, count: int, rng: np.random.Generator) -> Floats:
    """Gaps of mean 1 and the given CV; `pattern` is Gamma or Weibull."""
    if cv <= 0:
        return np.ones(count)
    if pattern == "Weibull":
        shape = weibull_shape(cv)
        return rng.weibull(shape, count) / math.exp(math.lgamma(1 + 1 / shape))
    shape = 1 / cv**2
    return rng.gamma(shape, cv**2, count)


@lru_cache(maxsize=4096)
def weibull_shape(cv: float) -> float:
    """The Weibull shape whose CV this is, within the shapes that are searched."""
    low, high = WEIBULL_SHAPES
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if weibull_cv(middle) > cv else (low, middle)
    return math.sqrt(low * high)


def weibull_cv(shape: float) -> float:
    return math.sqrt(math.expm1(math.lgamma(1 + 2 / shape) - 2 * math.lgamma(1 + 1 / shape)))
