"""Prompts of given lengths, as the JSON that a body has of them.

A server's prefix cache has to see what the trace's would have seen: prompts whose block hashes begin alike begin with
the same tokens, all others differ in their first token or soon after. Token ids are exact; words are as many as come to
about that many tokens, by what the server said of some of them. Knows nothing of what is sent around a prompt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

TOKEN_IDS = range(100, 1000)
"""Every vocabulary has these, and none of them is special."""
_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father "
    "power hour game line end member law car city name team minute idea kid body back parent face others level office "
    "door health person art war history party result change morning reason research girl guy moment air teacher force"
)
PIECE_UNITS = 32
PIECES = 2048
"""Stretches that prompts are made of, made once: at run time a prompt costs no more than choosing among them."""
BLOCKS_REMEMBERED = 1 << 15


@dataclass(frozen=True, slots=True)
class Form:
    """How prompts are spelled: of which units, with what around them, and what the server counts them as."""

    units: Sequence[bytes]
    between: bytes
    before: bytes
    after: bytes
    tokens_per_unit: float = 1.0
    tokens_besides: float = 0.0
    """What every prompt has besides its units: a first token, a chat's template."""

    def count(self, tokens: int) -> int:
        """How many units come to so many tokens."""
        return max(1, round((tokens - self.tokens_besides) / self.tokens_per_unit))

    def spelled(self, units: Sequence[bytes]) -> bytes:
        return self.before + self.between.join(units) + self.after


_NUMBERS = [b"%d" % token for token in TOKEN_IDS]
_WORDS = [word.encode() for word in _TEXT.split()]
IDS = Form(_NUMBERS, b",", b'"prompt":[', b"]")
TEXT = Form(_WORDS, b" ", b'"prompt":"', b'"')
CHAT = Form(_WORDS, b" ", b'"messages":[{"role":"user","content":"', b'"}]')


class Prompts:
    """All prompts of one run. Equal seeds give equal prompts."""

    def __init__(self, form: Form, block_tokens: int, seed: int) -> None:
        self._form = form
        self._block_tokens = block_tokens
        self._seed = seed
        chance = random.Random(seed)
        self._pieces = [form.between.join(chance.choices(form.units, k=PIECE_UNITS)) for _ in range(PIECES)]
        self._block = lru_cache(maxsize=BLOCKS_REMEMBERED)(self._new_block)

    def of(self, number: int, prompt_tokens: int, block_hashes: Sequence[bytes] = ()) -> bytes:
        """The prompt of one request, as a member of its body."""
        form = self._form
        total = form.count(prompt_tokens)
        shared = len(block_hashes)
        while self._edge(shared) > total:  # Tokens that every prompt has besides leave its last blocks no room.
            shared -= 1
        parts = [self._block(index, block_hashes[index]) for index in range(shared)]
        parts += self._own(number, total - self._edge(shared))
        return form.before + form.between.join(part for part in parts if part) + form.after

    def _edge(self, blocks: int) -> int:
        """Units before the end of so many blocks. Words come to tokens only about, but the same in every prompt."""
        return round(blocks * self._block_tokens / self._form.tokens_per_unit)

    def _new_block(self, index: int, content: bytes) -> bytes:
        chance = random.Random(content)
        return self._form.between.join(chance.choices(self._form.units, k=self._edge(index + 1) - self._edge(index)))

    def _own(self, number: int, units: int) -> list[bytes]:
        """What no other prompt has: some units of its own, then pieces, then units to the end."""
        chance = random.Random(f"{self._seed}/{number}")
        first = min(units, PIECE_UNITS)
        pieces, rest = divmod(units - first, PIECE_UNITS)
        parts = [self._form.between.join(chance.choices(self._form.units, k=count)) for count in (first, rest)]
        return [parts[0], *chance.choices(self._pieces, k=pieces), parts[1]]
