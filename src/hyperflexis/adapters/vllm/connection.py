"""HTTP connections on which answers are read as they come, without a task or a buffer between socket and reader.

A library's client wakes a task for every chunk, which costs more than everything else that is done with a token. Here
the parser (llhttp, through httptools) hands each piece of a body to its reader at once. One request at a time on a
connection; a connection whose answer was whole is kept for a moment, for the next.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import urlsplit

import httptools

from hyperflexis.adapters.vllm.endpoint import CONNECT_S, KEPT_S


class Reader(Protocol):
    """Whoever an answer is for. Hears `on_complete` or `on_broken` once, and nothing after it."""

    def on_body(self, status: int, data: bytes) -> None: ...

    def on_complete(self, status: int) -> None: ...

    def on_broken(self, why: str) -> None: ...


class Connection(asyncio.Protocol):
    """One TCP connection, for its pool and one reader at a time."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._reader: Reader | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self.idle_since_s = 0.0

    def ask(self, request: bytes, reader: Reader) -> None:
        """Send a request whose answer this reader takes."""
        assert self._transport is not None
        assert self._reader is None, "the connection is in use"
        self._reader, self._status = reader, 0
        self._transport.write(request)

    def close(self) -> None:
        """At once; the reader hears no more."""
        self._reader = None
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._break(f"it sent what is no HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._break(str(exc or "the server closed it"))

    # -- httptools

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._reader is not None:
            self._reader.on_body(self._status, body)

    def on_message_complete(self) -> None:
        reader, self._reader = self._reader, None
        is_kept = self._parser.should_keep_alive()
        self._parser = httptools.HttpResponseParser(self)
        if reader is None or not is_kept:
            self.close()
        else:
            self._pool.keep(self)
        if reader is not None:
            reader.on_complete(self._status)

    def _break(self, why: str) -> None:
        self._pool.forget(self)
        reader, self._reader = self._reader, None
        self.close()
        if reader is not None:
            reader.on_broken(why)


class Pool:
    """Connections to one server."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        self._host, self._prefix = parts.hostname or "", parts.path
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._ssl else 80)
        self._idle: list[Connection] = []
        self._head = "".join(f"{name}: {value}\r\n" for name, value in {"Host": parts.netloc, **headers}.items())

    def request(self, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        """A POST of JSON, as it is sent."""
        own = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return (
            f"POST {self._prefix}{path} HTTP/1.1\r\n{self._head}{own}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode("latin-1") + body

    def idle(self) -> Connection | None:
        """A connection that was used a moment ago; None if there is none."""
        while self._idle:
            connection = self._idle.pop()
            if time.monotonic() - connection.idle_since_s < KEPT_S:
                return connection
            connection.close()
        return None

    async def connect(self) -> Connection:
        """A new connection.

        Raises:
            OSError: there is none to be had, or not in time.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_S):
            _, connection = await loop.create_connection(
                lambda: Connection(self), self._host, self._port, ssl=self._ssl
            )
        return connection

    def keep(self, connection: Connection) -> None:
        """Its answer is whole."""
        connection.idle_since_s = time.monotonic()
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Of those that are kept, each."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
