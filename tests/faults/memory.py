"""What stands in an instance's blocks, token by token, and who reads there what is not its own.

A modelled instance has no KV. With this, a sequence that reads a wrong block goes on with a wrong token, as it would.
"""

from __future__ import annotations

from collections.abc import Sequence as Series

from hyperflexis.adapters.modelled import VOCABULARY, next_token
from hyperflexis.core.step import Chunk, Sequence, StepPlan


class Memory:
    """Of one instance."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._rows: dict[int, list[int]] = {}
        """Block → for each token in it a digest of the text up to it."""
        self._digests: dict[int, list[int]] = {}
        """Sequence → the digests that its tokens should have."""
        self._misled: set[int] = set()

    def compute(self, plan: StepPlan) -> None:
        """Read what the step reads and write what it writes."""
        for chunk in plan.chunks:
            self._read(chunk)
            self._write(chunk)

    def next_token(self, sequence: Sequence) -> int:
        right = next_token(sequence.tokens)
        return (right + 1) % VOCABULARY if sequence.id in self._misled else right

    def copy(self, source: Memory, source_blocks: Series[int], target_blocks: Series[int]) -> None:
        """What stands there now is here."""
        for one, other in zip(source_blocks, target_blocks, strict=True):
            self._rows[other] = list(source._rows.get(one, ()))

    def spoil(self, blocks: Series[int]) -> None:
        """Nonsense stands there."""
        for block in blocks:
            self._rows[block] = [-1] * self._block_tokens

    def forget(self) -> None:
        """All of it was given back."""
        self._rows.clear()

    def _read(self, chunk: Chunk) -> None:
        sequence, start, size = chunk.sequence, chunk.start, self._block_tokens
        digests = self._digests_of(sequence)
        is_right = True
        for first in range(0, start, size):
            row, last = self._rows.get(sequence.blocks[first // size], []), min(first + size, start) - 1
            is_right &= len(row) > last - first and row[last - first] == digests[last]
        if is_right and not start:
            self._misled.discard(sequence.id)
        elif not is_right:
            self._misled.add(sequence.id)

    def _write(self, chunk: Chunk) -> None:
        sequence, start, size = chunk.sequence, chunk.start, self._block_tokens
        digests = self._digests_of(sequence)
        for position in range(start, start + chunk.tokens):
            row = self._rows.setdefault(sequence.blocks[position // size], [])
            del row[position % size :]
            row.append(digests[position])

    def _digests_of(self, sequence: Sequence) -> list[int]:
        digests = self._digests.setdefault(sequence.id, [])
        for token in sequence.tokens[len(digests) :]:
            digests.append(hash((digests[-1] if digests else 0, token)))
        return digests
