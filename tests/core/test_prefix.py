"""Hash chains say exactly whether two texts begin alike; residency remembers what was dispatched, within bounds."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.core.prefix import PrefixResidency, block_hashes, extend_hashes

TEXTS = st.lists(st.integers(0, 2), max_size=24)
SIZES = st.integers(1, 5)


def common_blocks(one: Sequence[int], other: Sequence[int], size: int) -> int:
    """Whole blocks at the beginning in which two texts are equal, counted token by token."""
    equal = 0
    while equal < min(len(one), len(other)) and one[equal] == other[equal]:
        equal += 1
    return equal // size


@given(TEXTS, TEXTS, SIZES)
def test_chains_agree_exactly_as_far_as_texts_do(one: list[int], other: list[int], size: int) -> None:
    agree = [a == b for a, b in zip(block_hashes(one, size), block_hashes(other, size), strict=False)]
    common = common_blocks(one, other, size)
    assert agree[:common] == [True] * common
    assert not any(agree[common:]), "texts that differ before a block must not share it"


@given(TEXTS, SIZES)
def test_one_hash_of_16_bytes_per_whole_block(text: list[int], size: int) -> None:
    chain = block_hashes(text, size)
    assert len(chain) == len(text) // size
    assert all(len(content) == 16 for content in chain)


@given(TEXTS, SIZES, st.integers(0, 24))
def test_extending_is_the_same_as_hashing_from_the_start(text: list[int], size: int, cut: int) -> None:
    chain = block_hashes(text[:cut], size)
    assert extend_hashes(chain, text, size) is chain
    assert chain == block_hashes(text, size)


def test_block_size_is_part_of_where_a_block_ends_not_of_its_hash_alone() -> None:
    """Texts of equal tokens under other block sizes give other chains, as their blocks hold other tokens."""
    assert set(block_hashes(range(12), 2)).isdisjoint(block_hashes(range(12), 3))


def test_token_ids_of_four_bytes_are_told_apart() -> None:
    assert block_hashes([1, 0], 1) != block_hashes([1, 2**32 - 1], 1)


class Recent:
    """Residency as a plain list, least recently used content first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held: list[bytes] = []

    def add(self, chain: Sequence[bytes]) -> None:
        for content in reversed(chain):
            self.held = [other for other in self.held if other != content] + [content]
        self.held = self.held[max(0, len(self.held) - self.most) :]

    def longest(self, chain: Sequence[bytes]) -> int:
        return next((i for i, content in enumerate(chain) if content not in self.held), len(chain))


@given(st.integers(0, 6), st.lists(st.tuples(st.booleans(), TEXTS), max_size=12), SIZES)
def test_residency_is_the_most_recently_used_content(most: int, uses: list[tuple[bool, list[int]]], size: int) -> None:
    residency, recent = PrefixResidency(most), Recent(most)
    for is_added, text in uses:
        chain = block_hashes(text, size)
        assert residency.longest(chain) == recent.longest(chain)
        if is_added:
            residency.add(chain)
            recent.add(chain)


CHAINS = st.lists(st.integers(0, 1), max_size=8).map(lambda path: [bytes(path[: n + 1]) for n in range(len(path))])
"""Paths in a binary tree: each content is all that went before it, as with real chains."""


@given(st.integers(0, 9), st.lists(CHAINS, max_size=20), CHAINS)
def test_halving_finds_what_a_walk_would_whatever_was_evicted(
    most: int, added: list[list[bytes]], asked: list[bytes]
) -> None:
    residency = PrefixResidency(most)
    for chain in added:
        residency.add(chain)
        held = [content in residency._held for content in asked]
        assert residency.longest(asked) == next((i for i, is_held in enumerate(held) if not is_held), len(asked))
        assert held == sorted(held, reverse=True), "a tail is held without its head"
        assert len(residency._held) <= most


def test_heads_of_prefixes_are_kept_longest() -> None:
    residency = PrefixResidency(3)
    residency.add([b"1", b"2", b"3"])
    residency.add([b"x"])
    assert residency.longest([b"1", b"2", b"3"]) == 2
