"""One answer as its client sees it: when it came, how it ended, and how the stream that brings it is read.

    done      it came whole
    refused   the server said, before any token, that it has no room (429, 503, 529; also where it says so in a stream)
    failed    it brought no token for any other reason
    cut       it began and did not come to its end

Instants are whatever the caller's clock says. An event is a token's where it brings text or ids; in a completion also
without text, unless it is the last one: some tokens have none of their own. How many tokens there were is what the
server's usage says, where it says it, else what the events brought. Knows no sockets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

REFUSALS = frozenset({429, 503, 529})
DONE = b"[DONE]"
UNFINISHED = frozenset({"abort", "error", "cancelled"})
"""Reasons to finish that are none."""
SAID_CHARS = 200


class End(StrEnum):
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    CUT = "cut"


@dataclass(slots=True)
class Answer:
    """What became of one request. Instants count from the start of the run."""

    service_class: str
    due_s: float
    """When it was to be sent; everything counts from here, whenever it was."""
    prompt_tokens: int
    """As asked for."""
    output_tokens: int
    """As asked for."""
    sent_s: float = math.nan
    first_s: float = math.nan
    last_s: float = math.nan
    ended_s: float = math.nan
    tokens: int = 0
    """That came."""
    prompt_tokens_counted: int | None = None
    """By the server."""
    end: End = End.FAILED
    why: str = ""
    """What it ended with, if not well: a status, or a word."""
    said: str = ""
    """The server's own words about that."""
    retry_after_s: float | None = None
    has_kept: bool | None = None
    """Whether the server says that it kept its promises; None: it does not say."""

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.due_s

    @property
    def tpot_s(self) -> float:
        return (self.last_s - self.first_s) / (self.tokens - 1) if self.tokens > 1 else math.nan

    @property
    def e2e_s(self) -> float:
        return self.last_s - self.due_s

    def refuse(self, status: int, said: str, retry_after: str | None = None) -> None:
        """It was answered with this status, and nothing else."""
        self.end = End.REFUSED if status in REFUSALS else End.FAILED
        self.why, self.said = str(status), shortened(said)
        self.retry_after_s = _seconds(retry_after)

    def break_off(self, why: str, said: str = "") -> None:
        """Nothing more comes, and this was not the end."""
        self.end = End.CUT if self.tokens else End.FAILED
        self.why, self.said = why, shortened(said)


def shortened(said: str) -> str:
    return " ".join(said.split())[:SAID_CHARS]


def _seconds(retry_after: str | None) -> float | None:
    """Of the header. A date is none that a client could hold anyone to."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None

    def tokens(self) -> int:
        """How many it brings; a server that does not tell ids brings one at a time."""
        if self.token_ids is not None:
            return len(self.token_ids)
        if self.delta is not None:
            return int(bool(self.delta.content or self.delta.reasoning_content or self.delta.reasoning))
        return int(bool(self.text) or (self.text is not None and self.finish_reason is None))


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Verdict(msgspec.Struct):
    attained: bool | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None
    hyperflexis: _Verdict | None = None


_events = msgspec.json.Decoder(_Event)


@dataclass(slots=True)
class Stream:
    """Reads the events of one answer, in whatever pieces they come."""

    answer: Answer
    _rest: bytes = b""
    _is_finished: bool = False
    _reason: str = ""
    _is_over: bool = False

    def feed(self, data: bytes, now: float) -> None:
        """Take in what has come by now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and not self._is_over:
                self._hear(line[5:].strip(), now)

    def close(self) -> None:
        """The server has closed the answer."""
        if self._is_over:
            return
        if self._is_finished:
            self.answer.end = End.DONE
        else:
            self.answer.break_off(self._reason or "no end")

    def _hear(self, data: bytes, now: float) -> None:
        if data == DONE:
            self.close()
            self._is_over = True
            return
        try:
            event = _events.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._break_off("not understood", str(error))
            return
        if event.error is not None:
            self._fail(event.error)
            return
        answer = self.answer
        if event.usage is not None:
            answer.tokens = event.usage.completion_tokens or answer.tokens
            answer.prompt_tokens_counted = event.usage.prompt_tokens
        if event.hyperflexis is not None:
            answer.has_kept = event.hyperflexis.attained
        for choice in event.choices:
            self._count(choice, now, has_usage=event.usage is not None)

    def _count(self, choice: _Choice, now: float, *, has_usage: bool) -> None:
        answer = self.answer
        came = choice.tokens()
        if came and not has_usage:
            answer.tokens += came
        if came or choice.finish_reason is not None:
            answer.last_s = now
            answer.first_s = now if math.isnan(answer.first_s) else answer.first_s
        if choice.finish_reason in UNFINISHED:
            self._reason = choice.finish_reason or ""
        elif choice.finish_reason is not None:
            self._is_finished = True

    def _fail(self, error: Any) -> None:
        """The server says within the stream what else it says with a status."""
        code = error.get("code") if isinstance(error, dict) else None
        said = str(error.get("message", error)) if isinstance(error, dict) else str(error)
        if isinstance(code, int) and not self.answer.tokens:
            self.answer.refuse(code, said)
            self._is_over = True
        else:
            self._break_off(str(code or "error"), said)

    def _break_off(self, why: str, said: str) -> None:
        self.answer.break_off(why, said)
        self._is_over = True
