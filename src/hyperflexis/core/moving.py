"""What a live sequence's move between two instances is made of: what it holds, what waits for it, who stands still.

A move is a few calls of `StepScheduler`, each between two steps of its own side:

    expect   target   blocks and a seat for it, all or nothing; what the prefix cache has of it is among them
    held     source   its blocks, and which of them nobody writes any more; again and again, for what was added since
    suspend  source   it takes part in no step while the rest is copied
    adopt    target   it goes on there, as far as it had been computed
    cancel   source   and is gone from here

or, at any point before `adopt`, `resume` at the source and `release` at the target, and nothing has been. Moves cannot
wait for each other: `expect` takes of what is free, in the order in which it and admissions are called, and where that
does not suffice it says so at once and holds no more than before.

Knows neither bytes nor how they travel, nor which instance is at the other end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from hyperflexis.core.step import Sequence


class Held(NamedTuple):
    """What a sequence has in blocks, from one of them on."""

    since: int
    """Index of the first block that is told here."""
    blocks: list[int]
    """Those with KV in them, in order."""
    computed: int
    """Tokens in all its blocks, those not told here among them."""
    tenure: int
    """Another one means that it has lost its blocks meanwhile, and these are not the ones that were told before."""

    def settled(self, block_tokens: int) -> list[int]:
        """Those of `blocks` that are full: they are written no more, and can be copied while the sequence goes on."""
        return self.blocks[: max(0, self.computed // block_tokens - self.since)]


class Suspended(NamedTuple):
    """A sequence that stands still."""

    sequence: Sequence
    was_decoding: bool


class Moves:
    """The moves that one instance is an end of, by sequence."""

    def __init__(self) -> None:
        self.expected: dict[int, list[int]] = {}
        """Blocks of sequences that will arrive."""
        self.found: dict[int, int] = {}
        """How many of these, from the first on, the prefix cache had. They are shared, and so written no more."""
        self.suspended: dict[int, Suspended] = {}

    @property
    def seats(self) -> int:
        """Places that are taken by what neither waits nor decodes here. Who holds no block has none."""
        return len(self.expected) + sum([1 for sequence, _ in self.suspended.values() if sequence.blocks])
