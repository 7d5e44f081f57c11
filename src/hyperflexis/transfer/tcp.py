"""The stream medium: bytes through a socket, straight into the resident target. TCP, and the same over a Unix socket.

Both sides are here. The source looks at the lease between segments and after the last; what it then says decides
whether the bytes count.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from hyperflexis.transfer.checksums import checksums, compare
from hyperflexis.transfer.connections import Connections, refusal
from hyperflexis.transfer.errors import Unreachable
from hyperflexis.transfer.handle import Transfer
from hyperflexis.transfer.medium import address_of, is_on_device
from hyperflexis.transfer.pace import Pace
from hyperflexis.transfer.protocol import (
    LENGTH,
    SEGMENT_BYTES,
    SEGMENT_PIECES,
    Answer,
    Fetch,
    Finished,
    Granted,
    ProtocolError,
    Refused,
    receive_answer,
    receive_into,
    send_all,
)
from hyperflexis.transfer.ranges import Range, segments, total_bytes


class StreamMedium:
    """The receiver's side, over one kind of socket."""

    def __init__(self, name: str, connections: Connections) -> None:
        self.name = name
        self._connections = connections

    def pull(self, transfer: Transfer) -> None:
        """See `Medium.pull`."""
        if is_on_device(transfer.target):
            raise Unreachable("sockets fill host memory only; pull into a buffer and copy it")
        address = address_of(transfer.descriptor, self.name == "unix")
        ranges = transfer.ranges
        request = Fetch(
            self._connections.claim(transfer.descriptor),
            [each.source for each in ranges],
            [each.length for each in ranges],
            transfer.has_checksums,
        )
        with self._connections.ask(address, request, transfer) as heard:
            if not isinstance(heard.answer, Granted):
                raise ProtocolError("it answered something else than it was asked")
            transfer.waited_s = heard.answer.waited_s
            finished = _receive(heard.sock, transfer)
        if transfer.has_checksums:
            arrived = checksums(transfer.target[each.target : each.target + each.length] for each in ranges)
            compare(transfer.descriptor, ranges, finished.checksums, arrived)

    def close(self) -> None:
        """The sockets are their keeper's."""


def _receive(sock: socket.socket, transfer: Transfer) -> Finished:
    target: memoryview = transfer.target
    for segment in segments(transfer.ranges, SEGMENT_BYTES, SEGMENT_PIECES):
        transfer.check()
        announced = _announced(sock)
        if announced == 0:
            raise _as_error(receive_answer(sock), transfer)
        if announced != total_bytes(segment):
            raise ProtocolError(f"a segment of {announced} bytes came instead of one of {total_bytes(segment)}")
        receive_into(sock, [target[each.target : each.target + each.length] for each in segment])
    if _announced(sock) != 0:
        raise ProtocolError("more bytes came than were asked for")
    last = receive_answer(sock)
    if not isinstance(last, Finished) or len(last.checksums) != len(transfer.ranges) * transfer.has_checksums:
        raise _as_error(last, transfer)
    return last


def _announced(sock: socket.socket) -> int:
    head = bytearray(LENGTH.size)
    receive_into(sock, [memoryview(head)])
    length: int = LENGTH.unpack(head)[0]
    return length


def _as_error(last: Answer, transfer: Transfer) -> Exception:
    """A stream without its end: the owner says why, or is no honest one."""
    if isinstance(last, Refused):
        return refusal(last, transfer.descriptor)
    return ProtocolError("it ended the stream before its end")


def send_ranges(
    sock: socket.socket,
    memory: memoryview,
    ranges: Sequence[Range],
    granted: bytes,
    check: Callable[[], object],
    *,
    pace: Pace,
) -> None:
    """The source's side: the first answer and all segments; `check` raises where the lease does not hold any more.

    Raises:
        OSError: the peer has gone, or does not read.
    """
    # With the first segment, for each small message by itself would wake the peer once more.
    head = granted
    for segment in segments(ranges, SEGMENT_BYTES, SEGMENT_PIECES):
        views = [memory[each.source : each.source + each.length] for each in segment]
        pace.wait(total_bytes(segment))
        send_all(sock, [head + LENGTH.pack(total_bytes(segment)), *views])
        head = b""
        check()
    if head:
        send_all(sock, [head])


def end_of_stream(last: bytes) -> bytes:
    """What follows the last segment: no further one, and a message."""
    return LENGTH.pack(0) + last
