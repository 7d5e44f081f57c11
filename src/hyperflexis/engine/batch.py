"""One step's work as numbers: slices in, packed arrays out, and the block tables that persist between steps.

Packing puts all new tokens of all sequences in one row, because the linear layers do not care whose token is whose. It
orders the segments so that those which attention handles alike lie side by side: single tokens (decodes) first, longest
context first; then whole prompts, longest first; then chunks that continue a prompt. It knows no model and no tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(slots=True)
class SequenceSlice:
    """What one sequence contributes to a step."""

    sequence: int
    """Key of an opened sequence."""
    tokens: list[int]
    """New tokens to compute, at least one."""
    start: int
    """How many of its tokens are in KV already. One token with `start > 0` is a decode."""
    blocks: list[int]
    """Its block table, long enough for `start + len(tokens)`. The scheduler's live list: it may grow between steps, and
    be replaced or rewritten when the sequence starts again elsewhere than where it left off."""
    sample: bool
    """Whether the next token is wanted."""


@dataclass(slots=True)
class PackedBatch:
    """A step's slices as arrays, in packed order. `S` segments, `N` tokens."""

    order: list[int]
    """Segment → index of its slice."""
    rows: Ints
    """[S] row of the block tables."""
    starts: Ints
    """[S]"""
    counts: Ints
    """[S]"""
    offsets: Ints
    """[S] index of the segment's first packed token."""
    decodes: int
    """Segments before this one have a single token."""
    fresh: int
    """Segments from `decodes` to this one start at 0; those after it continue."""
    ids: Ints
    """[N]"""
    positions: Ints
    """[N]"""
    slots: Ints
    """[N] where each token's keys go in layer 0 (see `KvPool`)."""

    @property
    def position_max(self) -> int:
        return int(self.positions.max())


class BlockTables:
    """Block tables as rows of one array, written only where they change. Entries are planes (block × planes per block).

    Entries past a table's end repeat its first block: gathering them is harmless, and can only ever show a sequence
    its own memory.
    """

    def __init__(self, block_tokens: int, planes_per_block: int) -> None:
        self.block_tokens = block_tokens
        self.planes = np.zeros((8, 16), dtype=np.int64)
        self._planes_per_block = planes_per_block
        self._free = list(range(7, -1, -1))
        # Per row: the list it mirrors, how many entries of it, and the position where the sequence is to go on.
        self._lists: list[list[int] | None] = [None] * 8
        self._known = [0] * 8
        self._next = [0] * 8

    def open(self) -> int:
        if not self._free:
            self._grow(rows=2 * len(self.planes))
        return self._free.pop()

    def close(self, row: int) -> None:
        self._lists[row] = None
        self._known[row] = 0
        self._free.append(row)

    def update(self, row: int, blocks: list[int], start: int, end: int) -> None:
        """Mirror the list, which must hold blocks for positions up to `end`."""
        count, known = len(blocks), self._known[row]
        assert count * self.block_tokens >= end, f"{count} blocks of {self.block_tokens} tokens cannot hold {end}"
        if self._lists[row] is not blocks or self._next[row] != start or count < known:
            known = 0
        self._next[row] = end
        if count == known:
            return
        if count > self.planes.shape[1]:
            self._grow(columns=max(count, 2 * self.planes.shape[1]))
        if not known:
            self._lists[row] = blocks
            self.planes[row] = blocks[0] * self._planes_per_block
        self.planes[row, known:count] = blocks[known:]
        self.planes[row, known:count] *= self._planes_per_block
        self._known[row] = count

    def slots(self, rows: Ints, positions: Ints) -> Ints:
        """Return where the tokens at these positions of these rows' sequences keep their keys (see `KvPool`)."""
        blocks = positions // self.block_tokens
        return self.planes[rows, blocks] * self.block_tokens + (positions - blocks * self.block_tokens)

    def _grow(self, *, rows: int | None = None, columns: int | None = None) -> None:
        old_rows, old_columns = self.planes.shape
        grown = np.zeros((rows or old_rows, columns or old_columns), dtype=np.int64)
        grown[:old_rows, :old_columns] = self.planes
        grown[:old_rows, old_columns:] = self.planes[:, :1]
        added = len(grown) - old_rows
        self.planes = grown
        self._free.extend(range(len(grown) - 1, old_rows - 1, -1))
        self._lists += [None] * added
        self._known += [0] * added
        self._next += [0] * added


def pack(slices: Sequence[SequenceSlice], rows: Sequence[int], tables: BlockTables) -> PackedBatch:
    """Lay out a step whose block tables are up to date."""
    given_starts = np.array([each.start for each in slices], dtype=np.int64)
    given_rows = np.array(rows, dtype=np.int64)
    if all(len(each.tokens) == 1 for each in slices):
        return _pack_decodes(slices, given_starts, given_rows, tables)
    given_counts = np.array([len(each.tokens) for each in slices], dtype=np.int64)
    kinds = np.where(given_counts == 1, 0, np.where(given_starts == 0, 1, 2))
    by_size = np.lexsort((-(given_starts + given_counts), kinds))
    order: list[int] = by_size.tolist()
    counts, starts, packed_rows = given_counts[by_size], given_starts[by_size], given_rows[by_size]
    ends = np.cumsum(counts)
    offsets = ends - counts
    tokens = int(ends[-1])
    positions = np.arange(tokens) + np.repeat(starts - offsets, counts)
    decodes = int(np.count_nonzero(kinds == 0))
    return PackedBatch(
        order=order,
        rows=packed_rows,
        starts=starts,
        counts=counts,
        offsets=offsets,
        decodes=decodes,
        fresh=decodes + int(np.count_nonzero(kinds == 1)),
        ids=np.fromiter(chain.from_iterable(slices[i].tokens for i in order), dtype=np.int64, count=tokens),
        positions=positions,
        slots=tables.slots(np.repeat(packed_rows, counts), positions),
    )


def _pack_decodes(slices: Sequence[SequenceSlice], starts: Ints, rows: Ints, tables: BlockTables) -> PackedBatch:
    """The common step, in half the time."""
    count = len(slices)
    by_size = np.argsort(-starts, kind="stable")
    starts, rows = starts[by_size], rows[by_size]
    order: list[int] = by_size.tolist()
    return PackedBatch(
        order=order,
        rows=rows,
        starts=starts,
        counts=np.ones(count, dtype=np.int64),
        offsets=np.arange(count),
        decodes=count,
        fresh=count,
        ids=np.array([slices[i].tokens[0] for i in order], dtype=np.int64),
        positions=starts,
        slots=tables.slots(rows, starts),
    )
