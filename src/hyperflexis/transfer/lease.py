"""Until when which bytes are lent: two words per region on a page that the owner writes and readers on its host map.

A generation is a number that is used once; 0 stands for nothing lent. A reader checks before and after it copies, as
with a seqlock: whoever overwrites lent bytes has ended the lease first (by time or on the page), so a copy whose lease
holds after its last byte is whole. Instants are nanoseconds of the host's monotonic clock. Knows no bytes and no peers.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from hyperflexis.transfer.errors import Exhausted, LeaseExpired, Recycled, RefusedError, Revoked
from hyperflexis.transfer.memory import SharedMemory

Clock = Callable[[], int]
"""Nanoseconds, monotonic, the same in all processes of a host."""

monotonic_ns: Clock = time.monotonic_ns
FOREVER_NS = (1 << 63) - 1
_WORDS = 2
_WORD_BYTES = 8


class Leases:
    """Reads the page; the owner's own checks go through it too."""

    def __init__(self, page: memoryview, clock: Clock = monotonic_ns) -> None:
        # Aligned words are read and written whole: memoryview moves an item with one machine instruction.
        self._words = page.cast("B").cast("Q")
        self._clock = clock

    def check(self, slot: int, generation: int) -> float:
        """Return the seconds left.

        Raises:
            LeaseExpired, Revoked, Recycled: the bytes are not lent, or not any more. The message has no subject yet.
        """
        if not 0 <= slot < len(self._words) // _WORDS:
            raise Revoked("was never on its owner's page")
        _fence()
        found, end_ns = self._words[slot * _WORDS], self._words[slot * _WORDS + 1]
        # The end belongs to that generation only if it still lies there.
        found = found if self._words[slot * _WORDS] == found else 0
        if not found or found != generation:
            raise _gone(found)
        left_ns = end_ns - self._clock()
        if left_ns <= 0:
            raise LeaseExpired("is no longer lent: its lease has ended")
        return math.inf if end_ns == FOREVER_NS else left_ns / 1e9


def _gone(found: int) -> RefusedError:
    if found == 0:
        return Revoked("was revoked by its owner")
    return Recycled("is of another generation: its memory has been recycled")


class LeasePage(Leases):
    """The owner's side: lends, prolongs, ends. Not thread-safe for writing; its source has a lock."""

    def __init__(self, regions_max: int, clock: Clock = monotonic_ns) -> None:
        self._memory = SharedMemory(regions_max * _WORDS * _WORD_BYTES, "hyperflexis-leases")
        super().__init__(self._memory.view, clock)
        # First in, first out: a slot is used again as late as can be, so that late readers hear the better reason.
        self._free = deque(range(regions_max))
        self._generations = 0

    @property
    def fd(self) -> int:
        return self._memory.fd

    def lend(self, lease_s: float) -> tuple[int, int]:
        """Return the slot and generation of a new lease.

        Raises:
            Exhausted: every slot is lent.
        """
        if not self._free:
            raise Exhausted("all slots for regions are taken; revoke some, or raise `regions_max` of the source")
        slot = self._free.popleft()
        return slot, self.lend_again(slot, lease_s)

    def lend_again(self, slot: int, lease_s: float) -> int:
        """End what was lent there, and return the generation of what is lent from now on."""
        self._generations += 1
        end_ns = self._end_ns(lease_s)
        self._write(slot, 0, 0)
        self._write(slot, 1, end_ns)
        self._write(slot, 0, self._generations)
        return self._generations

    def prolong(self, slot: int, lease_s: float) -> None:
        self._write(slot, 1, max(self._words[slot * _WORDS + 1], self._end_ns(lease_s)))

    def shorten(self, slot: int, lease_s: float) -> None:
        self._write(slot, 1, min(self._words[slot * _WORDS + 1], self._end_ns(lease_s)))

    def end(self, slot: int) -> None:
        self._write(slot, 0, 0)
        self._free.append(slot)

    def close(self) -> None:
        self._memory.close()

    def _end_ns(self, lease_s: float) -> int:
        """Raises ValueError for what is no length of time."""
        if not lease_s >= 0:
            raise ValueError(f"a lease lasts 0 seconds or more, not {lease_s}")
        return FOREVER_NS if lease_s > 1e9 else self._clock() + int(lease_s * 1e9)

    def _write(self, slot: int, word: int, value: int) -> None:
        self._words[slot * _WORDS + word] = value
        _fence()


def _fence() -> None:
    """Keep memory accesses before it before those after it, also where the processor would not (Arm)."""
    lock = threading.Lock()
    lock.acquire()
    lock.release()
    lock.acquire()
