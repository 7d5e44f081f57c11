"""One vLLM server by its URL: questions with time limits, and every way of not being there as one error.

Streams are read elsewhere (`connection`). Knows HTTP and nothing of what is asked. Sessions are shared: whoever opened
one closes it.
"""

from __future__ import annotations

from typing import NamedTuple

import aiohttp
import msgspec

CONNECT_S = 5.0
"""So long a connection may take."""
KEPT_S = 2.0
"""So long a connection is kept for the next request: vLLM closes its own after 5 s, and one that it is just closing
would cost that request a second try."""

BROKEN = (aiohttp.ClientError, OSError, TimeoutError)
"""What the client raises where a connection fails, ends early, or speaks no HTTP."""


class UnreachableError(Exception):
    """Nobody answers there, or not in time; the message says what happened."""

    def __init__(self, why: str, *, is_late: bool = False) -> None:
        super().__init__(why)
        self.is_late = is_late
        """Nothing is known but that no answer came in time."""


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes

    @property
    def is_ok(self) -> bool:
        return self.status == 200


def open_session() -> aiohttp.ClientSession:
    """A client for any number of servers. To be closed with `await session.close()`."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, keepalive_timeout=KEPT_S),
    )


class Endpoint:
    """A server's address, and how to speak to it."""

    def __init__(self, session: aiohttp.ClientSession, url: str, api_key: str = "") -> None:
        """`api_key` is what the server was started with, if it asks for one."""
        self._session = session
        self.url = url.rstrip("/")
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def __repr__(self) -> str:
        return f"Endpoint({self.url})"

    async def get(self, path: str, timeout_s: float) -> Answer:
        """Ask for something.

        Raises:
            UnreachableError: there was no whole answer in time.
        """
        return await self._ask("GET", path, None, timeout_s)

    async def post(self, path: str, body: object, timeout_s: float) -> Answer:
        """Send something.

        Raises:
            UnreachableError: there was no whole answer in time.
        """
        return await self._ask("POST", path, body, timeout_s)

    async def _ask(self, method: str, path: str, body: object, timeout_s: float) -> Answer:
        headers, data = dict(self.headers), None
        if body is not None:
            headers["Content-Type"], data = "application/json", msgspec.json.encode(body)
        limit = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(
                method, self.url + path, data=data, headers=headers, timeout=limit
            ) as response:
                return Answer(response.status, await response.read())
        except TimeoutError:
            raise UnreachableError(
                f"{self.url}{path} has not answered within {timeout_s:.3g} s", is_late=True
            ) from None
        except BROKEN as error:
            raise UnreachableError(f"{self.url} cannot be reached: {in_words(error)}") from error


def in_words(error: BaseException) -> str:
    """What a client's error says, or at least what it is."""
    return str(error) or type(error).__name__
