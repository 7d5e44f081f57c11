"""One stream between the driver and an instance, and what may happen to the messages on it.

In order and whole, as a socket's, but for the faults that are ordered. Knows no message.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

LOSS_NOTICED_S = 0.5
"""What carries the stream sends again what it lost, in vain, and ends the stream after so long."""


class Way:
    """From one end to the other."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        latency_s: float,
        deliver: Callable[[bytes], None],
        give_up: Callable[[], None],
    ) -> None:
        """`give_up` is called where something was lost and the other end cannot have noticed by what followed."""
        self._loop = loop
        self._give_up = give_up
        self._latency_s = latency_s
        self._deliver = deliver
        self._under_way: deque[bytes] = deque()
        self._last_s = 0.0
        self._held_back: bytes | None = None
        self._faults: deque[str] = deque()
        self._slow_until_s = 0.0
        self._extra_s = 0.0
        self._has_lost = self._is_closed = False
        self._when_empty: Callable[[], None] | None = None

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is under way and nothing is going to go wrong."""
        return not self._under_way and self._held_back is None and not self._has_lost

    def fail_next(self, fault: str) -> None:
        """Let the next message be lost, be repeated, or be swapped with the one that follows."""
        self._faults.append(fault)

    def delay(self, extra_s: float, until_s: float) -> None:
        """Let messages that are sent until then take so much longer. They stay in order."""
        self._extra_s, self._slow_until_s = extra_s, until_s

    def heal(self) -> None:
        """Nothing more goes wrong."""
        self._faults.clear()
        self._slow_until_s = 0.0
        if self._held_back is not None:  # Nothing may follow that it could be swapped with.
            held, self._held_back = self._held_back, None
            self._put(held)

    def send(self, frame: bytes) -> None:
        if self._is_closed:
            return
        fault = self._faults.popleft() if self._faults else ""
        if fault == "swap" and self._held_back is None:
            self._held_back = frame
            return
        if fault == "lose":
            self._has_lost = True
            self._loop.call_later(LOSS_NOTICED_S, self._give_up)
        else:
            self._put(frame)
        if fault == "repeat":
            self._put(frame)
        if self._held_back is not None:
            held, self._held_back = self._held_back, None
            self._put(held)

    def close(self, then: Callable[[], None], *, is_cut: bool = False) -> None:
        """Send nothing more; `then` is called when the other end knows. Where it is cut, what is under way is lost."""
        if self._is_closed:
            return
        self._is_closed = True
        self._held_back = None
        if is_cut:
            self._under_way.clear()
        if self._under_way:
            self._when_empty = then
        else:
            self._loop.call_later(self._latency_s, then)

    def _put(self, frame: bytes) -> None:
        now = self._loop.time()
        extra_s = self._extra_s if now < self._slow_until_s else 0.0
        self._last_s = max(self._last_s, now + self._latency_s + extra_s)
        self._under_way.append(frame)
        self._loop.call_at(self._last_s, self._arrive)

    def _arrive(self) -> None:
        """The first that is under way has come, whichever's timer this is."""
        if not self._under_way:  # It was cut off.
            return
        try:
            self._deliver(self._under_way.popleft())
        finally:
            if self._when_empty is not None and not self._under_way:
                self._loop.call_soon(self._when_empty)
                self._when_empty = None
