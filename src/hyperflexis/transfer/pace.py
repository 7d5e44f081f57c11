"""A limit on bytes per second, shared by all threads that send. Knows not what is sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

SAVED_S = 0.02
"""So much time that was not used may be caught up with: sleeps last longer than they should, above all on a busy
machine."""


class Pace:
    """Each piece begins when those before it have had their time."""

    def __init__(
        self,
        bytes_per_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not bytes_per_s > 0:
            raise ValueError(f"a pace is above 0 bytes per second, not {bytes_per_s}")
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_s = clock()
        """When the next piece may begin."""

    def wait(self, size_bytes: int) -> None:
        """Return when so many bytes may go."""
        with self._lock:
            now_s = self._clock()
            begins_s = max(now_s - SAVED_S, self._free_s)
            self._free_s = begins_s + size_bytes / self._bytes_per_s
        if begins_s > now_s:
            self._sleep(begins_s - now_s)
