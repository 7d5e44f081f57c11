"""One request at a vLLM server: from its POST to its end, whatever kind of end that is.

An answer is whole only if vLLM says why it ended. A connection that closes before, a stream that is `[DONE]` without
a reason, and the reason "abort" are none: the request is unfinished, and whoever owns it has to see to that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from hyperflexis.adapters.vllm import completion
from hyperflexis.adapters.vllm.completion import Choice, Chunk, Events
from hyperflexis.adapters.vllm.connection import Connection, Pool
from hyperflexis.wire.messages import FinishReason

OVERLOADED = frozenset({429, 503})


class Whole(NamedTuple):
    """All tokens are here."""

    reason: FinishReason


class Refused(NamedTuple):
    """Not begun: the server takes no more for now."""

    why: str


class Impossible(NamedTuple):
    """The server says that it will never compute this."""

    why: str
    is_unknown: bool = False
    """It does not know the model at all."""


class Unfinished(NamedTuple):
    """It broke off; the server may be gone, or not."""

    why: str


End = Whole | Refused | Impossible | Unfinished


class Hearer(Protocol):
    """Whoever an answer is for."""

    def on_chunk(self, choice: Choice) -> None:
        """Take tokens, and what belongs to them."""

    def on_transfer(self, params: dict[str, Any]) -> None:
        """Take what lets another server fetch the KV; comes before the end."""

    def on_end(self, end: End) -> None:
        """Nothing follows. Not heard of by who has closed the answer."""


class Reading:
    """An answer on its way; nothing is heard of it before the loop's next turn."""

    def __init__(self, pool: Pool, body: Mapping[str, Any], headers: Mapping[str, str], hearer: Hearer) -> None:
        self._hearer: Hearer | None = hearer
        self._events = Events() if body["stream"] else None
        self._collected = b""
        """What is no stream of events: an answer in one piece, or a refusal."""
        self._when_over: Callable[[Reading], None] = lambda _: None
        self._connecting: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        request = pool.request(completion.PATH, msgspec.json.encode(body), headers)
        connection = pool.idle()
        if connection is not None:
            self._ask(connection, request)
        else:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(pool, request))

    def close(self) -> None:
        """Read no more, which closes the connection and so makes the server stop computing."""
        self._hearer = None
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.close()
        self._over()

    def when_over(self, callback: Callable[[Reading], None]) -> None:
        """Call this when the connection is not used any more."""
        self._when_over = callback

    async def _connect(self, pool: Pool, request: bytes) -> None:
        try:
            connection = await pool.connect()
        except OSError as error:  # A time-out is one too.
            self.on_broken(str(error) or "it takes too long")
        else:
            self._ask(connection, request)

    def _ask(self, connection: Connection, request: bytes) -> None:
        self._connection = connection
        connection.ask(request, self)

    # -- connection.Reader

    def on_body(self, status: int, data: bytes) -> None:
        if status != 200 or self._events is None:
            self._collected += data
            return
        try:
            for chunk in self._events.take(data):
                self._take(chunk)
        except ValueError as error:
            self._say_end(Unfinished(f"the server sent what is no completion: {error}"))

    def on_complete(self, status: int) -> None:
        self._connection = None
        if self._hearer is None:
            self._over()
        elif status != 200:
            self._say_end(_refusal(status, completion.fault_of(self._collected)))
        elif self._events is not None:
            self._say_end(Unfinished("its stream ended before its answer"))
        else:
            self._take_whole()
        self._over()

    def on_broken(self, why: str) -> None:
        self._connection = None
        self._say_end(Unfinished(f"its connection broke: {why}"))
        self._over()

    def _take_whole(self) -> None:
        try:
            self._take(completion.whole(self._collected))
        except ValueError as error:
            self._say_end(Unfinished(f"the server sent what is no completion: {error}"))
        self._say_end(Unfinished("its answer says no end"))

    def _take(self, chunk: Chunk) -> None:
        hearer = self._hearer
        if hearer is None:
            return
        if chunk.error is not None:
            self._say_end(_refusal(chunk.error.code, chunk.error.message))
            return
        if chunk.kv_transfer_params is not None:
            hearer.on_transfer(chunk.kv_transfer_params)
        for choice in chunk.choices:
            if choice.token_ids:
                hearer.on_chunk(choice)
            if choice.finish_reason is not None:
                reason = completion.reason_of(choice)
                self._say_end(Unfinished(f"vLLM ended it: {choice.finish_reason}") if reason is None else Whole(reason))

    def _say_end(self, end: End) -> None:
        """What still follows only lets the connection be used again."""
        hearer, self._hearer = self._hearer, None
        if hearer is not None:
            hearer.on_end(end)

    def _over(self) -> None:
        callback, self._when_over = self._when_over, lambda _: None
        callback(self)


def _refusal(code: int | str | None, why: str) -> End:
    """What an error means. What is not said to be the request's fault may be the server's, and is tried again."""
    status = int(code) if code is not None and str(code).isdecimal() else 500
    if status in OVERLOADED:
        return Refused(why)
    if 400 <= status < 500:
        return Impossible(why, is_unknown=status == 404)
    return Unfinished(f"the server failed: {why}")
