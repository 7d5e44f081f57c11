"""Calls back at instants of the monotonic clock, from one thread. Knows not what for."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable


class Alarm:
    """The thread starts with the first appointment and ends with `close`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._heap: list[tuple[float, int]] = []
        self._calls: dict[int, Callable[[], None]] = {}
        self._thread: threading.Thread | None = None
        self._wakes_s = math.inf
        """When the thread looks next. Not later because an appointment was forgotten: looking in vain once is cheaper
        than being told of each that comes and goes."""
        self._is_closed = False

    def at(self, when_s: float, call: Callable[[], None]) -> int:
        """Make an appointment; return its number. The call must not block."""
        with self._changed:
            number = next(self._numbers)
            self._calls[number] = call
            heapq.heappush(self._heap, (when_s, number))
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            elif when_s < self._wakes_s:
                self._changed.notify()
            return number

    def forget(self, number: int) -> None:
        with self._changed:
            self._calls.pop(number, None)
            self._drop_forgotten()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (call := self._next()) is not None:
            call()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._is_closed:
                self._drop_forgotten()
                self._wakes_s = self._heap[0][0] if self._heap else math.inf
                wait_s = self._wakes_s - time.monotonic()
                if wait_s <= 0:
                    return self._calls.pop(heapq.heappop(self._heap)[1])
                self._changed.wait(min(wait_s, threading.TIMEOUT_MAX))
            return None

    def _drop_forgotten(self) -> None:
        while self._heap and self._heap[0][1] not in self._calls:
            heapq.heappop(self._heap)
