"""Memory that other processes may map: an anonymous file that cannot shrink, so that no reader can fall off its end.

It has no name, so nothing is left behind however its processes end. Knows no leases: who may read when, others say.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets

from hyperflexis.transfer.errors import BadDescriptor

_FIXED_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class SharedMemory:
    """A resident buffer of its owner's, to be filled in place and exposed."""

    def __init__(self, size_bytes: int, label: str = "hyperflexis-transfer") -> None:
        fd = os.memfd_create(label, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size_bytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _FIXED_SIZE)
            self._become(memoryview(mmap.mmap(fd, size_bytes)), reopened_for_reading(fd))
        finally:
            os.close(fd)

    @classmethod
    def of_file(cls, fd: int) -> SharedMemory:
        """Expose an anonymous file that exists (a sealed weight arena); here too it is mapped for reading only.

        The descriptor stays the caller's.

        Raises:
            BadDescriptor: the file could shrink.
        """
        memory = cls.__new__(cls)
        memory._become(map_for_reading(fd), reopened_for_reading(fd))
        return memory

    def _become(self, view: memoryview, fd: int) -> None:
        self.id = secrets.randbits(63)
        self.view = view
        """All of it; a slice stays valid after `close`."""
        self.fd = fd
        """Open for reading: what peers are given. -1 once closed."""

    @property
    def size_bytes(self) -> int:
        return self.view.nbytes

    def close(self) -> None:
        """No new peer can map it; the pages go when the last view and the last mapping are gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def reopened_for_reading(fd: int) -> int:
    """A second descriptor of the same file, through which it cannot be mapped for writing."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def map_for_reading(fd: int) -> memoryview:
    """Map a whole anonymous file; the descriptor may be closed afterwards.

    Raises:
        BadDescriptor: it is no anonymous file, or it could shrink, and reading would then kill this process.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        size_bytes = os.fstat(fd).st_size
        if not seals & fcntl.F_SEAL_SHRINK:
            raise BadDescriptor("the shared file is not sealed against shrinking; its owner must seal it")
        return memoryview(mmap.mmap(fd, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ))
    except PermissionError:
        # Before Linux 6.7 a file sealed against writing cannot be shared; private pages that nobody writes are, too.
        return memoryview(mmap.mmap(fd, size_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ))
    except OSError as error:
        raise BadDescriptor(f"the shared file cannot be mapped ({error}); its owner sent something else") from error
