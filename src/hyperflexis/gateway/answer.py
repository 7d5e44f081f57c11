"""One request's answer: its choices at the backend, gathered into a body or pushed into a stream.

Knows the backend's protocol, and what an answer looks like through `Format`. Of HTTP it knows `EventStream.write` only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hyperflexis.gateway.backend import End, Ending, EndReason, Fleet
from hyperflexis.gateway.choice import Choice, Entry
from hyperflexis.gateway.errors import ApiError, from_end
from hyperflexis.gateway.events import DONE, data_event, encode_json
from hyperflexis.gateway.promises import Granted
from hyperflexis.gateway.stream import EventStream
from hyperflexis.gateway.verdict import report
from hyperflexis.wire.messages import GenerateRequest


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as tokens, and as text where that is known already."""

    tokens: list[int]
    text: str | None = None


@dataclass(slots=True)
class Gathered:
    """A choice's output so far, for an answer in one piece."""

    text: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    """Of its tokens, where the client wants them."""


class Format(Protocol):
    """How one route spells its answers: chat or completions."""

    def event_prefix(self, choice: Choice) -> bytes:
        """A choice's text event up to its JSON text."""

    @property
    def event_suffix(self) -> bytes:
        """The rest of it, without log-probabilities."""

    def opening(self, choice: Choice) -> bytes:
        """The events that come before a choice's first text; may be empty."""

    def text_event(self, choice: Choice, text: str, entries: list[Entry] | None, ids: list[int] | None) -> bytes:
        """A text event with log-probabilities, the tokens' ids, or both."""

    def finish_event(self, choice: Choice, told: dict[str, Any]) -> bytes:
        """A choice's last event; `told` are members to add to the object."""

    def usage_event(self, told: dict[str, Any]) -> bytes:
        """The event without choices."""

    def body(self, choices: Sequence[Choice], gathered: Sequence[Gathered], told: dict[str, Any]) -> bytes:
        """The whole answer."""


class Answer:
    """All choices of one request. Subclasses decide where text goes."""

    def __init__(self, backend: Fleet, prompts: Sequence[Prompt], n: int, granted: Granted) -> None:
        self._backend = backend
        self._prompts = prompts
        self._n = n
        self._granted = granted
        self._open = 0
        self.choices: list[Choice] = []
        self.failure: ApiError | None = None
        self.finished = False

    def submit(self, choices: list[Choice], requests: Sequence[GenerateRequest]) -> None:
        """Hand every choice to the backend."""
        self.choices = choices
        self._open = len(choices)
        for choice, request in zip(choices, requests, strict=True):
            choice.ticket = self._backend.submit(request, choice)

    def cancel(self) -> None:
        """Stop what still runs; nothing is heard of it any more."""
        for choice in self.choices:
            if choice.is_running and choice.ticket is not None:
                choice.detach()
                self._backend.cancel(choice.ticket)

    def completion_tokens(self) -> int:
        """Tokens that came out, of all choices."""
        return sum(choice.tokens for choice in self.choices)

    def usage(self) -> dict[str, Any]:
        """Tokens used. Prompts count once, however many choices they have."""
        prompt_tokens = sum(len(prompt.tokens) for prompt in self._prompts)
        completion_tokens = self.completion_tokens()
        firsts = self.choices[:: self._n]
        cached = sum(choice.end.cached_tokens for choice in firsts if choice.end is not None)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def verdicts(self) -> dict[str, Any] | list[dict[str, Any]]:
        """What is told of promises, for each choice."""
        return report([choice.end for choice in self.choices], self._granted)

    def on_stopped(self, choice: Choice) -> None:
        assert choice.ticket is not None
        self._backend.cancel(choice.ticket)

    def on_finished(self, choice: Choice) -> None:
        self._open -= 1
        self._on_choice_finished(choice)

    def on_failed(self, choice: Choice, end: Ending) -> None:
        """One choice that fails takes the others with it: half an answer is none."""
        if self.failure is None:
            self.failure = from_end(end)
            self.cancel()
            self._on_failure(self.failure)

    def fail(self, message: str) -> None:
        """End it from this side, as at shutdown."""
        if not self.finished and self.failure is None:
            self.on_failed(self.choices[0], End(EndReason.FAILED, message=message, status=503))

    def on_text(self, choice: Choice, text: str, entries: list[Entry] | None) -> None:
        raise NotImplementedError

    def _on_choice_finished(self, choice: Choice) -> None:
        raise NotImplementedError

    def _on_failure(self, failure: ApiError) -> None:
        raise NotImplementedError


class WholeAnswer(Answer):
    """An answer in one piece."""

    def __init__(self, backend: Fleet, prompts: Sequence[Prompt], n: int, granted: Granted) -> None:
        super().__init__(backend, prompts, n, granted)
        self._gathered: list[Gathered] = [Gathered() for _ in range(len(prompts) * n)]
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def body(self, form: Format) -> bytes:
        """Wait for all choices.

        Raises:
            ApiError: one of them failed or was refused.
        """
        await self._ended
        if self.failure is not None:
            raise self.failure
        return form.body(self.choices, self._gathered, {"usage": self.usage(), "hyperflexis": self.verdicts()})

    def on_text(self, choice: Choice, text: str, entries: list[Entry] | None) -> None:
        gathered = self._gathered[choice.index]
        gathered.text.append(text)
        if entries:
            gathered.entries += entries
        gathered.ids += choice.take_ids() or ()

    def _on_choice_finished(self, choice: Choice) -> None:
        if not self._open:
            self.finished = True
            self._end()

    def _on_failure(self, failure: ApiError) -> None:
        self._end()

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


class StreamedAnswer(Answer):
    """An answer as events, pushed from within `on_text`."""

    def __init__(
        self,
        backend: Fleet,
        prompts: Sequence[Prompt],
        n: int,
        granted: Granted,
        *,
        form: Format,
        include_usage: bool,
    ) -> None:
        super().__init__(backend, prompts, n, granted)
        self._form = form
        self._suffix = form.event_suffix
        self._include_usage = include_usage
        self._has_begun = False
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stream: EventStream

    async def begun(self) -> None:
        """Wait for something to send: until then a refusal can still be an HTTP status.

        Raises:
            ApiError: it was refused, or failed, before anything was sent.
        """
        await self._begun
        if self.failure is not None and not self._has_begun:
            raise self.failure

    def on_text(self, choice: Choice, text: str, entries: list[Entry] | None) -> None:
        if not choice.prefix:
            self._open_choice(choice)
        ids = choice.take_ids()
        if entries or ids:
            self.stream.write(self._form.text_event(choice, text, entries, ids))
        elif text:
            self.stream.write(choice.prefix + encode_json(text) + self._suffix)

    def _open_choice(self, choice: Choice) -> None:
        choice.prefix = self._form.event_prefix(choice)
        self._begin()
        self.stream.write(self._form.opening(choice))

    def _begin(self) -> None:
        self._has_begun = True
        if not self._begun.done():
            self._begun.set_result(None)

    def _on_choice_finished(self, choice: Choice) -> None:
        if not choice.prefix:
            self._open_choice(choice)
        if self._open:
            self.stream.write(self._form.finish_event(choice, {}))
            return
        self.finished = True
        told = {"hyperflexis": self.verdicts()}
        if self._include_usage:
            last = self._form.finish_event(choice, {})
            last += self._form.usage_event({"usage": self.usage(), **told})
        else:
            last = self._form.finish_event(choice, told)
        self.stream.finish(last + DONE)

    def _on_failure(self, failure: ApiError) -> None:
        if self._has_begun:
            self.stream.finish(data_event(failure.body()) + DONE)
        elif not self._begun.done():
            self._begun.set_result(None)
