"""Clients of a server that things happen to: what each heard, token by token, and when."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

VOCABULARY = range(10, 3000)
TIMEOUT_S = 300.0


@dataclass(slots=True)
class Heard:
    """One answer, as far as it came."""

    sent_s: float
    status: int = 0
    """0: the connection broke before there was one."""
    tokens: list[str] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    """Of each event with tokens."""
    is_whole: bool = False
    error: str = ""
    retry_after_s: int | None = None
    verdict: dict[str, Any] = field(default_factory=dict)
    ended_s: float = 0.0

    @property
    def gap_s(self) -> float:
        """The longest time between two events."""
        return max((later - earlier for earlier, later in itertools.pairwise(self.at_s)), default=0.0)

    @property
    def moves(self) -> int:
        """From one instance to another, whatever for."""
        return int(self.verdict.get("migrations", 0))

    @property
    def attained(self) -> bool:
        return bool(self.verdict.get("attained"))


def prompt(seed: int, tokens: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.choice(VOCABULARY) for _ in range(tokens)]


def session() -> aiohttp.ClientSession:
    """With as many connections as there are requests."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


def body(prompt: Sequence[int], max_tokens: int, **more: Any) -> dict[str, Any]:
    return {"prompt": list(prompt), "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, **more}


async def stream(client: aiohttp.ClientSession, url: str, asked: dict[str, Any], heard: Heard | None = None) -> Heard:
    """Ask for a stream and read it to its end, token by token. `heard` is what grows meanwhile."""
    heard = heard or Heard(time.monotonic())
    try:
        async with client.post(f"{url}/v1/completions", json={**asked, "stream": True, "logprobs": 0}) as answer:
            _head(heard, answer)
            if answer.status != 200:
                heard.error = await answer.text()
                return heard
            async for line in answer.content:
                _line(heard, line)
    except (aiohttp.ClientError, TimeoutError) as error:
        heard.error = repr(error)
    heard.ended_s = time.monotonic()
    return heard


def _head(heard: Heard, answer: aiohttp.ClientResponse) -> None:
    heard.status = answer.status
    told = answer.headers.get("Retry-After")
    heard.retry_after_s = None if told is None else int(told)


def _line(heard: Heard, line: bytes) -> None:
    if line == b"data: [DONE]\n":
        heard.is_whole = not heard.error
    elif line.startswith(b"data: "):
        event = msgspec.json.decode(line[6:])
        if "error" in event:
            heard.error = str(event["error"])
            return
        for choice in event["choices"]:
            if choice.get("logprobs"):
                heard.tokens += choice["logprobs"]["tokens"]
                heard.at_s.append(time.monotonic())
        heard.verdict = event.get("hyperflexis", heard.verdict)


async def ask(client: aiohttp.ClientSession, url: str, asked: dict[str, Any]) -> Heard:
    """Ask for an answer in one piece, which costs this process less."""
    heard = Heard(time.monotonic())
    try:
        async with client.post(f"{url}/v1/completions", json=asked) as answer:
            _head(heard, answer)
            said = await answer.read()
            if answer.status == 200:
                heard.verdict = msgspec.json.decode(said)["hyperflexis"]
                heard.is_whole = True
            else:
                heard.error = said.decode()
    except (aiohttp.ClientError, TimeoutError) as error:
        heard.error = repr(error)
    heard.ended_s = time.monotonic()
    return heard


async def instances(client: aiohttp.ClientSession, url: str) -> list[dict[str, Any]]:
    """What /ready says of them."""
    async with client.get(f"{url}/ready") as answer:
        listed: list[dict[str, Any]] = (await answer.json())["instances"]
        return listed


class Readers:
    """So many clients at a time that stream answers, one after the other, and compare them with undisturbed ones."""

    def __init__(self, client: aiohttp.ClientSession, url: str, asked: Sequence[dict[str, Any]]) -> None:
        self._client = client
        self._url = url
        self._asked = asked
        self._expected: list[list[str]] = []
        self._numbers = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._until = asyncio.Event()
        self.live: dict[int, Heard] = {}
        self.heard: list[Heard] = []
        self.wrong: list[str] = []
        """What is not as it would be without faults."""

    async def learn(self) -> None:
        """Ask for each answer while nothing is wrong."""
        for asked in self._asked:
            heard = await stream(self._client, self._url, asked)
            assert heard.is_whole, heard.error
            assert len(heard.tokens) == asked["max_tokens"]
            self._expected.append(heard.tokens)

    def start(self, count: int) -> None:
        self._tasks += [asyncio.create_task(self._read()) for _ in range(count)]

    async def finish(self) -> None:
        """Begin no more, and wait for those that have begun."""
        self._until.set()
        await asyncio.gather(*self._tasks)

    async def _read(self) -> None:
        while not self._until.is_set():
            number = next(self._numbers)
            which = number % len(self._asked)
            heard = self.live[number] = Heard(time.monotonic())
            await stream(self._client, self._url, self._asked[which], heard)
            del self.live[number]
            self.heard.append(heard)
            if not heard.is_whole:
                self.wrong.append(f"{heard.status}: {heard.error[:300]}")
            elif heard.tokens != self._expected[which]:
                pairs = enumerate(zip(heard.tokens, self._expected[which], strict=False))
                at = next((i for i, (one, other) in pairs if one != other), len(heard.tokens))
                self.wrong.append(f"another token at {at} after {heard.moves} moves")
