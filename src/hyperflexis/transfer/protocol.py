"""What a receiver and a source say on a stream socket, TCP or Unix: four bytes of length, little-endian, then msgpack.

A connection carries one request after another. The answer to `Fetch` is `Granted`, then the bytes in segments that both
ends compute from the ranges, each behind four bytes that repeat its length; a 0 in their place ends the stream, and
`Finished` or `Refused` follows. Bytes count only once `Finished` has been read: it says that the lease held after the
last one had been copied out of the source's memory.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, TypeVar

import msgspec

from hyperflexis.transfer.ranges import RANGES_MAX

LENGTH = struct.Struct("<I")
REQUEST_BYTES_MAX = RANGES_MAX * 18 + 4096
"""Two numbers of at most nine bytes per range, and the rest."""
ANSWER_BYTES_MAX = RANGES_MAX * 5 + (1 << 20)
"""A checksum per range, or what a medium needs to be opened."""
SEGMENT_BYTES = 1 << 19
"""Between two looks at the lease. Twice as much is slower over TCP, probably for leaving the caches."""
SEGMENT_PIECES = 512
"""Half of what Linux takes in one call."""

T = TypeVar("T", bound=msgspec.Struct)


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """Which generation of which region, and the right to it."""

    token: bytes
    region: int
    generation: int
    peer: str
    """Who asks: requests of one peer wait in one line."""


class Fetch(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Send these ranges."""

    claim: Claim
    offsets: list[int]
    lengths: list[int]
    checksums: bool


class Digest(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Say that the lease holds, and the checksums of these ranges. For media whose bytes take another way."""

    claim: Claim
    offsets: list[int]
    lengths: list[int]


class Open(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Hand over what a medium needs to read by itself."""

    claim: Claim
    medium: str
    details: bytes = b""


class Ask(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Something else than a region's bytes, for whoever the owner lets answer it."""

    payload: bytes


Request = Fetch | Digest | Open | Ask


class Granted(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """It is the peer's turn; bytes follow."""

    waited_s: float


class Finished(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """All is said, and the lease holds."""

    checksums: list[int] = []
    """CRC-32 of each range, if they were asked for."""


class Opened(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """File descriptors, where there are any, come with its first byte."""

    details: bytes


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The owner does not lend it (any more)."""

    error: str
    """A key of `errors.BY_NAME`."""
    reason: str


class Told(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The answer to `Ask`. File descriptors, where there are any, come with its first byte."""

    payload: bytes


Answer = Granted | Finished | Opened | Refused | Told


class ProtocolError(Exception):
    """The peer said something that is no part of this conversation."""


_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def frame(message: msgspec.Struct) -> bytes:
    """One message as it goes onto the stream."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def read_request(body: bytes | bytearray) -> Request:
    """Raises ProtocolError."""
    request: Request = _decoded(_requests, body)
    return request


def receive_answer(sock: socket.socket, first: bytes = b"") -> Answer:
    """Wait for one message; `first` has been read already.

    Raises:
        ProtocolError: it is none.
        EOFError, OSError: the peer has gone, or is silent.
    """
    head = bytearray(LENGTH.size)
    if len(first) < LENGTH.size:
        head[: len(first)] = first
        receive_into(sock, [memoryview(head)[len(first) :]])
        first = b""
    else:
        head[:] = first[: LENGTH.size]
        first = first[LENGTH.size :]
    (length,) = LENGTH.unpack(head)
    if not len(first) <= length <= ANSWER_BYTES_MAX:
        raise ProtocolError(f"a message of {length} bytes was announced (at most {ANSWER_BYTES_MAX})")
    body = bytearray(length)
    body[: len(first)] = first
    receive_into(sock, [memoryview(body)[len(first) :]])
    answer: Answer = _decoded(_answers, body)
    return answer


def _decoded(decoder: msgspec.msgpack.Decoder[Any], body: bytes | bytearray) -> Any:
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a message cannot be read: {error}") from error


def receive_into(sock: socket.socket, views: list[memoryview]) -> None:
    """Fill all views in order, straight from the socket.

    Raises:
        EOFError, OSError: the peer has gone, or is silent.
    """
    left = [view for view in views if view.nbytes]
    while left:
        got, *_ = sock.recvmsg_into(left, 0, socket.MSG_WAITALL)
        if not got:
            raise EOFError("the peer has closed the stream")
        left = _after(left, got)


def send_all(sock: socket.socket, views: list[bytes | memoryview]) -> None:
    """Send all views in order. The kernel copies them: what is overwritten afterwards arrives as it was.

    (sendfile would not copy, and so could send bytes of a later generation under an earlier lease.)

    Raises:
        OSError: the peer has gone, or reads nothing.
    """
    left = [memoryview(view) for view in views]
    while left:
        left = _after(left, sock.sendmsg(left))


def _after(views: list[memoryview], done_bytes: int) -> list[memoryview]:
    for index, view in enumerate(views):
        if done_bytes < view.nbytes:
            return [view[done_bytes:], *views[index + 1 :]]
        done_bytes -= view.nbytes
    return []
