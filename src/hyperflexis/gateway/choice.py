"""One choice of an answer: takes tokens from the backend, gives text to the answer it belongs to.

Runs inside the backend's step, once per token, so the usual case (no stop strings, no log-probabilities) is short.
Knows neither HTTP nor JSON.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from hyperflexis.gateway.backend import End, Ending, EndReason
from hyperflexis.gateway.detokenizer import Detokenizer, StopStrings
from hyperflexis.wire.messages import TokenLogprobs

log = logging.getLogger("hyperflexis.gateway")


class Entry(NamedTuple):
    """The log-probabilities of one position, and where its text begins (characters from the output's beginning)."""

    logprobs: TokenLogprobs
    offset: int


class ChoiceOwner(Protocol):
    """What a choice reports to."""

    def on_text(self, choice: Choice, text: str, entries: list[Entry] | None) -> None:
        """Take more text; comes at the first token even if that has no text yet."""

    def on_stopped(self, choice: Choice) -> None:
        """A stop string was found: the backend's work on this choice is no longer wanted."""

    def on_finished(self, choice: Choice) -> None:
        """The choice is complete: `finish_reason` and `end` are set."""

    def on_failed(self, choice: Choice, end: Ending) -> None:
        """The choice will never be complete."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """When a choice's text ends."""

    strings: tuple[str, ...] = ()
    eos_ids: frozenset[int] = frozenset()
    """The model's own ends; never shown, and no reason worth telling."""
    asked_ids: frozenset[int] = frozenset()
    """Other ids that the client named."""
    is_stop_shown: bool = False
    """Whether the client wants to see what ended the text, as far as it asked for it."""
    min_tokens: int = 0
    silent: bool = False
    """The output is not wanted, only what is said about the prompt."""


class Choice:
    """The `backend.TokenSink` of one choice."""

    __slots__ = (
        "_chars",
        "_detokenizer",
        "_ended",
        "_entries",
        "_hidden_ids",
        "_ids",
        "_opened",
        "_owner",
        "_plain",
        "_released",
        "_stopping",
        "_strings",
        "end",
        "finish_reason",
        "index",
        "prefix",
        "prompt_logprobs",
        "stop_reason",
        "ticket",
        "tokens",
    )

    def __init__(
        self,
        index: int,
        detokenizer: Detokenizer,
        stopping: Stopping,
        owner: ChoiceOwner,
        *,
        with_logprobs: bool,
        with_ids: bool = False,
    ) -> None:
        self.index = index
        self.ticket: int | None = None
        self.tokens = 0
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self.end: Ending | None = None
        self.prompt_logprobs: Sequence[TokenLogprobs] = ()
        self.prefix = b""
        """The answer's own: this choice's event up to its text."""
        self._detokenizer = detokenizer
        self._stopping = stopping
        self._strings = StopStrings(stopping.strings, stopping.is_stop_shown) if stopping.strings else None
        self._hidden_ids = stopping.eos_ids if stopping.is_stop_shown else stopping.eos_ids | stopping.asked_ids
        self._owner = owner
        self._plain = not (stopping.strings or with_logprobs or with_ids or stopping.silent)
        self._ids: list[int] | None = [] if with_ids else None
        self._entries: list[Entry] | None = [] if with_logprobs and not stopping.silent else None
        self._chars = 0
        """Characters decoded so far."""
        self._released = 0
        """Characters given to the owner so far."""
        self._opened = False
        self._ended = False

    @property
    def is_running(self) -> bool:
        """Whether the backend still works on it."""
        return self.ticket is not None and not self._ended

    def take_ids(self) -> list[int] | None:
        """The tokens since it was last asked, hidden ones included; None if they are not to be told."""
        ids = self._ids
        if ids is not None:
            self._ids = []
        return ids

    def detach(self) -> None:
        """Hear nothing any more."""
        self._ended = True

    def on_tokens(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] | None) -> None:
        if self.finish_reason is not None or self._ended or not tokens:
            return
        try:
            if self._plain:
                self._take(tokens)
            else:
                self._take_each(tokens, logprobs)
        except Exception:  # noqa: BLE001 the step carries other requests: a bug in this one must end this one only
            self._break()

    def _take(self, tokens: Sequence[int]) -> None:
        """The usual case: no stop strings, no log-probabilities."""
        self._note_stop_id(tokens)
        self.tokens += len(tokens)
        if tokens[-1] in self._hidden_ids:
            tokens = tokens[:-1]
        text = self._detokenizer.push(tokens)
        if text or not self._opened:
            self._opened = True
            self._owner.on_text(self, text, None)

    def _note_stop_id(self, tokens: Sequence[int]) -> None:
        if tokens[-1] in self._stopping.asked_ids:
            self.stop_reason = tokens[-1]

    def _break(self) -> None:
        log.exception("a bug in taking tokens")
        self._owner.on_failed(self, End(EndReason.FAILED, message="Internal error; it was logged.", status=500))

    def _take_each(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] | None) -> None:
        """Token by token: where a stop string cuts must not depend on how many tokens came in one call."""
        if self._stopping.silent:
            return
        self._note_stop_id(tokens)
        text = ""
        for i, token in enumerate(tokens):
            self.tokens += 1
            if self._ids is not None:
                self._ids.append(token)
            if self._entries is not None and logprobs is not None:
                self._entries.append(Entry(logprobs[i], self._chars))
            piece = "" if token in self._hidden_ids else self._detokenizer.push((token,))
            self._chars += len(piece)
            text += self._until_stop(piece) if self.tokens > self._stopping.min_tokens else piece
            if self._matched is not None:
                break
        self._release(text)
        if self._matched is not None:
            self._stop()

    @property
    def _matched(self) -> str | None:
        return None if self._strings is None else self._strings.matched

    def _until_stop(self, text: str) -> str:
        return text if self._strings is None else self._strings.push(text)

    def _release(self, text: str) -> None:
        """Give text away, with the entries of the tokens that begin in it."""
        self._released += len(text)
        entries = self._released_entries()
        if text or entries or self._ids or not self._opened:
            self._opened = True
            self._owner.on_text(self, text, entries)

    def _released_entries(self) -> list[Entry] | None:
        if not self._entries:
            return None
        matched = self._matched is not None
        if self._released >= self._chars and not matched:
            released, self._entries = self._entries, []
            return released
        released = [entry for entry in self._entries if entry.offset < self._released]
        self._entries = [] if matched else self._entries[len(released) :]
        return released

    def _stop(self) -> None:
        """Finish for the client; the backend's end, with the verdict, is still to come."""
        self.finish_reason = "stop"
        self.stop_reason = self._matched
        self._owner.on_stopped(self)

    def on_prompt_logprobs(self, logprobs: Sequence[TokenLogprobs]) -> None:
        self.prompt_logprobs = logprobs

    def on_end(self, end: Ending) -> None:
        if self._ended:
            return
        self._ended = True
        self.end = end
        try:
            self._finish(end)
        except Exception:  # noqa: BLE001 as in `on_tokens`
            self._break()

    def _finish(self, end: Ending) -> None:
        if self.finish_reason is None:
            if end.reason not in (EndReason.STOP, EndReason.LENGTH):
                self._owner.on_failed(self, end)
                return
            self._flush()
            if self.finish_reason is None:
                self.finish_reason = "length" if self._stopping.silent else str(end.reason)
        self._owner.on_finished(self)

    def _flush(self) -> None:
        """Let go of what was held back for half a character or for a stop string that did not come."""
        tail = self._detokenizer.flush()
        self._chars += len(tail)
        text = self._until_stop(tail)
        if self._strings is not None:
            text += self._strings.flush()
        if self._matched is not None:
            self.finish_reason = "stop"
            self.stop_reason = self._matched
        if text or self._entries:
            self._release(text)
