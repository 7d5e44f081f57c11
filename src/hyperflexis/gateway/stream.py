"""Server-sent events over one HTTP response, by push: the only file besides `server` that knows aiohttp's transport.

`write` is called from inside the backend's step and hands framed bytes to the transport itself, so that a token wakes
no task. The handler's task (`run`) writes the head together with the first events, takes over while the client reads
too slowly, and writes the end. Where pushing is not possible (HTTP/1.0 has no chunks), that task writes everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

UNSENT_BYTES_MAX = 65_536
"""Above this much in the transport nothing more is pushed: it is the transport's own high-water mark."""


class _EventResponse(web.StreamResponse):
    """Keeps its head back until the first write, so that both leave in one segment on every event loop."""

    # Where aiohttp renames this, uvloop still joins the two writes, as it sends at the end of a loop's turn.
    _send_headers_immediately = False


class EventStream:
    """One response of events. Until `run`, and while the client lags, events wait in a backlog."""

    def __init__(
        self,
        request: web.Request,
        *,
        backlog_bytes_max: int,
        stall_s: float,
        on_overflow: Callable[[], None],
        allow_push: bool = True,
    ) -> None:
        self._request = request
        # After a disconnect the request no longer has it.
        self._transport = request.transport
        self._may_push = allow_push and request.version >= HttpVersion11
        self._backlog_bytes_max = backlog_bytes_max
        self._stall_s = stall_s
        self._on_overflow = on_overflow
        self._backlog: list[bytes] = []
        self._backlog_bytes = 0
        self._pushing = False
        self._is_head_sent = False
        self._finished = False
        self._dead = self._transport is None
        self._wake = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether nothing can reach the client any more."""
        return self._dead or self._transport is None or self._transport.is_closing()

    @property
    def paused(self) -> bool:
        """Whether events wait here rather than leave."""
        return not self._pushing

    def write(self, event: bytes) -> None:
        """Send one event, or keep it. Never raises: one dead client must not end the step that serves the others."""
        if not event:
            # An empty chunk would end the response.
            return
        if not self._pushing:
            self._keep(event)
            return
        transport = self._transport
        assert transport is not None
        if transport.is_closing():
            self._die()
            return
        try:
            transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        except (RuntimeError, OSError):
            self._die()
            return
        if transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            self._pushing = False
            self._wake.set()

    def finish(self, last: bytes) -> None:
        """Send the last events and end the response."""
        self._finished = True
        self._pushing = False
        self._keep(last)

    def abort(self) -> None:
        """Cut the connection: nothing more can or should be said."""
        self._die()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.abort()

    def _keep(self, event: bytes) -> None:
        if self._dead:
            return
        self._backlog.append(event)
        self._backlog_bytes += len(event)
        self._wake.set()
        if self._backlog_bytes > self._backlog_bytes_max and not self._finished:
            self.abort()
            self._on_overflow()

    def _die(self) -> None:
        self._dead = True
        self._pushing = False
        self._backlog.clear()
        self._wake.set()

    async def run(self, headers: Mapping[str, str]) -> web.StreamResponse:
        """Answer with the events, until the last of them is sent.

        Raises:
            ConnectionError: the client is gone, or was cut off because it did not read.
        """
        response = _EventResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **headers})
        writer = await response.prepare(self._request)
        assert writer is not None
        try:
            await self._send_all(response, writer)
        except TimeoutError as error:
            self.abort()
            raise ConnectionResetError("The client does not read.") from error
        return response

    async def _send_all(self, response: web.StreamResponse, writer: AbstractStreamWriter) -> None:
        while not self._dead:
            async with asyncio.timeout(self._stall_s):
                # First let leave what was pushed: the backlog counts against its cap until the client reads.
                await writer.drain()
                data = self._take()
                if self._finished and not self._backlog:
                    await response.write_eof(data)
                    return
                if data:
                    await response.write(data)
                    self._is_head_sent = True
                    continue
            self._wake.clear()
            # The head leaves with the first write, and a first token may have no text yet: nothing may overtake it.
            self._pushing = self._may_push and self._is_head_sent
            await self._wake.wait()
        raise ConnectionResetError("The client does not read.")

    def _take(self) -> bytes:
        """Take events from the backlog, as many as the transport should hold."""
        size = count = 0
        while count < len(self._backlog) and size < UNSENT_BYTES_MAX:
            size += len(self._backlog[count])
            count += 1
        data = b"".join(self._backlog[:count])
        del self._backlog[:count]
        self._backlog_bytes -= size
        return data
