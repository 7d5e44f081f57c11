"""What is asked: an address, a model, and the spelling of requests that it takes.

vLLM, servers of ours and what stands in front of them take token ids and `ignore_eos`, by which every request is
exactly as long as the trace's. Others take text, and may end answers early. Which of these it is, and what words come
to, is found out by asking, before anything is timed. Knows no trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import msgspec

from hyperflexis.bench.answer import shortened
from hyperflexis.bench.prompts import CHAT, IDS, TEXT, Form

KEY_ENV = "OPENAI_API_KEY"
"""As OpenAI's own clients have it."""
WORDS_TRIED = (1, 101)
"""Lengths of two prompts, from which what one word comes to is told."""

Members = Mapping[str, Any]


class EndpointError(Exception):
    """Nothing can be asked there, and why."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is left open of an endpoint before it is met."""

    url: str
    """Without /v1."""
    model: str | None = None
    """None: the one that it serves."""
    is_chat: bool = False
    is_text: bool = False
    """Whether ids are not even tried."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One that answers."""

    url: str
    path: str
    model: str
    form: Form
    members: Members = field(default_factory=dict)
    """What every body has besides model, prompt and length."""

    @property
    def address(self) -> str:
        return self.url + self.path

    @property
    def has_exact_prompts(self) -> bool:
        return self.form.units is IDS.units

    def tail(self, more: Members) -> bytes:
        """What follows the prompt in a body, but for its length and its last brace."""
        return msgspec.json.encode({**self.members, **more}).removeprefix(b"{").removesuffix(b"}")

    def body(self, prompt: bytes, output_tokens: int, tail: bytes) -> bytes:
        head = b'{"model":' + msgspec.json.encode(self.model) + b","
        return b"".join((head, prompt, b',"max_tokens":%d,' % output_tokens, tail, b"}"))


async def meet(session: aiohttp.ClientSession, wanted: Wanted) -> Endpoint:
    """Find out how it wants to be asked.

    Raises:
        EndpointError: it does not answer, or refuses whatever it is asked.
    """
    model = wanted.model or await _model(session, wanted.url)
    refusals = []
    for endpoint in _spellings(wanted, model):
        status, text = await _ask(session, endpoint, 1)
        if status == 200:
            counted = endpoint if endpoint.has_exact_prompts else await _measured(session, endpoint)
            return replace(counted, members={"stream": True, "stream_options": _USAGE, **counted.members})
        refusals.append(f"{endpoint.address} answers {status}: {shortened(text) or 'nothing'}")
    raise EndpointError(refusals[0], f"the model is chosen with --model, a key with {KEY_ENV} or --header")


_USAGE = {"include_usage": True}
_GREEDY = {"temperature": 0}
_WHOLE = {"temperature": 0, "ignore_eos": True}


def _spellings(wanted: Wanted, model: str) -> Iterator[Endpoint]:
    path = "/v1/chat/completions" if wanted.is_chat else "/v1/completions"
    forms = [CHAT] if wanted.is_chat else [TEXT] if wanted.is_text else [IDS, TEXT]
    for form in forms:
        for members in (_WHOLE, _GREEDY):
            yield Endpoint(wanted.url, path, model, form, members)


async def _measured(session: aiohttp.ClientSession, endpoint: Endpoint) -> Endpoint:
    """The same, with what its words come to; a word is taken for a token where the server does not count."""
    counts = []
    for words in WORDS_TRIED:
        _, text = await _ask(session, endpoint, words)
        counts.append(_prompt_tokens(text))
    few, many = counts
    if few is None or many is None or many <= few:
        return endpoint
    per_word = (many - few) / (WORDS_TRIED[1] - WORDS_TRIED[0])
    form = replace(endpoint.form, tokens_per_unit=per_word, tokens_besides=max(0.0, few - WORDS_TRIED[0] * per_word))
    return replace(endpoint, form=form)


async def _ask(session: aiohttp.ClientSession, endpoint: Endpoint, units: int) -> tuple[int, str]:
    """One token after so many units."""
    form = endpoint.form
    prompt = form.spelled([form.units[index % len(form.units)] for index in range(units)])
    body = endpoint.body(prompt, 1, endpoint.tail({}))
    try:
        async with session.post(endpoint.address, data=body) as response:
            return response.status, await response.text()
    except (aiohttp.ClientError, OSError, TimeoutError, UnicodeDecodeError) as error:
        raise EndpointError(f"{endpoint.address} does not answer: {str(error) or 'it is silent'}") from error


class _Usage(msgspec.Struct):
    prompt_tokens: int


class _Completion(msgspec.Struct):
    usage: _Usage


def _prompt_tokens(text: str) -> int | None:
    try:
        return msgspec.json.decode(text, type=_Completion).usage.prompt_tokens
    except msgspec.DecodeError:
        return None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


async def _model(session: aiohttp.ClientSession, url: str) -> str:
    """The first that it lists."""
    try:
        async with session.get(f"{url}/v1/models") as response:
            status, text = response.status, await response.text()
    except (aiohttp.ClientError, OSError, TimeoutError, UnicodeDecodeError) as error:
        raise EndpointError(f"no server answers at {url}: {str(error) or 'it is silent'}") from error
    try:
        models = msgspec.json.decode(text, type=_Models).data if status == 200 else []
    except msgspec.DecodeError:
        models = []
    if not models:
        said = f"{url} lists no models at /v1/models ({status}: {shortened(text) or 'nothing'})"
        raise EndpointError(said, f"name one with --model, or a key with {KEY_ENV} or --header")
    return models[0].id
