"""How long a pull will take, learnt from those that have ended, for each pair of peer and medium.

Model: seconds = set-up + bytes / rate. Fitted by least squares in which a pull weighs 1 / (seconds typical of its size
and medium)², so that small ones tell of the set-up as much as large ones of the rate, and 0.9 times as much with each
that follows: the estimate rests on about the last ten. Sizes that hardly differ cannot tell set-up from rate; so two
imagined pulls of small weight, at the two ends of the range of sizes, keep the proportion that is typical of the
medium, at the level that was seen. Knows no clock.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from typing import NamedTuple

PAIRS_MAX = 1024
_MEMORY = 0.9
_IMAGINED_WEIGHT = 0.1
_LARGE_BYTES = float(1 << 26)


class Speed(NamedTuple):
    """One fitted line."""

    setup_s: float
    bytes_per_s: float

    def predict_s(self, size_bytes: float) -> float:
        return self.setup_s + size_bytes / self.bytes_per_s


TYPICAL: dict[str, Speed] = {
    "shm": Speed(1e-4, 3.5e9),
    "unix": Speed(2e-4, 2.5e9),
    "tcp": Speed(5e-4, 1.2e9),
    "cuda_ipc": Speed(1e-3, 2e10),
    "nixl": Speed(2e-3, 1e10),
}
"""Before anything is known; the first three as measured on two busy cores, the others guessed."""


class _Sums:
    """What least squares need of the past."""

    def __init__(self) -> None:
        self.weight = self.x = self.xx = self.y = self.xy = 0.0
        self.level = 0.0
        """Logarithm of seen over typical, averaged."""

    def add(self, size_bytes: float, seconds: float, weight: float) -> None:
        self.weight += weight
        self.x += weight * size_bytes
        self.xx += weight * size_bytes * size_bytes
        self.y += weight * seconds
        self.xy += weight * size_bytes * seconds

    def decay(self) -> None:
        self.weight, self.x, self.xx = self.weight * _MEMORY, self.x * _MEMORY, self.xx * _MEMORY
        self.y, self.xy = self.y * _MEMORY, self.xy * _MEMORY

    def with_imagined(self, typical: Speed) -> _Sums:
        both = _Sums()
        both.weight, both.x, both.xx = self.weight, self.x, self.xx
        both.y, both.xy, both.level = self.y, self.xy, self.level
        for size in (0.0, _LARGE_BYTES):
            seconds = typical.predict_s(size)
            both.add(size, seconds * math.exp(self.level), _IMAGINED_WEIGHT / seconds**2)
        return both

    def line(self, typical: Speed) -> Speed:
        """The best line whose set-up and rate are not negative."""
        spread = self.weight * self.xx - self.x * self.x
        slope = (self.weight * self.xy - self.x * self.y) / spread
        setup = (self.y - slope * self.x) / self.weight
        if setup < 0:
            setup, slope = 0.0, self.xy / self.xx
        elif slope <= 0:
            # Larger pulls were the faster ones: chance. The proportion is the typical one then.
            scale = math.exp(self.level)
            return Speed(typical.setup_s * scale, typical.bytes_per_s / scale)
        return Speed(setup, 1 / slope)


class Bandwidth:
    """The estimates of one receiver; forgets the peers that it has not heard of for longest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pairs: OrderedDict[tuple[str, str], _Sums] = OrderedDict()

    def observe(self, peer: str, medium: str, size_bytes: int, duration_s: float) -> None:
        """Learn from a pull that has ended well."""
        seconds = max(duration_s, 1e-7)
        with self._lock:
            sums = self._pairs.setdefault((peer, medium), _Sums())
            self._pairs.move_to_end((peer, medium))
            typical_s = TYPICAL[medium].predict_s(size_bytes)
            error = math.log(seconds / typical_s)
            sums.level += (error - sums.level) * (1 - _MEMORY if sums.weight else 1.0)
            sums.decay()
            sums.add(float(size_bytes), seconds, 1 / typical_s**2)
            if len(self._pairs) > PAIRS_MAX:
                self._pairs.popitem(last=False)

    def speed(self, peer: str, medium: str) -> Speed:
        """What is believed now: the medium's typical speed where nothing was seen."""
        with self._lock:
            sums = self._pairs.get((peer, medium))
            typical = TYPICAL[medium]
            return sums.with_imagined(typical).line(typical) if sums else typical

    def predict_s(self, peer: str, medium: str, size_bytes: int) -> float:
        """Seconds that a pull of so many bytes would take, once it begins."""
        return self.speed(peer, medium).predict_s(size_bytes)
