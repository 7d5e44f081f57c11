"""Memory that others map keeps its size, and gives nobody but its owner the right to write."""

from __future__ import annotations

import fcntl
import mmap
import os

import pytest

from hyperflexis.transfer.errors import BadDescriptor
from hyperflexis.transfer.memory import SharedMemory, map_for_reading
from hyperflexis.transfer.receiver import Receiver
from hyperflexis.transfer.source import Source


def test_peers_see_what_the_owner_writes_and_cannot_write() -> None:
    memory = SharedMemory(5000)
    view = map_for_reading(memory.fd)
    memory.view[4999] = 7
    assert view[4999] == 7
    assert view.readonly
    with pytest.raises(PermissionError):
        mmap.mmap(memory.fd, 5000)
    with pytest.raises(OSError, match=r"not permitted|Invalid"):
        os.ftruncate(memory.fd, 10)


def test_view_outlives_closing() -> None:
    memory = SharedMemory(10)
    view = memory.view
    memory.close()
    memory.close()
    view[3] = 1
    assert memory.fd == -1


def test_memory_that_could_shrink_is_not_mapped() -> None:
    fd = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 100)
    with pytest.raises(BadDescriptor, match="not sealed against shrinking"):
        SharedMemory.of_file(fd)
    os.close(fd)


def test_sealed_file_of_another_making_is_lent_and_attached() -> None:
    """A weight arena: written once, then sealed against everything."""
    fd = os.memfd_create("arena", os.MFD_ALLOW_SEALING)
    os.write(fd, b"weights" * 1000)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    memory = SharedMemory.of_file(fd)
    os.close(fd)
    with Source() as source, Receiver() as receiver:
        descriptor = source.describe(source.expose(memory, 60.0))
        assert receiver.attach(descriptor).view == b"weights" * 1000
        target = bytearray(7000)
        assert receiver.pull(descriptor, [(0, 0, 7000)], target).result(20.0).medium == "shm"
        assert target == b"weights" * 1000
    memory.close()
