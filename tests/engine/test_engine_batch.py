"""Packing and block tables against a naive loop, for all small shapes."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import numpy as np
import pytest

from hyperflexis.engine.batch import BlockTables, PackedBatch, SequenceSlice, pack

PLANES = 6  # three layers


def _chunkings(length: int) -> list[list[tuple[int, int]]]:
    """Every way of cutting a length into chunks, as (start, end)."""
    ways = []
    for count in range(length):
        for cuts in combinations(range(1, length), count):
            edges = [0, *cuts, length]
            ways.append(list(pairwise(edges)))
    return ways


def _assert_packed(batch: PackedBatch, slices: list[SequenceSlice], block_tokens: int) -> None:
    assert sorted(batch.order) == list(range(len(slices)))
    ids, positions, slots, offsets = [], [], [], []
    for index in batch.order:
        each = slices[index]
        offsets.append(len(ids))
        for place, token in enumerate(each.tokens):
            position = each.start + place
            ids.append(token)
            positions.append(position)
            plane = each.blocks[position // block_tokens] * PLANES
            slots.append(plane * block_tokens + position % block_tokens)
    assert batch.ids.tolist() == ids
    assert batch.positions.tolist() == positions
    assert batch.slots.tolist() == slots
    assert batch.offsets.tolist() == offsets
    kinds = [0 if len(slices[i].tokens) == 1 else 1 if slices[i].start == 0 else 2 for i in batch.order]
    assert kinds == sorted(kinds)
    assert (batch.decodes, batch.fresh) == (kinds.count(0), len(kinds) - kinds.count(2))
    contexts = (batch.starts + batch.counts).tolist()
    for kind in range(3):
        of_kind = [context for context, each in zip(contexts, kinds, strict=True) if each == kind]
        assert of_kind == sorted(of_kind, reverse=True)


@pytest.mark.parametrize("block_tokens", [1, 2, 3, 4])
def test_every_chunking_of_short_sequences_lands_in_its_slots(block_tokens: int) -> None:
    chance = random.Random(block_tokens)
    tables = BlockTables(block_tokens, PLANES)
    rows = [tables.open() for _ in range(2)]
    for length in range(1, 10):
        tokens = [100 + place for place in range(length)]
        for chunks in _chunkings(length):
            blocks: list[int] = []
            pool = chance.sample(range(50), 20)
            company = SequenceSlice(1, [7] * chance.randint(1, 4), 5, [3] * 10, sample=False)
            for start, end in chunks:
                while len(blocks) * block_tokens < end:
                    blocks.append(pool.pop())
                slices = [SequenceSlice(0, tokens[start:end], start, blocks, sample=False), company]
                for row, each in zip(rows, slices, strict=True):
                    tables.update(row, each.blocks, each.start, each.start + len(each.tokens))
                _assert_packed(pack(slices, rows, tables), slices, block_tokens)
                used = tables.planes[rows[0]]
                assert used[: len(blocks)].tolist() == [block * PLANES for block in blocks]
                assert set(used[len(blocks) :].tolist()) <= {blocks[0] * PLANES}


def test_tables_follow_lists_that_are_replaced_rewritten_or_cut() -> None:
    tables = BlockTables(2, 1)
    row = tables.open()
    blocks = [4, 5, 6]
    tables.update(row, blocks, 0, 6)
    tables.update(row, [7, 8, 9, 10], 6, 7)
    assert tables.planes[row, :4].tolist() == [7, 8, 9, 10]
    tables.update(row, blocks, 0, 5)
    blocks[:] = [1, 2, 3]
    tables.update(row, blocks, 0, 5)
    assert tables.planes[row, :4].tolist() == [1, 2, 3, 1]
    blocks[:] = [9]
    tables.update(row, blocks, 0, 2)
    assert tables.planes[row, :4].tolist() == [9, 9, 9, 9]


def test_tables_grow_and_keep_what_they_hold() -> None:
    tables = BlockTables(1, 2)
    rows = [tables.open() for _ in range(20)]
    assert len(set(rows)) == 20
    for row in rows:
        tables.update(row, [row + 1] * 3, 0, 3)
    tables.update(rows[0], list(range(1, 101)), 0, 100)
    assert tables.planes[rows[0], :100].tolist() == list(range(2, 202, 2))
    assert all(set(tables.planes[row].tolist()) == {2 * (row + 1)} for row in rows[1:])
    tables.close(rows[3])
    assert tables.open() == rows[3]


def test_a_table_too_short_for_its_tokens_is_a_bug_of_the_caller() -> None:
    tables = BlockTables(4, 1)
    with pytest.raises(AssertionError, match="cannot hold 9"):
        tables.update(tables.open(), [1, 2], 8, 9)


def test_a_batch_of_decodes_packs_by_context() -> None:
    tables = BlockTables(4, PLANES)
    slices = [SequenceSlice(i, [i], start, [i] * 5, sample=True) for i, start in enumerate([3, 19, 0, 7])]
    rows = [tables.open() for _ in slices]
    for row, each in zip(rows, slices, strict=True):
        tables.update(row, each.blocks, each.start, each.start + 1)
    batch = pack(slices, rows, tables)
    assert batch.order == [1, 3, 0, 2]
    assert batch.positions.tolist() == [19, 7, 3, 0]
    assert batch.ids.dtype == np.int64
    _assert_packed(batch, slices, 4)
