"""Messages on a byte stream: four bytes of length, little-endian, then msgpack.

Two readers of the same format: `Frames` for whoever has bytes at hand (an event loop's protocol), `BlockingChannel` for
a process that computes and looks at its socket between steps.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

_LENGTH_BYTES = 4
FRAME_BYTES_MAX = 1 << 30
"""A length above this is taken for garbage: the largest honest message is a prompt of some million tokens."""

T = TypeVar("T")


class WireError(Exception):
    """The peer sent something that is no message."""


_encoder = msgspec.msgpack.Encoder()


def frame(message: msgspec.Struct) -> bytes:
    """One message as it goes onto the stream."""
    buffer = bytearray(_LENGTH_BYTES)
    _encoder.encode_into(message, buffer, _LENGTH_BYTES)
    buffer[:_LENGTH_BYTES] = (len(buffer) - _LENGTH_BYTES).to_bytes(_LENGTH_BYTES, "little")
    return bytes(buffer)


class Frames(Generic[T]):
    """Cuts a stream into messages of one type (or union of types)."""

    def __init__(self, message_type: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(message_type)
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[T]:
        """Take bytes; yield every message that is complete now.

        Raises:
            WireError: the bytes are no message; the stream cannot be read any further.
        """
        self._buffer += data
        start = 0
        try:
            while True:
                end = self._end(start)
                if end is None or end > len(self._buffer):
                    break
                body = bytes(self._buffer[start + _LENGTH_BYTES : end])
                start = end
                yield self._decode(body)
        finally:
            # Also where the reader stops in the middle: it must not hear the same message again.
            del self._buffer[:start]

    def _end(self, start: int) -> int | None:
        if len(self._buffer) - start < _LENGTH_BYTES:
            return None
        length = int.from_bytes(self._buffer[start : start + _LENGTH_BYTES], "little")
        if length > FRAME_BYTES_MAX:
            raise WireError(f"a message of {length} bytes was announced; the most is {FRAME_BYTES_MAX}")
        return start + _LENGTH_BYTES + length

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
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def wake_on(self, fd: int) -> None:
        """Let `receive` return, with nothing if nothing has come, while this descriptor is readable too."""
        self._poll.register(fd, select.POLLIN)

    def send(self, message: msgspec.Struct) -> None:
        """Blocks while the peer's buffer is full: a peer that does not read must not fill our memory."""
        self._sock.sendall(frame(message))

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
