"""The shared-memory medium: a receiver on the same host maps the region's memory and the owner's page of leases.

It then copies by itself, without the owner's doing, and looks at the lease before and after.
"""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

import numpy as np

from hyperflexis.transfer.checksums import checksums, compare
from hyperflexis.transfer.connections import Connections
from hyperflexis.transfer.descriptor import Descriptor
from hyperflexis.transfer.errors import BadDescriptor, PeerLost, RefusedError, Unreachable
from hyperflexis.transfer.handle import Transfer
from hyperflexis.transfer.lease import Clock, Leases
from hyperflexis.transfer.mappings import Mappings
from hyperflexis.transfer.medium import Grant, address_of, ask_digest, is_on_device
from hyperflexis.transfer.memory import SharedMemory, map_for_reading
from hyperflexis.transfer.protocol import Open, Opened
from hyperflexis.transfer.ranges import Range, pieces

_PIECE_BYTES = 4 << 20
"""Between two looks at whether to go on: about a millisecond."""
_UNLOCKED_BYTES = 1 << 20
"""From here on a copy lets other threads run meanwhile. For small ones that would cost more than it gives: the
interpreter's lock, once given up, may take milliseconds to come back."""


def grant(memory: SharedMemory, lease_page_fd: int) -> Grant:
    """The owner's side."""
    return Grant(fds=(memory.fd, lease_page_fd))


class Mapped(NamedTuple):
    """One memory of one source."""

    view: memoryview
    leases: Leases


class SharedMemoryMedium:
    """The receiver's side."""

    name = "shm"

    def __init__(self, connections: Connections, clock: Clock) -> None:
        self._connections = connections
        self._clock = clock
        self._mappings: Mappings[Mapped] = Mappings()

    def pull(self, transfer: Transfer) -> None:
        """See `Medium.pull`."""
        if is_on_device(transfer.target):
            raise Unreachable("mapped memory is copied to host memory only; pull into a buffer and copy it")
        mapped = self.map(transfer)
        check_lease(mapped.leases, transfer)
        _copy(mapped.view, transfer)
        check_lease(mapped.leases, transfer)
        if transfer.has_checksums:
            sent = ask_digest(self._connections, address_of(transfer.descriptor, is_local=True), transfer)
            target: memoryview = transfer.target
            arrived = checksums(target[each.target : each.target + each.length] for each in transfer.ranges)
            compare(transfer.descriptor, transfer.ranges, sent, arrived)

    def has(self, descriptor: Descriptor) -> bool:
        """Its memory is mapped already."""
        return (descriptor.source, descriptor.memory) in self._mappings

    def map(self, transfer: Transfer) -> Mapped:
        """Return the region's memory and its leases, mapped for reading.

        Raises:
            TransferError: the owner cannot be asked, or refuses.
        """
        key = (transfer.descriptor.source, transfer.descriptor.memory)
        return self._mappings.get(key, lambda: self._open(transfer))

    def close(self) -> None:
        """See `Medium.close`."""
        self._mappings.close()

    def _open(self, transfer: Transfer) -> tuple[socket.socket, Mapped]:
        descriptor = transfer.descriptor
        request = Open(self._connections.claim(descriptor), self.name)
        heard = self._connections.open(address_of(descriptor, is_local=True), request, transfer)
        try:
            if not isinstance(heard.answer, Opened) or len(heard.fds) != 2:
                raise PeerLost(f"{descriptor.owner} sent no memory for {descriptor}; it is of no use")
            view, page = (map_for_reading(fd) for fd in heard.fds)
            if view.nbytes != descriptor.size_bytes:
                raise BadDescriptor(f"{descriptor} is said to have {descriptor.size_bytes} bytes; it has {view.nbytes}")
            return heard.sock, Mapped(view, Leases(page, self._clock))
        except BaseException:
            heard.sock.close()
            raise
        finally:
            for fd in heard.fds:
                os.close(fd)


def check_lease(leases: Leases, transfer: Transfer) -> float:
    """The page's word, with its subject."""
    try:
        return leases.check(transfer.descriptor.slot, transfer.descriptor.generation)
    except RefusedError as error:
        raise type(error)(f"{transfer.descriptor} {error}") from None


def _copy(source: memoryview, transfer: Transfer) -> None:
    target: memoryview = transfer.target
    copied = 0
    for at_source, at_target, length in transfer.ranges:
        if length < _UNLOCKED_BYTES:
            target[at_target : at_target + length] = source[at_source : at_source + length]
        else:
            _copy_large(source, target, Range(at_source, at_target, length), transfer)
        copied += length
        if copied >= _PIECE_BYTES:
            copied = 0
            transfer.check()


def _copy_large(source: memoryview, target: memoryview, whole: Range, transfer: Transfer) -> None:
    for each in pieces([whole], _PIECE_BYTES):
        into = np.frombuffer(target, np.uint8, each.length, each.target)
        np.copyto(into, np.frombuffer(source, np.uint8, each.length, each.source))
        transfer.check()
