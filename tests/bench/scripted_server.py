"""A session whose server answers by a script, in virtual time: after so long, such bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Script(NamedTuple):
    """One answer: a status, and what comes after how long."""

    parts: Sequence[tuple[float, bytes]] = ()
    status: int = 200
    text: str = ""
    headers: Mapping[str, str] = {}
    fault: Exception | None = None
    """What the connection ends with, after all parts."""


class Asked(NamedTuple):
    at_s: float
    body: Any
    headers: Mapping[str, str]


class Response:
    """As much of aiohttp's as is used."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.status = script.status
        self.headers = script.headers
        self.content = self

    async def __aenter__(self) -> Response:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def text(self) -> str:
        return self._script.text

    async def iter_any(self) -> AsyncIterator[bytes]:
        for after_s, data in self._script.parts:
            await asyncio.sleep(after_s)
            yield data
        if self._script.fault is not None:
            raise self._script.fault


class ScriptedServer:
    """A session and the server behind it."""

    def __init__(self, script: Callable[[Any], Script], models: Sequence[str] = ("tiny",)) -> None:
        self._script = script
        self._models = models
        self.asked: list[Asked] = []

    def get(self, url: str) -> Response:
        assert url.endswith("/v1/models")
        return Response(Script(text=json.dumps({"data": [{"id": name} for name in self._models]})))

    def post(self, url: str, data: bytes, headers: Mapping[str, str] | None = None) -> Response:
        body = json.loads(data)
        self.asked.append(Asked(asyncio.get_running_loop().time(), body, headers or {}))
        return Response(self._script(body))


def event(**members: Any) -> bytes:
    return b"data: " + json.dumps(members).encode() + b"\n\n"


def token(text: str = "x", reason: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "text": text, "finish_reason": reason}])


DONE = b"data: [DONE]\n\n"


def paced(first_s: float, every_s: float) -> Callable[[Any], Script]:
    """Answers as long as they are asked to be, at one pace."""

    def script(body: Any) -> Script:
        count = body["max_tokens"]
        parts = [(every_s if index else first_s, token()) for index in range(count)]
        usage = event(choices=[], usage={"prompt_tokens": len(body["prompt"]), "completion_tokens": count})
        return Script([*parts, (0.0, token("", "length") + usage + DONE)])

    return script
