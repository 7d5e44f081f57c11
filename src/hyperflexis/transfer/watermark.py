"""How far a buffer that is filled from its front has come: what lies before the mark is final, nothing behind it is.

One writer moves it, any number of threads wait for it. Knows no bytes.
"""

from __future__ import annotations

import threading

from hyperflexis.transfer.errors import Unsettled


class Watermark:
    """Rises from 0 to the size, or is broken off and rises no more."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._settled_bytes = 0
        self._broken_off = ""
        self._changed = threading.Condition()

    @property
    def settled_bytes(self) -> int:
        return self._settled_bytes

    def rise(self, to_bytes: int) -> None:
        """All bytes before `to_bytes` are in their place, and stay as they are."""
        with self._changed:
            assert self._settled_bytes <= to_bytes <= self.size_bytes, f"{to_bytes} after {self._settled_bytes}"
            self._settled_bytes = to_bytes
            self._changed.notify_all()

    def break_off(self, why: str) -> None:
        """What lies before the mark may be overwritten from now on; whoever waits hears why."""
        with self._changed:
            self._broken_off = why
            self._changed.notify_all()

    def reaches(self, to_bytes: int, wait_s: float = 0.0) -> bool:
        """Whether it is there, after waiting so long at most.

        Raises:
            Unsettled: it was broken off.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._broken_off or self._settled_bytes >= to_bytes, wait_s)
            if self._broken_off:
                raise Unsettled(f"nothing more will come: {self._broken_off}")
            return self._settled_bytes >= to_bytes
