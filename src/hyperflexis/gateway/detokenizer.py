"""From tokens back to text as they come: whole characters only, and cut at stop strings.

Both results depend on the tokens alone, never on how they were split over calls. Knows no tokenizer: it gets bytes per
token, or a function that decodes token ids.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Callable, Sequence
from typing import Protocol


class Detokenizer(Protocol):
    """Text of one sequence of tokens."""

    def push(self, tokens: Sequence[int]) -> str:
        """Take the next tokens; return the text that they complete."""

    def flush(self) -> str:
        """Return what is left; half a character becomes a replacement character, as in batch decoding."""


class ByteDetokenizer:
    """For decoders that concatenate each token's bytes (ByteLevel), with a table of those bytes."""

    __slots__ = ("_pending", "_pieces")

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._pending = b""

    def push(self, tokens: Sequence[int]) -> str:
        pieces = self._pieces
        data = self._pending
        for token in tokens:
            # An id beyond the table has no text; batch decoding drops it too.
            if token < len(pieces):
                data += pieces[token]
        # By hand rather than `codecs.IncrementalDecoder`, which spends its time in Python methods.
        text, used = utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        return text

    def flush(self) -> str:
        text, _ = utf_8_decode(self._pending, "replace", True)
        self._pending = b""
        return text


UNDECIDED_TOKENS_MAX = 16
"""No character needs so many; without a limit a stream of broken bytes would be decoded again and again."""


class WindowDetokenizer:
    """For every other decoder, where a token's text depends on its neighbours: decode a short window, emit what is new.

    `before` are the last tokens of the prompt, so that a word's leading space survives where decoders strip it at the
    beginning of a text.
    """

    __slots__ = ("_decode", "_ids", "_known")

    def __init__(self, decode: Callable[[list[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(before)
        self._known = len(self._ids)
        """So many of `_ids` have had their text emitted; they stay as context for the rest."""

    def push(self, tokens: Sequence[int]) -> str:
        return "".join([self._step(token) for token in tokens])

    def _step(self, token: int) -> str:
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith("\ufffd") and len(self._ids) - self._known < UNDECIDED_TOKENS_MAX:
            return ""
        known = self._decode(self._ids[: self._known])
        if len(text) <= len(known):
            return ""
        del self._ids[: self._known]
        self._known = len(self._ids)
        return text[len(known) :]

    def flush(self) -> str:
        known = self._decode(self._ids[: self._known])
        text = self._decode(self._ids)
        self._known = len(self._ids)
        return text[len(known) :]


class StopStrings:
    """Finds the stop string that is complete first, and holds back no more than what may still become one."""

    __slots__ = ("_firsts", "_held", "_include", "_reach", "_stops", "matched")

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._firsts = frozenset(stop[0] for stop in stops)
        self._reach = max((len(stop) for stop in stops), default=0) - 1
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the text."""

    def push(self, text: str) -> str:
        """Take more text; return what is certain to precede any stop string (or to contain it, if included)."""
        if self.matched is not None:
            return ""
        text = self._held + text
        cut = self._find(text)
        if cut is None:
            cut = self._hold_from(text)
            self._held = text[cut:]
        else:
            self._held = ""
        return text[:cut]

    def flush(self) -> str:
        """Return what was held back; no more text will come."""
        held, self._held = self._held, ""
        return held

    def _find(self, text: str) -> int | None:
        """Where to cut for the match that ends first; the longest of those that end together."""
        best: tuple[int, int] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best):
                best = (start + len(stop), start)
                self.matched = stop
        if best is None:
            return None
        return best[0] if self._include else best[1]

    def _hold_from(self, text: str) -> int:
        """The start of the longest ending that begins a stop string."""
        start = max(0, len(text) - self._reach)
        for i in range(start, len(text)):
            if text[i] in self._firsts:
                ending = text[i:]
                if any(stop.startswith(ending) for stop in self._stops):
                    return i
        return len(text)
