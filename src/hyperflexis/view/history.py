"""The fleet in figures over time: a sample every so often, of which so many are kept."""

from __future__ import annotations

from collections import deque

from hyperflexis.view.snapshot import Sample

SAMPLES_MAX = 600


class History:
    """A ring of samples."""

    def __init__(self, spacing_s: float = 1.0) -> None:
        self.spacing_s = spacing_s
        self.samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)
        self._taken_s: float | None = None
        self._arrivals = self._tokens = 0

    def is_due(self, now: float) -> bool:
        """Whether it is time for another sample."""
        return self._taken_s is None or now >= self._taken_s + self.spacing_s

    def rates(self, arrivals: int, tokens: int, now: float) -> tuple[float, float]:
        """Arrivals and tokens per second since the last sample, of which these are the sums so far. Takes note."""
        passed_s = now - self._taken_s if self._taken_s is not None else 0.0
        rates = (0.0, 0.0)
        if passed_s > 0:
            rates = (arrivals - self._arrivals) / passed_s, (tokens - self._tokens) / passed_s
        self._taken_s, self._arrivals, self._tokens = now, arrivals, tokens
        return rates

    def recent(self, count: int) -> list[Sample]:
        """The last few."""
        start = max(0, len(self.samples) - count)
        return [self.samples[index] for index in range(start, len(self.samples))]
