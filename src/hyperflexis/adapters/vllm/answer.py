"""One request at a vLLM server: from its POST to its end, whatever kind of end that is.

An answer is whole only if vLLM says why it ended. A connection that closes before, a stream that is `[DONE]` without
a reason, and the reason "abort" are none: the request is unfinished, and whoever owns it has to see to that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import aiohttp

from hyperflexis.adapters.vllm import completion
from hyperflexis.adapters.vllm.completion import Choice, Chunk, Events
from hyperflexis.adapters.vllm.endpoint import BROKEN, Endpoint, in_words
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
    """An answer that is being read by a task of its own."""

    def __init__(self, endpoint: Endpoint, body: Any, headers: Mapping[str, str], hearer: Hearer) -> None:
        self._endpoint = endpoint
        self._body = body
        self._headers = headers
        self._hearer: Hearer | None = hearer
        self._response: aiohttp.ClientResponse | None = None
        self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        """Read no more, which closes the connection and so makes the server stop computing."""
        self._hearer = None
        if self._response is not None:
            self._response.close()
        self._task.cancel()

    def when_over(self, callback: Callable[[Reading], None]) -> None:
        """Call this when the connection is not used any more."""
        self._task.add_done_callback(lambda _: callback(self))

    async def _run(self) -> None:
        try:
            end = await self._read()
        except BROKEN as error:
            end = Unfinished(f"its connection broke: {in_words(error)}")
        except ValueError as error:
            end = Unfinished(f"the server sent what is no completion: {error}")
        self._say_end(end)

    async def _read(self) -> End:
        async with self._endpoint.open(completion.PATH, self._body, self._headers) as response:
            self._response = response
            if response.status != 200:
                return _refusal(response.status, completion.fault_of(await response.read()))
            if not self._body["stream"]:
                return self._take(completion.whole(await response.read())) or Unfinished("the answer says no end")
            events, content = Events(), response.content
            end: End | None = None
            while data := await content.readany():
                for chunk in events.take(data):
                    found = self._take(chunk)
                    if found is not None and end is None:
                        end = found
                        self._say_end(end)  # At once; what follows only lets the connection be used again.
            return end or Unfinished("its stream ended before its answer")

    def _take(self, chunk: Chunk) -> End | None:
        hearer = self._hearer
        if chunk.error is not None:
            return _refusal(chunk.error.code, chunk.error.message)
        if hearer is None:
            return None
        if chunk.kv_transfer_params is not None:
            hearer.on_transfer(chunk.kv_transfer_params)
        for choice in chunk.choices:
            if choice.token_ids:
                hearer.on_chunk(choice)
            if choice.finish_reason is not None:
                reason = completion.reason_of(choice)
                return Unfinished(f"vLLM ended it: {choice.finish_reason}") if reason is None else Whole(reason)
        return None

    def _say_end(self, end: End) -> None:
        hearer, self._hearer = self._hearer, None
        if hearer is not None:
            hearer.on_end(end)


def _refusal(code: int | str | None, why: str) -> End:
    """What an error means. What is not said to be the request's fault may be the server's, and is tried again."""
    status = int(code) if code is not None and str(code).isdecimal() else 500
    if status in OVERLOADED:
        return Refused(why)
    if 400 <= status < 500:
        return Impossible(why, is_unknown=status == 404)
    return Unfinished(f"the server failed: {why}")
