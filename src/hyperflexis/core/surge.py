"""How much demand may grow within a horizon, learned from how it grew lately; and how sure one has to be.

Without a model of arrivals: with N(t) the need at instant t as it is and M(t) its mean, both in instances,

    growth over a horizon h    g(t) = (max of N over (t, t + h] + c) / (M(t) + c)

is known h later, and the factor for the next h is a quantile of the g of the last minutes. What may come before help
could arrive is so held ready, and no more: the factor is near 1 where starts are quick or demand is smooth, and
near peak over mean where they are slow and it is not.

Which quantile is found by feedback. Of the work that is placed, a small share may be placed where it will be late;
while it is more, the quantile rises, else it falls (adaptive conformal inference, Gibbs and Candes 2021: the share
holds in the long run whatever demand does). Knows no instances and no requests.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

SMOOTHING = 0.5
"""c, instances: small fleets are not to be ruled by ratios of small numbers."""
SEEN_MIN = 20
"""Growths that have to have been seen for their quantile to count; else it is the prior."""
PRIOR = 1.25


class Surge:
    """Growth over one horizon."""

    def __init__(self, horizon_s: float, memory_s: float) -> None:
        """Needs of the last `memory_s` count."""
        self.horizon_s = horizon_s
        self._memory_s = memory_s
        self._open: deque[tuple[float, float]] = deque()
        """(instant, mean) whose horizon has not passed."""
        self._peaks: deque[tuple[float, float]] = deque()
        """(instant, need) in falling order of needs: the first is the largest since the oldest open instant."""
        self._growths: deque[tuple[float, float]] = deque()
        self._sorted: list[float] = []

    def observe(self, now: float, need: float, mean: float) -> None:
        """Note a need and its mean, at instants in order."""
        while self._peaks and self._peaks[-1][1] <= need:
            self._peaks.pop()
        self._peaks.append((now, need))
        self._open.append((now, mean))
        while self._open and self._open[0][0] <= now - self.horizon_s:
            instant_s, then = self._open.popleft()
            while self._peaks[0][0] <= instant_s:
                self._peaks.popleft()
            growth = (self._peaks[0][1] + SMOOTHING) / (then + SMOOTHING)
            self._growths.append((now, growth))
            insort(self._sorted, growth)
        while self._growths and self._growths[0][0] < now - self._memory_s:
            _, oldest = self._growths.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]

    def factor(self, quantile: float) -> float:
        """By how much the mean may grow within the horizon, so sure."""
        seen = len(self._sorted)
        if seen < SEEN_MIN:
            return PRIOR
        return self._sorted[min(seen - 1, int(quantile * seen))]

    def most(self, mean: float, quantile: float) -> float:
        """The need to be ready for."""
        return self.factor(quantile) * (mean + SMOOTHING) - SMOOTHING


class Certainty:
    """The quantile, by feedback on the share of work that is placed where it will be late."""

    def __init__(
        self, late_share: float, gain: float = 0.05, begins: float = 0.9, bounds: tuple[float, float] = (0.5, 1.0)
    ) -> None:
        """`late_share` is what may be late."""
        self._late_share = late_share
        self._gain = gain
        self._bounds = bounds
        self.quantile = begins

    def observe(self, placed: float, late: float) -> None:
        """So much was placed since the last time, so much of it where it will be late."""
        if placed > 0:
            low, high = self._bounds
            risen = self.quantile + self._gain * (late / placed - self._late_share)
            self.quantile = max(low, min(high, risen))
