"""One address on which a gateway listens: the server library's parts, set up, started and stopped together."""

from __future__ import annotations

import asyncio
import logging
import resource
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from hyperflexis.gateway.connections import Connections
from hyperflexis.gateway.errors import ApiError
from hyperflexis.gateway.limits import Limits

STOP_GRACE_S = 1.0
"""After all answers were ended, so long their last bytes may take."""
LINGER_S = 2.0
"""So long the rest of a refused body is read and dropped: closing earlier would lose the refusal on its way."""
BACKLOG = 4096
"""New connections that wait to be accepted, if the system allows so many. A round of the event loop that answers a
crowd takes a second; whoever finds no place meanwhile tries again after ever longer times, and is then too late for us.
"""
SPARE_FILES = 128
"""Descriptors that connections leave to the rest of the process."""

_CONTINUE = "100-continue"
_Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

Routing = Callable[[web.UrlDispatcher], None]
"""Adds routes."""


class Listener:
    """Nothing listens before `start`."""

    def __init__(
        self,
        route: Routing,
        speak: Callable[..., object],
        *,
        host: str,
        port: int,
        limits: Limits,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Prepare. `speak` is the middleware that turns errors into answers."""
        self._route = route
        self._speak = speak
        self._host = host
        self._port = port
        self._limits = replace(limits, connections_max=min(limits.connections_max, _files_max()))
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._runner: web.AppRunner
        self._connections: Connections

    async def start(self) -> int:
        """Listen; returns the port.

        Raises:
            OSError: the address cannot be had.
        """
        self._connections = Connections(self._limits)
        middlewares = [self._connections.middleware(), self._speak]
        app = web.Application(client_max_size=self._limits.body_bytes_max, middlewares=middlewares)  # type: ignore[arg-type]
        self._route(app.router)
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            logger=_http_log(),
            shutdown_timeout=STOP_GRACE_S,
            lingering_time=LINGER_S,
            # Sooner or later `Connections` ends them; two clocks would only race.
            keepalive_timeout=2 * self._limits.idle_s,
        )
        await self._runner.setup()
        assert self._runner.server is not None
        self._runner.server.request_handler = _expecting(self._runner.server.request_handler)
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._connections.factory(self._runner.server),
                self._host,
                self._port,
                backlog=BACKLOG,
                ssl=self._tls,
                ssl_handshake_timeout=self._limits.head_s if self._tls else None,
            )
        except BaseException:
            await self._runner.cleanup()
            raise
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Stop listening, and end all connections."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        server = self._runner.server
        transports = [connection.transport for connection in server.connections] if server is not None else []
        await self._runner.cleanup()
        for transport in transports:
            # Whoever has not read by now will not; with bytes left to send, the event loop could not be closed.
            if transport is not None and transport.get_write_buffer_size():
                transport.abort()
        self._connections.close()


def _expecting(handle: _Handle) -> _Handle:
    """Refuse what a client expects and does not get, in our words. The library's own have what it sent in them."""

    async def handled(request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get(hdrs.EXPECT, _CONTINUE).lower() != _CONTINUE:
            refusal = ApiError(417, f"Of 'Expect', only {_CONTINUE!r} is known.", code="expectation_failed")
            return web.Response(body=refusal.body(), status=417, content_type="application/json")
        return await handle(request)

    return handled


def _files_max() -> int:
    """Connections that this process has descriptors for."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if most == resource.RLIM_INFINITY else max(1, most - SPARE_FILES)


def _http_log() -> logging.Logger:
    """The server library's log, where what clients do takes a line, not a stack trace."""
    logger = logging.getLogger("hyperflexis.gateway.http")
    if not logger.filters:
        logger.addFilter(_shorten)
    return logger


def _shorten(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, (HttpProcessingError, web.RequestPayloadError)):
        # Without its message: that holds what the client sent, its key perhaps among it.
        record.msg, record.args = "bad request: %s", (type(error).__name__,)
    elif isinstance(error, ConnectionError):
        record.msg, record.args = "a client has left", ()
    else:
        return True
    record.exc_info = None
    record.levelno, record.levelname = logging.INFO, "INFO"
    return True
