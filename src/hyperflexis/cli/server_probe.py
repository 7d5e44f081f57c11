"""Times the steps of a server that can only be asked over HTTP, from when its answers come.

    prefill   one prompt that nothing else runs beside: its first token, and with it what every request takes besides
    decode    time per token while a known number of answers is being written
    mixed     what answers fall behind that pace by while a prompt of known length comes in between, and one step

Prompts are token ids drawn at random, so that no prefix cache has them. A prompt alone is tried a few times, and the
shortest time taken: others can only delay it. Answers whose tokens come in heaps tell no pace. Knows the OpenAI
interface and the few fields that vLLM adds to it, no grid and no model.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import pairwise
from typing import Any, NamedTuple

import aiohttp
import msgspec

from hyperflexis.adapters.native.calibration import Trial
from hyperflexis.bench.endpoint import KEY_ENV
from hyperflexis.bench.prompts import TOKEN_IDS
from hyperflexis.cli.errors import StartError

TOKENS_MIN = 8
"""Of each answer, for a pace."""
WARM_TOKENS = 3
"""Of each answer, before gaps count."""
INSTANT_S = 1e-4
"""Tokens that come one after the other no later than this have come together."""
SPLIT = 1.5
"""A gap so many times as long as usual is one in which a prompt was computed; two of them, and it was split."""
SETTLE_S = 0.1
"""What a server has to notice that nobody reads its answers any more, before something else is timed."""
REPEATS = 3
"""Times that a prompt is tried."""
ANSWER_S = 120.0
"""How long a server may be silent."""


class About(NamedTuple):
    """What the server says of itself."""

    model: str
    version: str
    """Of vLLM; empty: it is something else."""
    context_tokens_max: int
    kv_tokens: int | None
    """What its KV cache holds."""
    kv_token_bytes: int | None


@dataclass
class Stream:
    """One answer."""

    prompt_tokens: int
    sent_s: float
    at_s: list[float] = field(default_factory=list)
    """When each token came."""

    def emitted_by(self, instant_s: float) -> int:
        return sum(at_s <= instant_s for at_s in self.at_s)


class Timed(NamedTuple):
    """A step as it really was, and how long it took."""

    trial: Trial
    actual_s: float


class Probe:
    """One server, asked by one caller at a time."""

    def __init__(self, session: aiohttp.ClientSession, url: str, about: About, seed: int = 0) -> None:
        self._session = session
        self._url = url
        self.about = about
        self._draw = random.Random(seed)

    async def time(self, trial: Trial) -> Timed | None:
        """Make the server take such a step; None where it takes another one: too few at a time, or the prompt split.

        Raises:
            StartError: it refuses, or falls silent.
        """
        if not trial.decode_seqs:
            return Timed(trial, min([await self._first_token_s(trial.chunk_tokens) for _ in range(REPEATS)]))
        return await self._time_beside(trial) if trial.chunk_tokens else await self._time_decodes(trial)

    async def warm_up(self) -> None:
        """What a server does for the first time takes longer."""
        for prompt_tokens in (1, self.about.context_tokens_max // 2):
            await self._ask(prompt_tokens, TOKENS_MIN)

    async def _first_token_s(self, prompt_tokens: int) -> float:
        answer = await self._ask(prompt_tokens, 1)
        return answer.at_s[0] - answer.sent_s

    async def _time_decodes(self, trial: Trial) -> Timed | None:
        async with self._streams(trial, 6 * TOKENS_MIN) as (streams, tasks):
            await asyncio.gather(*tasks)
        begin_s = max(stream.at_s[min(WARM_TOKENS, len(stream.at_s) - 1)] for stream in streams)
        return _steady(streams, begin_s, min(stream.at_s[-1] for stream in streams))

    async def _time_beside(self, trial: Trial) -> Timed | None:
        beside: list[Timed] = []
        async with self._streams(trial, (1 + 2 * REPEATS) * TOKENS_MIN) as (streams, tasks):
            begin_s = 0.0
            for _ in range(REPEATS):
                if not await _written(streams, tasks, begin_s, WARM_TOKENS + TOKENS_MIN):
                    break
                prompt = await self._ask(trial.chunk_tokens, 1)
                if not await _written(streams, tasks, prompt.at_s[0], 1):
                    break
                if (timed := _gap(streams, prompt, begin_s)) is not None:
                    beside.append(timed)
                begin_s = prompt.at_s[0]
        if not beside:
            return None
        return beside[0]._replace(actual_s=statistics.median(timed.actual_s for timed in beside))

    @asynccontextmanager
    async def _streams(self, trial: Trial, tokens: int) -> AsyncIterator[tuple[list[Stream], list[asyncio.Task[None]]]]:
        """So many answers at once, long enough for all of them to be written side by side for so many tokens."""
        seqs, context = trial.decode_seqs, trial.context_tokens
        length = tokens + 4 * WARM_TOKENS + seqs + seqs * context // 256
        prompt = max(1, min(context - tokens // 2, self.about.context_tokens_max - length - 1))
        streams = [Stream(prompt, _now()) for _ in range(seqs)]
        tasks = [asyncio.create_task(self._read(stream, length)) for stream in streams]
        try:
            yield streams, tasks
        finally:
            is_over = all(task.done() for task in tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if not is_over:
                await asyncio.sleep(SETTLE_S)

    async def _ask(self, prompt_tokens: int, tokens: int) -> Stream:
        stream = Stream(prompt_tokens, _now())
        await self._read(stream, tokens)
        return stream

    async def _read(self, stream: Stream, tokens: int) -> None:
        body = {
            "model": self.about.model,
            "prompt": self._draw.choices(TOKEN_IDS, k=stream.prompt_tokens),
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        try:
            async with self._session.post(f"{self._url}/v1/completions", json=body) as response:
                if response.status != 200:
                    raise StartError(f"{self._url} refuses a completion: {_said(await response.text())}")
                async for line in response.content:
                    now = _now()
                    if line.startswith(b"data: {"):
                        stream.at_s += [now] * _tokens_in(line, self._url)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise StartError(f"{self._url} does not answer a completion: {error or 'it is silent'}") from error
        if not stream.at_s:
            raise StartError(f"{self._url} answers a completion without a token")


def _gap(streams: Sequence[Stream], prompt: Stream, begin_s: float) -> Timed | None:
    """The step in which the prompt was computed, beside answers that were alone since then; None if it was split."""
    alone_s = max(begin_s, *(stream.at_s[WARM_TOKENS] for stream in streams))
    usual = _steady(streams, alone_s, prompt.sent_s)
    if usual is None:
        return None
    gaps_s = [_gaps_s(stream, prompt.sent_s, prompt.at_s[0]) for stream in streams]
    if any(sum(gap_s > SPLIT * usual.actual_s for gap_s in of_one) > 1 for of_one in gaps_s):
        return None
    behind_s = [sum(of_one) - len(of_one) * usual.actual_s for of_one in gaps_s]
    at = usual.trial._replace(chunk_seqs=1, chunk_tokens=prompt.prompt_tokens)
    return Timed(at, usual.actual_s + max(0.0, statistics.median(behind_s)))


async def _written(streams: Sequence[Stream], tasks: Sequence[asyncio.Task[None]], since_s: float, tokens: int) -> bool:
    """Wait until every answer has got so many tokens since then; False if one ends before."""
    while any(len(stream.at_s) - stream.emitted_by(since_s) < tokens for stream in streams):
        if any(task.done() for task in tasks):
            return False
        await asyncio.sleep(0.001)
    return True


def _now() -> float:
    return asyncio.get_running_loop().time()


def _steady(streams: Sequence[Stream], begin_s: float, end_s: float) -> Timed | None:
    """The step that is taken while all answers are being written; None if that is too short a time."""
    gaps_s = [_gaps_s(stream, begin_s, end_s) for stream in streams]
    if any(sum(gap_s > INSTANT_S for gap_s in of_one) < max(TOKENS_MIN, len(of_one)) // 2 for of_one in gaps_s):
        return None
    middle_s = (begin_s + end_s) / 2
    contexts = [stream.prompt_tokens + stream.emitted_by(middle_s) for stream in streams]
    trial = Trial(decode_seqs=len(streams), context_tokens=max(2, round(statistics.mean(contexts))))
    return Timed(trial, statistics.median(statistics.mean(of_one) for of_one in gaps_s))


def _gaps_s(stream: Stream, begin_s: float, end_s: float) -> list[float]:
    """Between its tokens, where that was within this time at least in part."""
    return [late - early for early, late in pairwise(stream.at_s) if late > begin_s and early < end_s]


class _Choice(msgspec.Struct):
    text: str = ""
    token_ids: list[int] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    error: Any = None


_chunks = msgspec.json.Decoder(_Chunk)


def _tokens_in(line: bytes, url: str) -> int:
    """How many tokens a line of the stream brings. A server that does not tell brings one, unless there is no text."""
    try:
        chunk = _chunks.decode(line.removeprefix(b"data: "))
    except (ValueError, RecursionError) as error:
        raise StartError(f"{url} streams something else than completions: {error}") from error
    if chunk.error is not None:
        raise StartError(f"{url} breaks off a completion: {chunk.error}")
    if not chunk.choices:
        return 0
    (choice,) = chunk.choices
    return int(bool(choice.text)) if choice.token_ids is None else len(choice.token_ids)


# What it says of itself.


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


CONTEXT_TOKENS_MAX = 2048
"""Of a server that does not say how long its contexts may be."""


@asynccontextmanager
async def probing(url: str) -> AsyncIterator[Probe]:
    """Get to know a server; the key that it may ask for is in OPENAI_API_KEY.

    Raises:
        StartError: there is none, or it is something else.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=ANSWER_S)
    key = os.environ.get(KEY_ENV)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, headers=headers) as session:
        yield Probe(session, url, await _about(session, url))


async def _about(session: aiohttp.ClientSession, url: str) -> About:
    status, text = await _get(session, f"{url}/v1/models")
    if status == HTTPStatus.UNAUTHORIZED:
        raise StartError(f"{url} asks for an API key, or for another one", f"set {KEY_ENV}")
    try:
        models = msgspec.json.decode(text, type=_Models).data if status == 200 else []
    except (ValueError, RecursionError):
        models = []
    if not models:
        hint = "give the address of a server with an OpenAI interface, without /v1"
        raise StartError(f"{url} lists no models at /v1/models ({status}: {_said(text)})", hint)
    _, metrics = await _get(session, f"{url}/metrics")
    kv_tokens, kv_bytes = _kv_cache(metrics)
    model = models[0]
    return About(
        model=model.id,
        version=await _version(session, url),
        context_tokens_max=model.max_model_len or CONTEXT_TOKENS_MAX,
        kv_tokens=kv_tokens,
        kv_token_bytes=kv_bytes // kv_tokens if kv_tokens and kv_bytes else None,
    )


async def _version(session: aiohttp.ClientSession, url: str) -> str:
    status, text = await _get(session, f"{url}/version")
    found = re.search(r'"version"\s*:\s*"([^"]{1,40})"', text) if status == 200 else None
    return found[1] if found else ""


async def _get(session: aiohttp.ClientSession, url: str) -> tuple[int, str]:
    try:
        async with session.get(url) as response:
            return response.status, await response.text()
    except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError) as error:
        raise StartError(f"no server answers at {url}: {error or 'it is silent'}") from error


def _kv_cache(metrics: str) -> tuple[int | None, int | None]:
    """Tokens and bytes of the KV cache, as vLLM's metrics say it; None: they do not."""
    line = next((line for line in metrics.splitlines() if line.startswith("vllm:cache_config_info{")), "")
    labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
    numbers = {name: int(float(text)) for name, text in labels.items() if re.fullmatch(r"\d+(\.\d+)?", text)}
    tokens = numbers.get("kv_cache_size_tokens") or numbers.get("num_gpu_blocks", 0) * numbers.get("block_size", 0)
    return tokens or None, numbers.get("kv_cache_memory_bytes") or None


def _said(text: str) -> str:
    return " ".join(text.split())[:200] or "nothing"
