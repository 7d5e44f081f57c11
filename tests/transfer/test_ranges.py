"""Coalescing loses and invents no byte; what does not fit is refused; both ends cut a stream alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transfer_world import SIZE, apart

from hyperflexis.transfer.errors import BadRanges
from hyperflexis.transfer.ranges import RANGES_MAX, Range, coalesce, pieces, segments, total_bytes


def moved(ranges: list[tuple[int, int, int]] | list[Range]) -> list[int | None]:
    """Where each byte of the target comes from."""
    target: list[int | None] = [None] * SIZE
    for source, start, length in ranges:
        for offset in range(length):
            target[start + offset] = source + offset
    return target


@given(apart())
def test_coalesced_ranges_move_the_same_bytes(ranges: list[tuple[int, int, int]]) -> None:
    found = coalesce(ranges, SIZE, SIZE)
    assert moved(found) == moved(ranges)
    assert all(each.length for each in found)
    assert coalesce(found, SIZE, SIZE) == found


def test_adjacent_blocks_become_one_range() -> None:
    assert coalesce([(8, 108, 4), (0, 100, 4), (4, 104, 4)], SIZE, SIZE) == [Range(0, 100, 12)]
    assert coalesce([(0, 100, 4), (4, 50, 0), (4, 104, 4)], SIZE, SIZE) == [Range(0, 100, 8)]
    assert coalesce([(0, 100, 4), (4, 200, 4)], SIZE, SIZE) == [Range(0, 100, 4), Range(4, 200, 4)]


@pytest.mark.parametrize("bad", [(-1, 0, 2), (0, -1, 2), (0, 0, -1), (SIZE - 1, 0, 2), (0, SIZE - 1, 2), (2**63, 0, 1)])
def test_range_outside_is_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(BadRanges, match="leaves the region"):
        coalesce([(0, 0, 1), bad], SIZE, SIZE)


def test_overlap_in_the_target_is_refused() -> None:
    """The order of ranges must not decide what arrives."""
    with pytest.raises(BadRanges, match="overlap in the target at byte 5"):
        coalesce([(0, 0, 6), (100, 5, 1)], SIZE, SIZE)


def test_overlap_in_the_source_is_no_matter() -> None:
    assert total_bytes(coalesce([(0, 0, 6), (0, 6, 6)], SIZE, SIZE)) == 12


def test_too_many_ranges_are_refused() -> None:
    many = [(2 * index, 2 * index, 1) for index in range(RANGES_MAX + 1)]
    assert len(coalesce(many[:-1], 4 * RANGES_MAX, 4 * RANGES_MAX)) == RANGES_MAX
    with pytest.raises(BadRanges, match="too many"):
        coalesce(many, 4 * RANGES_MAX, 4 * RANGES_MAX)


@given(apart(), st.integers(1, 50), st.integers(1, 5))
def test_segments_keep_every_byte_and_their_limits(
    ranges: list[tuple[int, int, int]], bytes_max: int, pieces_max: int
) -> None:
    whole = coalesce(ranges, SIZE, SIZE)
    batches = list(segments(whole, bytes_max, pieces_max))
    assert moved([each for batch in batches for each in batch]) == moved(whole)
    assert all(0 < total_bytes(batch) <= bytes_max and len(batch) <= pieces_max for batch in batches)
    assert all(each.length <= bytes_max for each in pieces(whole, bytes_max))
    # What the two ends compute must not depend on where each has its bytes.
    elsewhere = segments([each._replace(target=0) for each in whole], bytes_max, pieces_max)
    assert [list(map(total_bytes, ([e] for e in batch))) for batch in elsewhere] == [
        [each.length for each in batch] for batch in batches
    ]
