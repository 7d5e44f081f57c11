"""Messages on a byte stream: four bytes of length and four of number, little-endian, then msgpack.

The numbers count each stream's messages. Both ends decide by what they have heard, in its order; so one that is
missing, repeated or out of its turn, whatever lies between the ends, is the end of the stream and not a message.

Two readers of the same format: `Frames` for whoever has bytes at hand (an event loop's protocol), `BlockingChannel` for
a process that computes and looks at its socket between steps. `Framer` writes it.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

_LENGTH_BYTES = 4
_HEAD_BYTES = 8
_NUMBERS = 1 << 32
"""They begin anew then."""
FRAME_BYTES_MAX = 1 << 30
"""A length above this is taken for garbage: the largest honest message is a prompt of some million tokens."""

T = TypeVar("T")


class WireError(Exception):
    """The peer sent something that is no message, or not the next one."""


_encoder = msgspec.msgpack.Encoder()


class Framer:
    """The writing end of one stream."""

    def __init__(self) -> None:
        self._number = 0

    def frame(self, message: msgspec.Struct) -> bytes:
        """The next message as it goes onto the stream."""
        buffer = bytearray(_HEAD_BYTES)
        _encoder.encode_into(message, buffer, _HEAD_BYTES)
        length = len(buffer) - _HEAD_BYTES
        buffer[:_HEAD_BYTES] = (length | self._number << 32).to_bytes(_HEAD_BYTES, "little")
        self._number = (self._number + 1) % _NUMBERS
        return bytes(buffer)


class Frames(Generic[T]):
    """Cuts a stream into messages of one type (or union of types)."""

    def __init__(self, message_type: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(message_type)
        self._buffer = bytearray()
        self._number = 0
        """Of the next message."""

    def feed(self, data: bytes | memoryview) -> Iterator[T]:
        """Take bytes; yield every message that is complete now.

        Raises:
            WireError: the bytes are no message, or not the next one; the stream cannot be read any further.
        """
        self._buffer += data
        start = 0
        try:
            while True:
                end = self._end(start)
                if end is None or end > len(self._buffer):
                    break
                self._count(start)
                body = bytes(self._buffer[start + _HEAD_BYTES : end])
                start = end
                yield self._decode(body)
        finally:
            # Also where the reader stops in the middle: it must not hear the same message again.
            del self._buffer[:start]

    def _end(self, start: int) -> int | None:
        if len(self._buffer) - start < _HEAD_BYTES:
            return None
        length = int.from_bytes(self._buffer[start : start + _LENGTH_BYTES], "little")
        if length > FRAME_BYTES_MAX:
            raise WireError(f"a message of {length} bytes was announced; the most is {FRAME_BYTES_MAX}")
        return start + _HEAD_BYTES + length

    def _count(self, start: int) -> None:
        number = int.from_bytes(self._buffer[start + _LENGTH_BYTES : start + _HEAD_BYTES], "little")
        if number != self._number:
            raise WireError(f"message {number} came where {self._number} should have")
        self._number = (number + 1) % _NUMBERS

    def _decode(self, body: bytes) -> T:
        try:
            return self._decoder.decode(body)
        except (ValueError, RecursionError) as error:
            raise WireError(f"a message cannot be read: {error}") from error


class BlockingChannel(Generic[T]):
    """A connected stream socket of a process without an event loop."""

    _CHUNK_BYTES = 1 << 18

    def __init__(self, sock: socket.socket, message_type: Any) -> None:
        self._sock = sock
        self._sock.setblocking(True)
        self._frames: Frames[T] = Frames(message_type)
        self._framer = Framer()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def wake_on(self, fd: int) -> None:
        """Let `receive` return, with nothing if nothing has come, while this descriptor is readable too."""
        self._poll.register(fd, select.POLLIN)

    def send(self, message: msgspec.Struct) -> None:
        """Blocks while the peer's buffer is full: a peer that does not read must not fill our memory."""
        self._sock.sendall(self._framer.frame(message))

    def receive(self, timeout_s: float | None = 0.0) -> list[T]:
        """What has come; waits up to `timeout_s` (None: for ever) for the first bytes, or for a descriptor to wake on.

        Raises:
            EOFError: the peer has closed the stream.
            WireError: the peer sent garbage.
        """
        messages: list[T] = []
        sock = self._sock.fileno()
        while ready := self._poll.poll(None if timeout_s is None else timeout_s * 1000):
            if all(fd != sock for fd, _ in ready):
                break
            data = self._sock.recv(self._CHUNK_BYTES)
            if not data:
                if messages:
                    break  # The peer's last words; the end is told on the next call.
                raise EOFError("the peer has closed the stream")
            messages.extend(self._frames.feed(data))
            timeout_s = 0.0
        return messages
