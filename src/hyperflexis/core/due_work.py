"""Seconds of prefill that have arrived, by the term within which they are due; and how fast they came lately.

Of work that is due within F of its arrival, W came within the last w (demand bounds of earliest-deadline-first
scheduling):

    due_rate          W(F) / F                       the speed that is needed if it comes on like this
    hindsight_rate    max over w of W(w) / (w + F')  that with which nothing would have been late so far

F' is F without what queues lose that are not even. Of one request no more than F counts within F: it is computed by one
instance, which is then busy, and others would not help it.

Work with a long term is left out: it can wait for a trough, and asks for instances only when its deadline comes near.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

TERMS_S = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0, 32.0, 40.0, 48.0, 64.0)
"""Terms up to each of these are counted together."""
DEFERRABLE_S = TERMS_S[-1]
EXACT = 1e-9
HALF_MIN_S = 1.0
"""The shortest window of halves of terms."""
HINDSIGHT_SHARES, HINDSIGHT_MIN_S = (0.25, 0.5, 1.0, 2.0, 4.0), 0.5
"""Windows as shares of a term, and the shortest."""
LOST_S, LEFT_SHARE_MIN = 1.0, 0.2
"""Of a term, what queues lose that are not even; and what is left of it at the least."""


class DueWork:
    """All work so far, one sum for each of `TERMS_S`; each counts what is due sooner, too, as far as it can be done."""

    def __init__(self) -> None:
        self._sums = [0.0] * len(TERMS_S)

    def add(self, term_s: float, work_s: float) -> None:
        for index in range(bisect_left(TERMS_S, term_s), len(TERMS_S)):
            self._sums[index] += min(work_s, TERMS_S[index])

    @property
    def by_term(self) -> tuple[float, ...]:
        return tuple(self._sums)


class WorkHistory:
    """What these sums were lately."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Sequence[float]]] = deque()

    def observe(self, sums: Sequence[float], now: float) -> None:
        """Note them. Instants come in order."""
        self._seen.append((now, sums))
        while len(self._seen) > 1 and self._seen[1][0] <= now - DEFERRABLE_S:
            self._seen.popleft()

    def rate(self, window_s: float, now: float, term: int = -1) -> float:
        """Seconds of prefill per second within the window, due within the term; 0 before anything is known."""
        newest = self._seen[-1]
        oldest = next(each for each in self._seen if each[0] >= now - window_s)
        elapsed_s = max(newest[0] - oldest[0], min(window_s, newest[0] - self._seen[0][0]))
        return (newest[1][term] - oldest[1][term]) / elapsed_s if elapsed_s > 0 else 0.0

    def due_rate(self, now: float, margin_s: float = 0.0) -> float:
        """The most over the terms, each in a window as long as it is; of those that some work really has.

        What came in the last half of a term counts for more, the shorter the term is against the margin: prefills
        cannot be split, queues are uneven, and what has begun to come goes on.
        """
        most = 0.0
        for index, term_s in enumerate(TERMS_S):
            if not index or self._has(index, now):
                half = self.rate(max(HALF_MIN_S, term_s / 2), now, index)
                most = max(most, self.rate(term_s, now, index), (0.5 + margin_s / term_s) * half)
        return most

    def hindsight_rate(self, now: float) -> float:
        """Seconds of prefill per second with which what came lately would have been in time."""
        most = 0.0
        for index, term_s in enumerate(TERMS_S):
            if index and not self._has(index, now):
                continue
            left_s = max(LEFT_SHARE_MIN * term_s, term_s - LOST_S)
            for share in HINDSIGHT_SHARES:
                window_s = min(DEFERRABLE_S, max(HINDSIGHT_MIN_S, share * term_s))
                most = max(most, self.rate(window_s, now, index) * window_s / (window_s + left_s))
        return most

    def _has(self, index: int, now: float) -> bool:
        """Whether what came within a term's window has that term, and no shorter one."""
        return self.rate(TERMS_S[index], now, index) > self.rate(TERMS_S[index], now, index - 1) + EXACT
