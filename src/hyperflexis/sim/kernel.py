"""The virtual clock: what is to happen, in total order of (instant, insertion).

Instants are whole multiples of `TICK_S`, a power of two, so that sums of them are exact: a thousand equal steps end at
the same instant whether they are added one by one or multiplied out. Knows nothing of what happens at an instant.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from hyperflexis.sim.errors import InputError

TICK_S = 2.0**-35
"""29 ps. A double counts these exactly for three days."""
HORIZON_S = 2.0**18
"""What lies beyond would not be exact any more, and is refused."""


def to_ticks_s(seconds: float) -> float:
    """The nearest instant that the clock knows."""
    return round(seconds / TICK_S) * TICK_S


Action = Callable[[], None]


class Kernel:
    """Runs actions at their instants. Those at one instant run in the order in which they were put."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Action]] = []
        self._insertions = 0

    def at(self, instant_s: float, action: Action) -> None:
        """Run `action` then.

        Raises:
            AssertionError: that is in the past.
            InputError: that is beyond the horizon.
        """
        if instant_s > HORIZON_S:
            raise InputError(
                f"something would happen after {instant_s:.0f} s, and a simulation reaches {HORIZON_S:.0f} s: "
                "take a shorter window of the workload, or a higher rate"
            )
        assert instant_s >= self.now, f"{instant_s} is before now, {self.now}"
        self._insertions += 1
        heapq.heappush(self._heap, (instant_s, self._insertions, action))

    def run(self, until_s: float = HORIZON_S) -> None:
        """Go on until nothing is left to happen, or not before `until_s` has passed."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until_s:
            self.now, _, action = pop(heap)
            action()
