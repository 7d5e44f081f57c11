"""Blocks against a naive model: nothing is lost or given twice, what is wanted again is evicted last."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hyperflexis.core.blocks import BlockPool

BLOCK_TOKENS = 4


def chain(*contents: int) -> list[bytes]:
    return [bytes([content]) for content in contents]


@dataclass
class Naive:
    """The same pool with lists and dictionaries, written without a thought for speed."""

    blocks: int
    holders: dict[int, int] = field(default_factory=dict)
    content: dict[int, bytes] = field(default_factory=dict)
    unused: list[int] = field(default_factory=list)
    """Published blocks that nobody holds, least recently let go first."""
    lent: int = 0

    @property
    def free(self) -> int:
        return self.blocks - len(self.holders) - self.lent

    def find(self, wanted: list[bytes]) -> list[int]:
        where = {content: block for block, content in self.content.items()}
        found = []
        for content in wanted:
            if content not in where:
                break
            found.append(where[content])
        return found

    def hold(self, block: int) -> None:
        self.holders[block] = self.holders.get(block, 0) + 1
        self.unused = [other for other in self.unused if other != block]

    def evict_for(self, count: int) -> None:
        evicted = max(0, count - (self.free - len(self.unused)))
        for block in self.unused[:evicted]:
            del self.content[block]
        self.unused = self.unused[evicted:]

    def take(self, blocks: list[int]) -> None:
        self.evict_for(len(blocks))
        for block in blocks:
            assert block not in self.holders, f"{block} was given though somebody holds it"
            assert block not in self.unused, f"{block} was evicted before its turn"
            assert block not in self.content
            self.holders[block] = 1

    def release(self, block: int) -> None:
        self.holders[block] -= 1
        if not self.holders[block]:
            del self.holders[block]
            if block in self.content:
                self.unused.append(block)

    def publish(self, block: int, content: bytes) -> None:
        if content not in self.content.values() and block not in self.content:
            self.content[block] = content


class PoolMachine(RuleBasedStateMachine):
    """Holders come and go, each with the blocks of one text."""

    @initialize(blocks=st.integers(1, 8))
    def start(self, blocks: int) -> None:
        self.pool = BlockPool(blocks, BLOCK_TOKENS)
        self.naive = Naive(blocks)
        self.held: list[list[int]] = []

    @rule(count=st.integers(0, 8))
    def take(self, count: int) -> None:
        assert self.pool.blocks_free == self.naive.free
        if count > self.pool.blocks_free:
            with pytest.raises(AssertionError, match="blocks wanted"):
                self.pool.take(count)
            return
        taken = self.pool.take(count)
        assert len(set(taken)) == count
        self.naive.take(taken)
        self.held.append(taken)

    @rule(count=st.integers(0, 8))
    def lend(self, count: int) -> None:
        if count > self.pool.blocks_free:
            with pytest.raises(AssertionError, match="blocks wanted"):
                self.pool.lend(count)
            return
        self.pool.lend(count)
        self.naive.evict_for(count)
        self.naive.lent += count

    @rule(count=st.integers(0, 8))
    def take_back(self, count: int) -> None:
        if count > self.naive.lent:
            with pytest.raises(AssertionError, match="were lent"):
                self.pool.take_back(count)
            return
        self.pool.take_back(count)
        self.naive.lent -= count

    @rule(wanted=st.lists(st.integers(0, 5), max_size=4))
    def share(self, wanted: list[int]) -> None:
        found = self.pool.find(chain(*wanted))
        assert found == self.naive.find(chain(*wanted))
        found = list(dict.fromkeys(found))
        self.pool.hold(found)
        for block in found:
            self.naive.hold(block)
        self.held.append(found)

    @precondition(lambda self: any(self.held))
    @rule(data=st.data(), content=st.integers(0, 5))
    def publish(self, data: st.DataObject, content: int) -> None:
        block = data.draw(st.sampled_from([block for blocks in self.held for block in blocks]))
        self.pool.publish(block, chain(content)[0])
        self.naive.publish(block, chain(content)[0])

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        blocks = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.release(blocks)
        for block in reversed(blocks):
            self.naive.release(block)

    @rule()
    def forget(self) -> None:
        self.pool.forget()
        for block in self.naive.unused:
            del self.naive.content[block]
        self.naive.unused = []

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check()
        self.pool.check_holders(self.naive.holders, self.naive.lent)
        assert self.pool.blocks_free == self.naive.free
        contents = {content: block for block, content in self.naive.content.items()}
        assert all(self.pool.find([content]) == [block] for content, block in contents.items())


TestPoolMachine = PoolMachine.TestCase


def test_first_blocks_are_given_in_order_and_then_the_last_that_came_back() -> None:
    pool = BlockPool(6, 4)
    taken = pool.take(2)
    assert (taken, pool.take(2)) == ([0, 1], [2, 3])
    pool.release(taken)
    assert pool.take(3) == [0, 1, 4]
    assert pool.take(1) == [5]


def test_blocks_for_rounds_up() -> None:
    pool = BlockPool(3, 4)
    assert [pool.blocks_for(tokens) for tokens in (0, 1, 4, 5)] == [0, 1, 1, 2]


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (-1, 1)])
def test_empty_pool_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least one block"):
        BlockPool(*size)


def test_tail_of_a_prefix_is_evicted_before_its_head() -> None:
    pool = BlockPool(3, 4)
    blocks = pool.take(3)
    for block, content in zip(blocks, chain(1, 2, 3), strict=True):
        pool.publish(block, content)
    pool.release(blocks)
    pool.take(1)
    assert pool.find(chain(1, 2, 3)) == blocks[:2]


def test_free_blocks_go_before_cached_ones_and_no_more_are_evicted_than_needed() -> None:
    pool = BlockPool(6, 4)
    blocks = pool.take(4)
    for block, content in zip(blocks, chain(1, 2, 3, 4), strict=True):
        pool.publish(block, content)
    pool.release(blocks)
    assert len(pool.take(3)) == 3
    assert pool.find(chain(1, 2, 3, 4)) == blocks[:3]


def test_first_block_with_some_content_is_the_one_shared() -> None:
    pool = BlockPool(2, 4)
    first, second = pool.take(2)
    pool.publish(first, b"x")
    pool.publish(second, b"x")
    assert pool.find([b"x"]) == [first]
    pool.release([second])
    pool.check()
    assert pool.take(1) == [second]


def test_releasing_a_published_block_that_nobody_holds_fails() -> None:
    pool = BlockPool(1, 4)
    blocks = pool.take(1)
    pool.publish(blocks[0], b"x")
    pool.release(blocks)
    with pytest.raises(AssertionError, match="not held"):
        pool.release(blocks)


def test_disowned_block_is_free_once_its_last_holder_lets_go() -> None:
    pool = BlockPool(2, 4)
    blocks = pool.take(1)
    pool.publish(blocks[0], b"x")
    pool.hold(pool.find([b"x"]))
    pool.disown(blocks)
    assert pool.find([b"x"]) == []
    (other,) = pool.take(1)
    pool.publish(other, b"x")
    pool.release(blocks)
    pool.release(blocks)
    pool.check()
    assert pool.find([b"x"]) == [other]
    assert pool.blocks_free == 1


def test_check_finds_a_block_in_two_places() -> None:
    pool = BlockPool(2, 4)
    pool.take(1)
    pool._free.append(1)
    with pytest.raises(AssertionError, match="free"):
        pool.check()
    with pytest.raises(AssertionError, match="is free"):
        pool.check_holders({1: 1})
