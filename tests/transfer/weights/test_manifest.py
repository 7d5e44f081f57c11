"""Digests: every changed byte shows, in the piece where it is, and in the root."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
from hypothesis import given
from weights_world import CHUNK, CONTENT, LIES, PIECE, SIZE, manifest_of

from hyperflexis.transfer.weights.manifest import Manifest, chunks

TRUE = manifest_of(CONTENT)


def test_digests_are_of_pieces() -> None:
    assert Manifest.of(memoryview(CONTENT)) == TRUE


def test_chunks_cover_everything_once() -> None:
    places = list(chunks(SIZE))
    assert places[0][0] == 0
    assert places[-1][1] == SIZE
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(places))
    assert list(chunks(SIZE, places[3][0])) == places[3:]


def test_manifest_fits_its_size_only() -> None:
    assert TRUE.fits(SIZE)
    assert TRUE.pieces == -(-SIZE // PIECE)
    for size_bytes in (0, SIZE - PIECE, SIZE + PIECE):
        assert not TRUE.fits(size_bytes)


@given(at=st.integers(0, SIZE - 1), flip=st.integers(1, 255))
def test_changed_byte_is_found_where_it_is(at: int, flip: int) -> None:
    changed = bytearray(CONTENT)
    changed[at] ^= flip
    view = memoryview(changed)
    wrong = [piece for piece in range(TRUE.pieces) if not TRUE.holds(piece, view)]
    assert wrong == [at // PIECE]
    assert manifest_of(bytes(changed)).root != TRUE.root


def test_chunk_is_compared_with_its_own_place() -> None:
    lies = memoryview(LIES)
    for index, (start, end) in enumerate(chunks(SIZE)):
        assert TRUE.includes(Manifest.of(lies[start:end]), start) == (index != 5)
    first = Manifest.of(memoryview(CONTENT)[:CHUNK])
    assert not TRUE.includes(first, CHUNK)
