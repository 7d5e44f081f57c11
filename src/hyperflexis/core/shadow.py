"""What would have become of the requests that arrived, had the fleet been split otherwise: queues that only count.

A split gives the strict paces, those below a bound, the use of some instances only; looser requests may use the others
and, where they would be late there, these too. Both groups are one queue of prefill work each, drained as fast as its
instances can beside their decodes, the earliest promise first:

    W[j]   work queued with promises of up to level j; it drains by n speed seconds in a second
    late   W[j] / (n speed) + own work / speed > promise,  for a newcomer of level j; then it is not queued at all

As prefills with earlier promises go first, each W[j] drains as if the later ones were not there. Levels are half an
octave apart. Work inside a group is taken to be shared evenly, and a newcomer not to meet a step that is under way.

Knows nothing of instances, and not what the speeds come from (`splits`). An arrival costs the same few array operations
however many requests there are.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MEMORY_S = 300.0
"""Arrivals longer ago than this hardly count: several bursts, as bursts decide."""
LEVELS_S = [2.0 ** (half / 2) for half in range(-10, 17)]
"""Upper ends of what is taken for one promise, 31 ms to 4 min; longer ones count as the last."""
FEWEST = 5.0
"""A share is taken of at least so many arrivals."""


class Split(NamedTuple):
    """Which instances the strict paces may use."""

    below_s: float
    """Paces below this, seconds per token, are kept to them; infinite where nothing is split."""
    strict: int
    """How many there are."""


class Shadow:
    """All splits of one fleet, side by side. Row 0 of an array is the group of the strict paces, row 1 the others."""

    def __init__(self, splits: Sequence[Split], instances: int) -> None:
        self.splits = tuple(splits)
        strict = np.array([split.strict for split in splits], dtype=np.float64)
        self.sizes: Floats = np.stack([strict, instances - strict])
        """[2, splits]."""
        self._below_s = np.array([split.below_s for split in splits])
        self.set_speed(np.ones((2, len(splits))))
        self._queued_s: Floats = np.zeros((2, len(splits), len(LEVELS_S)))
        self._late: Floats = np.zeros((len(splits), 0))
        self._seen: Floats = np.zeros(0)
        self._columns: dict[str, int] = {}
        self._now = -math.inf

    def set_speed(self, speed: Floats) -> None:
        """Seconds of prefill work that an instance of each group gets done in a second, [2, splits]; above 0."""
        self._speed = speed
        self._drain = (speed * self.sizes)[:, :, np.newaxis]
        self._rate = np.maximum(speed * self.sizes, 1e-9)

    def arrive(self, service_class: str, pace_s: float, promise_s: float, work_s: float, now: float) -> None:
        """Queue a request in all of them. `promise_s` is the time to its first token, `work_s` its prefill."""
        self._pass(now)
        level = bisect_left(LEVELS_S, promise_s, hi=len(LEVELS_S) - 1)
        in_time = self._queued_s[:, :, level] / self._rate + work_s / self._speed <= promise_s
        is_strict = pace_s < self._below_s
        goes_outside = in_time[1] & ~is_strict & (self.sizes[1] > 0)
        goes_inside = in_time[0] & ~goes_outside
        self._queued_s[0, goes_inside, level:] += work_s
        self._queued_s[1, goes_outside, level:] += work_s
        column = self._column(service_class)
        self._late[:, column] += ~(goes_inside | goes_outside)
        self._seen[column] += 1.0

    def late_shares(self) -> Floats:
        """For each split, the share of arrivals that would be late of the class that fares worst, [splits]."""
        if not self._columns:
            return np.zeros(len(self.splits))
        worst: Floats = (self._late / np.maximum(self._seen, FEWEST)).max(axis=1)
        return worst

    def _pass(self, now: float) -> None:
        """Let time pass: queues drain, and what has been counted fades."""
        elapsed_s = now - self._now if self._now > -math.inf else 0.0
        self._now = now
        self._queued_s -= self._drain * elapsed_s
        np.maximum(self._queued_s, 0.0, out=self._queued_s)
        fades = math.exp(-elapsed_s / MEMORY_S)
        self._late *= fades
        self._seen *= fades

    def _column(self, service_class: str) -> int:
        column = self._columns.get(service_class)
        if column is None:
            column = self._columns[service_class] = len(self._columns)
            self._late = np.pad(self._late, ((0, 0), (0, 1)))
            self._seen = np.pad(self._seen, (0, 1))
        return column
