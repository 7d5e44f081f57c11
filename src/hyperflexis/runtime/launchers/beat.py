"""Whether a node is still there: it is sent a byte now and then, and has to send it back.

A process that dies closes its sockets; a machine that freezes or loses its network does not. Silence is counted in
bytes sent, not in time: if it was this process that stood still, nobody is blamed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

BEAT_S = 1.0


class Beat(asyncio.Protocol):
    """One connection to one node. `on_silence` is called at most once, with words, and not after `close`."""

    def __init__(self, token: bytes, timeout_s: float, on_silence: Callable[[str], None]) -> None:
        self._token = token
        self._unanswered_max = max(1, round(timeout_s / BEAT_S))
        self._unanswered = 0
        self._on_silence: Callable[[str], None] | None = on_silence
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_soon(self._beat)

    async def connect(self, host: str, port: int) -> None:
        """Begin to listen for answers; a host that cannot be reached is silent, too."""
        try:
            self._transport, _ = await self._loop.create_connection(lambda: self, host, port)
        except OSError as error:
            self._end(f"cannot be reached: {error.strerror or error}")
            return
        self._transport.write(self._token)
        if self._on_silence is None:  # It has ended meanwhile.
            self._transport.abort()

    def close(self) -> None:
        """Watch no longer."""
        self._on_silence = None
        self._end("")

    def _beat(self) -> None:
        if self._unanswered >= self._unanswered_max:
            self._end(f"has not answered for {self._unanswered * BEAT_S:.0f} s")
            return
        self._unanswered += 1
        self._timer = self._loop.call_later(BEAT_S, self._beat)
        if self._transport is not None:
            self._transport.write(b".")

    def _end(self, why: str) -> None:
        self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        on_silence, self._on_silence = self._on_silence, None
        if on_silence is not None:
            on_silence(why)

    # -- asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        self._unanswered = 0

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("has closed the connection")
