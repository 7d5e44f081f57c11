"""The connections of one listener: how many there may be, and how long each may keep one waiting.

The server library bounds neither. A client that opens many and says nothing, or says it a byte at a time, must not keep
others out: whoever is being answered stays, and of those that wait, the one goes first that has waited longest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

from aiohttp import web

from hyperflexis.gateway.errors import ApiError
from hyperflexis.gateway.guard import Handler
from hyperflexis.gateway.limits import Limits


class Connections:
    """Makes the protocol of each new connection, around the server library's own."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._open: dict[web.RequestHandler, _Connection] = {}
        # Both in order of their instants, as each is of one length.
        self._heads: dict[_Connection, float] = {}
        """That have begun to say something, or are new: until when."""
        self._idle: dict[_Connection, float] = {}
        """That have had their answer: until when."""
        self._timer: asyncio.Handle | None = None
        self._looks_at_s = 0.0

    def __len__(self) -> int:
        return len(self._open)

    def factory(self, server: web.Server) -> Callable[[], asyncio.Protocol]:
        """What a listening socket makes protocols with."""
        return lambda: _Connection(self, server())

    def middleware(self) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
        """What tells that a head has come, and that its answer is done."""

        @web.middleware
        async def watch(request: web.Request, handler: Handler) -> web.StreamResponse:
            connection = self._open.get(request.protocol)
            if connection is None:
                # It was cut in the moment in which its request was complete; nobody hears this.
                return web.Response(status=408)
            self._forget_waiting(connection)
            try:
                return await handler(request)
            finally:
                if request.protocol in self._open:
                    self._wait(connection, self._idle, self._limits.idle_s)

        return watch

    def close(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- for connections

    def on_open(self, connection: _Connection) -> bool:
        """Whether it may stay."""
        if len(self._open) >= self._limits.connections_max and not self._make_room():
            return False
        self._open[connection.handler] = connection
        self._wait(connection, self._heads, self._limits.head_s)
        return True

    def on_data(self, connection: _Connection) -> None:
        if connection in self._idle:
            del self._idle[connection]
            self._wait(connection, self._heads, self._limits.head_s)

    def on_closed(self, connection: _Connection) -> None:
        self._forget_waiting(connection)
        self._open.pop(connection.handler, None)

    def _wait(self, connection: _Connection, where: dict[_Connection, float], seconds: float) -> None:
        where[connection] = until_s = self._loop.time() + seconds
        if self._timer is None or self._looks_at_s > until_s:
            self._look_at(until_s)

    def _forget_waiting(self, connection: _Connection) -> None:
        self._heads.pop(connection, None)
        self._idle.pop(connection, None)

    def _make_room(self) -> bool:
        waiting = next(iter(self._idle), None) or next(iter(self._heads), None)
        if waiting is not None:
            self._cut(waiting)
        return waiting is not None

    def _cut(self, connection: _Connection) -> None:
        self.on_closed(connection)
        connection.cut()

    def _look_at(self, instant_s: float) -> None:
        self.close()
        self._looks_at_s = instant_s
        self._timer = self._loop.call_at(instant_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        for where in (self._heads, self._idle):
            while where and (first := next(iter(where.items())))[1] <= now:
                self._cut(first[0])
        if waiting := [next(iter(where.values())) for where in (self._heads, self._idle) if where]:
            self._look_at(min(waiting))


class _Connection(asyncio.Protocol):
    """Hands everything on to the server library's protocol."""

    def __init__(self, connections: Connections, handler: web.RequestHandler) -> None:
        self.handler = handler
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._is_refused = False

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._connections.on_open(self):
            self.handler.connection_made(transport)
        else:
            self._is_refused = True
            self._transport.write(_FULL)
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        if not self._is_refused:
            self._connections.on_data(self)
            self.handler.data_received(data)

    def eof_received(self) -> None:
        if not self._is_refused:
            self.handler.eof_received()

    def pause_writing(self) -> None:
        if not self._is_refused:
            self.handler.pause_writing()

    def resume_writing(self) -> None:
        if not self._is_refused:
            self.handler.resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        if not self._is_refused:
            self._connections.on_closed(self)
            self.handler.connection_lost(exc)


def _refusal() -> bytes:
    body = ApiError(503, "Too many connections.", kind="service_unavailable_error", code="too_many_connections").body()
    head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nRetry-After: 1"
    return b"%b\r\nContent-Length: %d\r\n\r\n%b" % (head.encode(), len(body), body)


_FULL = _refusal()
