"""What chat and completions share: from a checked request to an answer sent, and its account at the end."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import web
from prometheus_client.registry import Collector

from hyperflexis.gateway.answer import Answer, Format, Prompt, StreamedAnswer, WholeAnswer
from hyperflexis.gateway.backend import Fleet, Offer, ServedModel
from hyperflexis.gateway.body import read_body
from hyperflexis.gateway.chat import ChatFormat, chat_prompt
from hyperflexis.gateway.choice import Choice
from hyperflexis.gateway.completions import CompletionFormat, completion_prompts
from hyperflexis.gateway.errors import ApiError, invalid, shutting_down
from hyperflexis.gateway.events import Heading
from hyperflexis.gateway.limits import Limits
from hyperflexis.gateway.metrics import NO_CLASS, Metrics
from hyperflexis.gateway.openai_types import ChatBody, CompletionBody, GenerationBody
from hyperflexis.gateway.promises import Granted, grant
from hyperflexis.gateway.quota import Passage
from hyperflexis.gateway.stream import EventStream
from hyperflexis.gateway.tokenizer import Encoders, TextCodec
from hyperflexis.gateway.tracing import Trace, Tracer, passed_on
from hyperflexis.gateway.validation import (
    Settings,
    chat_settings,
    completion_settings,
    pick_model,
    room,
    with_seed,
)
from hyperflexis.wire.messages import GenerateRequest, Sampling

B = TypeVar("B", bound=GenerationBody)

COMPLETION_TOKENS_DEFAULT = 16
"""OpenAI's, for completions; a chat may fill the context."""


@dataclass(slots=True)
class Ask:
    """One request, checked and tokenised."""

    model: ServedModel
    granted: Granted
    settings: Settings
    prompts: list[Prompt]
    max_tokens: list[int]
    """For each prompt."""
    heading: Heading
    form: Format


@dataclass(slots=True)
class Account:
    """What is known of a request when it ends, however it ends."""

    passage: Passage
    service_class: str = NO_CLASS
    code: int = 500
    answer: Answer | None = None
    model: str = ""
    trace: Trace | None = None
    traceparent: str = ""
    """For whoever traces behind us."""


class Generation:
    """Answers generation requests, one call each, and knows those that are being answered."""

    def __init__(
        self,
        backend: Fleet,
        offer: Offer,
        codec: TextCodec,
        *,
        limits: Limits,
        priority_max: int | None,
        allow_push: bool,
        collectors: Sequence[Collector] = (),
        tracer: Tracer | None = None,
    ) -> None:
        self._backend = backend
        self._offer = offer
        self._codec = codec
        self._limits = limits
        self._priority_max = priority_max
        self._allow_push = allow_push
        self._loop = asyncio.get_running_loop()
        self._tracer = tracer
        self._live: set[Answer] = set()
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.encoders = Encoders(limits.tokenizer_threads, limits.inline_chars_max)
        self.metrics = Metrics(backend, lambda: self._requests, collectors)
        self.draining = False

    async def chat(self, request: web.Request, passage: Passage) -> web.StreamResponse:
        """Serve `/v1/chat/completions`."""
        return await self._serve(request, passage, ChatBody, self._ask_chat)

    async def complete(self, request: web.Request, passage: Passage) -> web.StreamResponse:
        """Serve `/v1/completions`."""
        return await self._serve(request, passage, CompletionBody, self._ask_completion)

    async def _serve(
        self, request: web.Request, passage: Passage, kind: type[B], ask: Callable[[B, Granted], Awaitable[Ask]]
    ) -> web.StreamResponse:
        account = self._enter(request, passage)
        try:
            body = await read_body(request, kind, self._limits)
            granted = self._grant(request, body, account)
            return await self._send(request, await ask(body, granted), account)
        except BaseException as error:
            account.code = _code_of(error)
            raise
        finally:
            self._leave(account)

    def _enter(self, request: web.Request, passage: Passage) -> Account:
        if self._tracer is None:
            account = Account(passage, traceparent=passed_on(request.headers))
        else:
            trace = self._tracer.begin(request.method, request.path, request.headers)
            account = Account(passage, trace=trace, traceparent=trace.traceparent)
        self._requests += 1
        self._idle.clear()
        return account

    def _leave(self, account: Account) -> None:
        self._requests -= 1
        if not self._requests:
            self._idle.set()
        answer = account.answer
        if answer is not None:
            self._live.discard(answer)
            # Ended answers ignore this; for a client that left, it is what frees the engine.
            answer.cancel()
            account.passage.spend(answer.completion_tokens(), self._loop.time())
        if account.trace is not None:
            account.trace.end(account.code, _traced(account))
        if answer is None or not answer.finished or account.code != 200:
            self.metrics.account_refused(account.service_class, account.code)
            return
        usage = answer.usage()
        verdicts = [choice.end.verdict for choice in answer.choices if choice.end and choice.end.verdict]
        self.metrics.account_served(account.service_class, usage["prompt_tokens"], usage["completion_tokens"], verdicts)

    def _grant(self, request: web.Request, body: GenerationBody, account: Account) -> Granted:
        if self.draining:
            raise shutting_down()
        granted = grant(request.headers, body, self._offer, self._priority_max, account.passage.key)
        account.service_class = granted.service_class
        return granted

    async def _ask_chat(self, body: ChatBody, granted: Granted) -> Ask:
        model = pick_model(body.model, self._offer.models)
        settings = chat_settings(body, self._codec)
        prompt = await chat_prompt(
            body.messages,
            model=model,
            codec=self._codec,
            encoders=self.encoders,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            add_special_tokens=body.add_special_tokens,
            extra=body.chat_template_kwargs,
        )
        max_tokens = room(model, len(prompt.tokens), settings.max_tokens, None, "messages")
        heading = _heading("chatcmpl", model, granted, settings)
        form = ChatFormat(heading, self._codec, prompt.tokens if settings.returns_ids else None)
        return Ask(model, granted, settings, [prompt], [max_tokens], heading, form)

    async def _ask_completion(self, body: CompletionBody, granted: Granted) -> Ask:
        model = pick_model(body.model, self._offer.models)
        settings = completion_settings(body, self._codec)
        prompts = await completion_prompts(
            body.prompt,
            model=model,
            codec=self._codec,
            encoders=self.encoders,
            prompts_max=self._limits.prompts_max,
            add_special_tokens=body.add_special_tokens is not False,
        )
        if len(prompts) * settings.n > self._limits.choices_max:
            raise invalid("n", f"Prompts times 'n' may make at most {self._limits.choices_max} choices.")
        max_tokens = [
            room(model, len(prompt.tokens), settings.max_tokens, COMPLETION_TOKENS_DEFAULT, "prompt")
            for prompt in prompts
        ]
        heading = _heading("cmpl", model, granted, settings)
        form = CompletionFormat(
            heading,
            self._codec,
            prompts=prompts,
            n=settings.n,
            echo=bool(body.echo),
            returns_ids=settings.returns_ids,
        )
        return Ask(model, granted, settings, prompts, max_tokens, heading, form)

    async def _send(self, request: web.Request, ask: Ask, account: Account) -> web.StreamResponse:
        if self.draining:
            # It may have begun while this request was tokenised.
            raise shutting_down()
        prompt_tokens = sum(len(prompt.tokens) for prompt in ask.prompts)
        account.passage.charge(len(ask.prompts) * ask.settings.n, prompt_tokens, self._loop.time())
        if ask.settings.stream:
            return await self._send_stream(request, ask, account)
        answer = WholeAnswer(self._backend, ask.prompts, ask.settings.n, ask.granted)
        self._begin(answer, ask, account)
        body = await answer.body(ask.form)
        account.code = 200
        return web.Response(body=body, content_type="application/json", headers=_headers(ask))

    async def _send_stream(self, request: web.Request, ask: Ask, account: Account) -> web.StreamResponse:
        settings = ask.settings
        answer = StreamedAnswer(
            self._backend,
            ask.prompts,
            settings.n,
            ask.granted,
            form=ask.form,
            include_usage=settings.include_usage,
        )
        answer.stream = EventStream(
            request,
            backlog_bytes_max=self._limits.stream_backlog_bytes_max,
            stall_s=self._limits.stall_s,
            on_overflow=answer.cancel,
            allow_push=self._allow_push,
        )
        self._begin(answer, ask, account)
        await answer.begun()
        response = await answer.stream.run(_headers(ask) | account.passage.headers(self._loop.time()))
        account.code = answer.failure.status if answer.failure else 200
        return response

    def _begin(self, answer: Answer, ask: Ask, account: Account) -> None:
        account.answer, account.model = answer, ask.model.name
        self._live.add(answer)
        if account.trace is not None:
            account.trace.follow(ask.heading.answer_id)
        answer.submit(*_choices(answer, ask, self._codec, account.traceparent))

    async def drain(self, timeout_s: float) -> bool:
        """Take no new requests; wait for those that run. Returns whether all of them ended in time."""
        self.draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def end_all(self) -> None:
        """End whatever runs, telling its client."""
        self.draining = True
        for answer in list(self._live):
            answer.fail("The server is shutting down.")


def _choices(
    answer: Answer, ask: Ask, codec: TextCodec, traceparent: str
) -> tuple[list[Choice], Sequence[GenerateRequest]]:
    """The choices of an answer and what each of them asks of the backend, in the same order."""
    settings = ask.settings
    choices: list[Choice] = []
    requests: list[GenerateRequest] = []
    samplings = [with_seed(settings.sampling, index) for index in range(settings.n)]
    for prompt, max_tokens in zip(ask.prompts, ask.max_tokens, strict=True):
        # A chat's answer is a text of its own; a completion goes on where its prompt ends.
        before = () if isinstance(ask.form, ChatFormat) else prompt.tokens
        for sampling in samplings:
            text = codec.detokenizer(settings.skip_special_tokens, before)
            told = {"with_logprobs": settings.logprobs is not None, "with_ids": settings.returns_ids}
            choices.append(Choice(len(choices), text, settings.stopping, answer, **told))
            requests.append(_request(ask, prompt, max_tokens, sampling, traceparent))
    return choices, requests


def _request(ask: Ask, prompt: Prompt, max_tokens: int, sampling: Sampling, traceparent: str) -> GenerateRequest:
    granted = ask.granted
    is_part = ask.settings.n > 1 or len(ask.prompts) > 1
    return GenerateRequest(
        prompt=prompt.tokens,
        max_tokens=max_tokens,
        sampling=sampling,
        model=ask.model.name,
        service_class=granted.service_class,
        priority=granted.priority,
        ttft_s=granted.ttft_s,
        tpot_s=granted.tpot_s,
        e2e_s=granted.e2e_s,
        refuses_late=granted.refuses_late,
        is_part=is_part,
        name=ask.heading.answer_id,
        traceparent=traceparent,
    )


def _traced(account: Account) -> dict[str, str]:
    """What a trace is told of a request beside its status."""
    told = {"hyperflexis.class": account.service_class}
    return {**told, "gen_ai.request.model": account.model} if account.model else told


def _heading(prefix: str, model: ServedModel, granted: Granted, settings: Settings) -> Heading:
    return Heading(
        answer_id=f"{prefix}-{secrets.token_hex(12)}",
        created=int(time.time()),
        model=model.name,
        service_class=granted.service_class,
        include_usage=settings.include_usage,
    )


def _headers(ask: Ask) -> dict[str, str]:
    return {"x-request-id": ask.heading.answer_id, "x-hyperflexis-granted": ask.granted.header()}


CLIENT_LEFT = 499
"""Never sent; it is what logs and metrics call a client that went away."""


def _code_of(error: BaseException) -> int:
    if isinstance(error, ApiError):
        return error.status
    if isinstance(error, (asyncio.CancelledError, ConnectionError)):
        return CLIENT_LEFT
    return 500
