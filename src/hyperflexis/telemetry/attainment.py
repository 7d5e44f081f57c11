"""The share of one class's requests that kept its promises, over windows that end now.

Sums are kept at marks, one in ten seconds in which something was judged, so that a window costs a bisection and begins
up to ten seconds early. Knows no clock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

WINDOWS_S: Mapping[str, float] = {"1m": 60.0, "5m": 300.0, "30m": 1800.0, "1h": 3600.0, "6h": 21_600.0}
MARK_S = 10.0
_KEPT_S = max(WINDOWS_S.values()) + MARK_S
_MARKS_MAX = 2 * int(_KEPT_S / MARK_S)
"""Beyond so many the oldest are dropped, many at a time."""


class Attainment:
    """Requests of one class that were judged."""

    def __init__(self) -> None:
        self._judged = self._kept = 0
        self._marks_s: list[float] = []
        self._sums: list[tuple[int, int]] = []
        """What there was before each mark."""

    def judge(self, is_kept: bool, now: float) -> None:
        """Count a request that has ended."""
        if not self._marks_s or now >= self._marks_s[-1] + MARK_S:
            self._mark(now)
        self._judged += 1
        self._kept += is_kept

    def share(self, window_s: float, now: float) -> float | None:
        """Of those judged within the window; None where there were none, which is neither good nor bad."""
        first = bisect_right(self._marks_s, now - window_s - MARK_S)
        if first == len(self._marks_s):
            return None
        judged, kept = self._sums[first]
        return (self._kept - kept) / (self._judged - judged)

    def _mark(self, now: float) -> None:
        self._marks_s.append(now)
        self._sums.append((self._judged, self._kept))
        if len(self._marks_s) > _MARKS_MAX:
            old = bisect_right(self._marks_s, now - _KEPT_S)
            del self._marks_s[:old], self._sums[:old]
