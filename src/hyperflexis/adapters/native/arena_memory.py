"""The shared memory that a model's weights lie in: one anonymous file, written once, then sealed and mapped by all.

It has no name, so nothing is left behind however its processes end. Knows bytes, not weights.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path


class ArenaMemory:
    """Made before the fork that fills it; instances forked later map it without copying."""

    def __init__(self, fd: int | None = None) -> None:
        """Without a descriptor: memory of its own. With one, which it owns from now on: sealed memory of a donor's."""
        if fd is None:
            fd = os.memfd_create("hyperflexis-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._fd = fd

    @property
    def fd(self) -> int:
        return self._fd

    @property
    def size_bytes(self) -> int:
        return os.fstat(self._fd).st_size

    def resize(self, size_bytes: int) -> None:
        os.ftruncate(self._fd, size_bytes)

    def map_for_writing(self) -> mmap.mmap:
        return mmap.mmap(self._fd, self.size_bytes)

    def seal(self) -> None:
        """Nobody can write or resize it any more; every mapping for writing must be gone."""
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)

    def map_for_reading(self) -> mmap.mmap:
        """Pages are shared by all processes that map it."""
        # Private, for before Linux 6.7 a sealed file cannot be mapped as shared; pages never written are shared anyway.
        return mmap.mmap(self._fd, self.size_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)

    def map_for_lending(self) -> memoryview:
        """While it is still being written, and in a way that lets it be sealed afterwards."""
        # What could be mapped for writing would count as a writer until Linux 6.7, although it only reads.
        fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return memoryview(mmap.mmap(fd, self.size_bytes, mmap.MAP_SHARED, mmap.PROT_READ))
        finally:
            os.close(fd)

    def close(self) -> None:
        os.close(self._fd)


def available_bytes() -> int | None:
    """Memory that could be taken without swapping, as far as the kernel says; None where it does not."""
    known = [size for size in (_available_on_host(), _available_in_group()) if size is not None]
    return min(known, default=None)


def _available_on_host() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return int(dict(line.split(":", 1) for line in lines)["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _available_in_group(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container's limit leaves; None where there is no limit."""
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # ValueError: the limit is "max".
        return None
    return max(0, limit - used)
