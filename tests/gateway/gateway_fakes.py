"""A scripted backend, a tokenizer trained on the spot, and a served gateway, for tests of the gateway alone."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import uvloop
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from hyperflexis.core.slo import ServiceClass, Slo, Timeline, Verdict
from hyperflexis.gateway import Gateway, TextCodec
from hyperflexis.gateway.backend import End, EndReason, ServedModel, TokenSink
from hyperflexis.gateway.chat_template import ChatTemplate
from hyperflexis.wire.messages import GenerateRequest, TokenLogprobs

MODEL = "org/tiny-model"
CONTEXT_TOKENS = 2048

ANSWER = "Grüße! 日本語 and 👩‍🚀 are text too. The stop word is END, and then more follows."

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Hello world, hello text, this is a test of tokens.",
    "Grüße aus Köln! 日本語のテキスト。 שלום 👩‍🚀 🎉 The stop word is END, and then more follows.",
    "def main():\n    return [1, 2, 3]\n\n# user assistant system hello how are you",
]

TEMPLATE = """{%- for message in messages -%}
{%- if message.role == 'tool' -%}{{ raise_exception('no tools here') }}{%- endif -%}
{{ bos_token if loop.first }}<|start|>{{ message.role }}
{{ message.content }}<|end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant
{% endif -%}"""


def byte_level_tokenizer() -> Tokenizer:
    """A small byte-level BPE like those of GPT-2 or Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|bos|>", "<|start|>", "<|end|>"])
    tokenizer.add_tokens([AddedToken("<語>", normalized=False)])
    return tokenizer


@functools.cache
def codec() -> TextCodec:
    tokenizer = byte_level_tokenizer()
    template = ChatTemplate(TEMPLATE, {"bos_token": "<|bos|>", "eos_token": "<|end|>"})
    return TextCodec(tokenizer, eos_ids=[tokenizer.token_to_id("<|end|>")], chat_template=template)


def eos() -> int:
    return codec().eos_ids[0]


CLASSES = {
    "default": ServiceClass("default"),
    "interactive": ServiceClass("interactive", Slo(ttft_s=0.2, tpot_s=0.03), priority=5),
    "batch": ServiceClass("batch", Slo(e2e_s=60.0), priority=-5),
}


@dataclass
class Script:
    """What the fake does with one request."""

    tokens: Sequence[int] = ()
    per_call: int = 1
    step_s: float = 0.0
    turns: asyncio.Semaphore | None = None
    """A call is made for each; None: without being asked."""
    end: End | None = None
    """None: what follows from the tokens, with a verdict."""
    forever: bool = False
    """Repeat the tokens until cancelled."""


def answer_script(text: str = ANSWER, **changes: Any) -> Script:
    return Script(tokens=[*codec().encode(text, add_special_tokens=False), eos()], **changes)


@dataclass
class Running:
    ticket: int
    request: GenerateRequest
    sink: TokenSink
    task: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """A plain one, as the gateway reads it."""

    name: str
    state: str
    role: str
    waiting_seqs: int
    running_seqs: int
    blocks: int
    blocks_free: int


@dataclass
class FakeBackend:
    """Does what its script says, on the running loop."""

    script: Script | Callable[[GenerateRequest], Script] = field(default_factory=answer_script)
    models: Sequence[ServedModel] = (ServedModel(MODEL, 1_700_000_000, CONTEXT_TOKENS),)
    service_classes: dict[str, ServiceClass] = field(default_factory=lambda: dict(CLASSES))
    ready: bool = True
    requests: list[GenerateRequest] = field(default_factory=list)
    running: dict[int, Running] = field(default_factory=dict)
    cancelled: list[int] = field(default_factory=list)
    ticket_next: int = 1

    def submit(self, request: GenerateRequest, sink: TokenSink) -> int:
        ticket, self.ticket_next = self.ticket_next, self.ticket_next + 1
        self.requests.append(request)
        running = self.running[ticket] = Running(ticket, request, sink)
        running.task = asyncio.get_running_loop().create_task(self._run(running))
        return ticket

    def cancel(self, ticket: int) -> None:
        running = self.running.pop(ticket, None)
        if running is None:
            return
        self.cancelled.append(ticket)
        assert running.task is not None
        running.task.cancel()
        end = End(EndReason.CANCELLED, verdict=verdict(running.request, 3))
        asyncio.get_running_loop().call_soon(running.sink.on_end, end)

    def instances(self) -> Sequence[InstanceStatus]:
        return [InstanceStatus("tiny-0", "ready", "mixed", 1, 2, 100, 40)]

    def is_ready(self) -> bool:
        return self.ready

    async def _run(self, running: Running) -> None:
        script = self.script if isinstance(self.script, Script) else self.script(running.request)
        await asyncio.sleep(0)
        sent = await self._send(running, script)
        if self.running.pop(running.ticket, None) is not None:
            running.sink.on_end(script.end or _natural_end(running.request, script, sent))

    async def _send(self, running: Running, script: Script) -> int:
        request, sink = running.request, running.sink
        tokens = list(script.tokens)[: request.max_tokens]
        if request.sampling.prompt_logprobs and tokens:
            sink.on_prompt_logprobs([logprobs_of(token, request) for token in request.prompt[1:]])
        sent = 0
        while True:
            for i in range(0, len(tokens), script.per_call):
                if script.turns is not None:
                    await script.turns.acquire()
                if script.step_s:
                    await asyncio.sleep(script.step_s)
                batch = tokens[i : i + script.per_call]
                wants = request.sampling.logprobs is not None
                sink.on_tokens(batch, [logprobs_of(token, request) for token in batch] if wants else None)
                sent += len(batch)
                if not script.step_s:
                    await asyncio.sleep(0)
            if not script.forever:
                return sent


def _natural_end(request: GenerateRequest, script: Script, sent: int) -> End:
    stopped = bool(sent) and script.tokens[sent - 1] in request.sampling.stop_ids
    reason = EndReason.STOP if stopped else EndReason.LENGTH
    return End(reason, verdict=verdict(request, sent), cached_tokens=2)


def logprobs_of(token: int, request: GenerateRequest) -> TokenLogprobs:
    top = [(token + i) % codec().vocab_tokens for i in range(request.sampling.logprobs or 0)]
    return TokenLogprobs(token, -0.5, top, [-0.5 - i for i in range(len(top))])


def verdict(request: GenerateRequest, tokens: int) -> Verdict:
    """10 ms queued, 30 ms prefill, 20 ms per token after the first."""
    times = Timeline(
        arrived_s=100.0,
        dispatched_s=100.005,
        prefill_started_s=100.010,
        first_token_s=100.040,
        last_token_s=100.040 + 0.020 * max(0, tokens - 1),
        tokens=tokens,
        predicted_ttft_s=0.035,
        predicted_tpot_s=0.018,
    )
    slo = Slo(request.ttft_s, request.tpot_s, request.e2e_s)
    return Verdict(request.service_class, request.priority, slo, times, "tiny-0")


@dataclass
class Served:
    """A running gateway and a client for it."""

    gateway: Gateway
    backend: FakeBackend
    port: int
    http: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def post(self, path: str, body: Any, **more: Any) -> tuple[int, Any, Any]:
        async with self.http.post(self.url + path, json=body, **more) as response:
            return response.status, await response.json(), response.headers

    async def events(self, path: str, body: dict[str, Any], **more: Any) -> list[str]:
        """The data of every event of a streamed answer."""
        async with self.http.post(self.url + path, json={**body, "stream": True}, **more) as response:
            assert response.status == 200, await response.text()
            return parse_events(await response.read())


def parse_events(raw: bytes) -> list[str]:
    events = raw.decode().split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") for event in events)
    return [event.removeprefix("data: ") for event in events]


@contextlib.asynccontextmanager
async def served(backend: FakeBackend | None = None, **options: Any) -> AsyncIterator[Served]:
    backend = backend or FakeBackend()
    gateway = Gateway(backend, options.pop("tokenizer", None) or codec(), port=0, **options)
    port = await gateway.start()
    try:
        async with aiohttp.ClientSession() as http:
            yield Served(gateway, backend, port, http)
    finally:
        await gateway.stop()
        for running in list(backend.running.values()):
            backend.cancel(running.ticket)
        await asyncio.sleep(0)


def on_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on uvloop, as the gateway is run in earnest."""

    @functools.wraps(test)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        uvloop.run(test(*args, **kwargs))

    return wrapper


CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
COMPLETION = {"model": MODEL, "prompt": "Hello", "max_tokens": 200}


def text_of(events: Sequence[str], index: int = 0) -> str:
    """The text that a stream's events add up to, for one choice."""
    import json

    text = ""
    for event in events:
        if event == "[DONE]":
            break
        for choice in json.loads(event)["choices"]:
            if choice["index"] == index:
                text += choice["text"] if "text" in choice else choice["delta"].get("content", "")
    return text
