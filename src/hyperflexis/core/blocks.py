"""Whose KV lives in which block: allocation, sharing by content, eviction.

A block is held (someone computes with it), cached (nobody does, but its content may be wanted again) or free. Cached
blocks are free to whoever needs one; the least recently used goes first. Only blocks with known content can be shared,
so only those have their holders counted; any other held block has one. Who never looks into a block may have it lent,
without a name: it is counted and no more. Conservation, held + lent + cached + free = all, is checked by `check`. Knows
block ids and hashes, no tensor.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """Blocks 0 .. blocks-1 of `block_tokens` tokens each."""

    def __init__(self, blocks: int, block_tokens: int) -> None:
        if blocks < 1 or block_tokens < 1:
            raise ValueError(f"a pool needs at least one block of one token, not {blocks} of {block_tokens}")
        self.blocks = blocks
        self.block_tokens = block_tokens
        self._free: list[int] = []
        """Blocks that were given back, the one to be given next last."""
        self._fresh = 0
        """The first block that was never given: this one and all above it are free too."""
        self._lent = 0
        """How many of the free blocks somebody has without their names."""
        self._empty = blocks
        """How many nobody has."""
        self._content: dict[int, bytes | None] = {}
        """Blocks that were published, held or cached; None once their content was disowned while several held it."""
        self._by_hash: dict[bytes, int] = {}
        self._holders: dict[int, int] = {}
        """How many hold each block of known content that is not cached."""
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def blocks_free(self) -> int:
        """Blocks that `take` could give now, cached ones included."""
        return self._empty + len(self._cached)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def find(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks that already hold the longest prefix of this chain. They are not held until `hold`."""
        found = []
        for content in hashes:
            block = self._by_hash.get(content)
            if block is None:
                break
            found.append(block)
        return found

    def free_beside(self, blocks: Iterable[int]) -> int:
        """Blocks that `take` could give once these, which `find` gave, are held."""
        return self.blocks_free - sum([1 for block in blocks if block in self._cached])

    def hold(self, blocks: Iterable[int]) -> None:
        """Share blocks that `find` gave."""
        for block in blocks:
            if block in self._cached:
                del self._cached[block]
                self._holders[block] = 1
            else:
                self._holders[block] += 1

    def take(self, count: int) -> list[int]:
        """Blocks with no content, held once.

        Raises:
            AssertionError: there are fewer; ask `blocks_free` first.
        """
        free, empty = self._free, self._empty
        if count > empty:
            assert count <= self.blocks_free, f"{count} blocks wanted, {self.blocks_free} free"
            evicted = [self._evict() for _ in range(count - empty)]
            return self.take(empty) + evicted
        if count > len(free):
            given_back = self.take(len(free))
            first, self._fresh = self._fresh, self._fresh + count - len(given_back)
            self._empty -= self._fresh - first
            return [*given_back, *range(first, self._fresh)]
        self._empty -= count
        if count == 1:
            return [free.pop()]
        taken = free[len(free) - count :]
        del free[len(free) - count :]
        taken.reverse()
        return taken

    def lend(self, count: int) -> None:
        """Set blocks with no content aside, without saying which.

        Raises:
            AssertionError: there are fewer; ask `blocks_free` first.
        """
        if count > self._empty:
            assert count <= self.blocks_free, f"{count} blocks wanted, {self.blocks_free} free"
            for _ in range(count - self._empty):
                self._put_back(self._evict())
        self._empty -= count
        self._lent += count

    def take_back(self, count: int) -> None:
        """So many of the blocks that were lent are wanted no more."""
        assert count <= self._lent, f"{count} blocks are given back, {self._lent} were lent"
        self._lent -= count
        self._empty += count

    def release(self, blocks: Sequence[int]) -> None:
        """Let go, last block first, so that the tail of a prefix is evicted before its head."""
        if not self._content:
            self._free.extend(reversed(blocks))
            self._empty += len(blocks)
            return
        for block in reversed(blocks):
            if block not in self._content:
                self._put_back(block)
                continue
            holders = self._holders.pop(block, 0) - 1
            assert holders >= 0, f"block {block} is released but not held"
            if holders:
                self._holders[block] = holders
            elif self._content[block] is None:
                del self._content[block]
                self._put_back(block)
            else:
                self._cached[block] = None

    def publish(self, block: int, content: bytes) -> None:
        """Say that a held block is full and what it holds. The first block with some content is the one shared."""
        if content not in self._by_hash and block not in self._content:
            self._by_hash[content] = block
            self._content[block] = content
            self._holders[block] = 1

    def has_content(self, block: int) -> bool:
        """Whether it was published, so that others may share it."""
        return block in self._content

    def disown(self, blocks: Sequence[int]) -> None:
        """Their content is not what it was published as: nobody may find it any more."""
        for block in blocks:
            content = self._content.get(block)
            if content is None:
                continue
            del self._by_hash[content]
            if block in self._cached:
                del self._cached[block], self._content[block]
                self._put_back(block)
            else:
                self._content[block] = None

    def forget(self) -> None:
        """Drop all cached content that nobody holds."""
        while self._cached:
            self._put_back(self._evict())

    def _put_back(self, block: int) -> None:
        self._free.append(block)
        self._empty += 1

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        content = self._content.pop(block)
        assert content is not None, f"block {block} is cached without content"
        del self._by_hash[content]
        return block

    def check(self) -> None:
        """Every block is in at most one place, and every content is where the index says."""
        counted, free, cached = set(self._holders), self._all_free(), set(self._cached)
        assert len(free) == len(self._free) + self.blocks - self._fresh, f"a block is free twice: {self!r}"
        assert 0 <= self._lent == len(free) - self._empty, f"a free block is neither lent nor empty: {self!r}"
        assert self._empty >= 0, f"more blocks are lent than there are: {self!r}"
        assert counted.isdisjoint(free | cached), f"a held block is also free: {self!r}"
        assert free.isdisjoint(cached), f"a free block is also cached: {self!r}"
        assert len(counted) + len(free) + len(cached) <= self.blocks, f"there are too many blocks: {self!r}"
        assert counted | cached == self._content.keys(), f"a published block is neither held nor cached: {self!r}"
        assert all(holders > 0 for holders in self._holders.values()), f"a block is held by nobody: {self!r}"
        known = {content: block for block, content in self._content.items() if content is not None}
        assert known == self._by_hash, f"the index is wrong: {self!r}"

    def _all_free(self) -> set[int]:
        """Lent ones among them."""
        return {*self._free, *range(self._fresh, self.blocks)}

    def check_holders(self, holders: dict[int, int], lent: int = 0) -> None:
        """The caller's own count of who holds each block, and of what it was lent, is the pool's; no block is lost."""
        assert lent == self._lent, f"{self._lent} blocks were lent, callers have {lent}"
        counted = {block: count for block, count in holders.items() if block in self._content}
        assert counted == self._holders, f"holders differ: pool {self._holders}, callers {counted}"
        private = [block for block in holders if block not in self._content]
        assert all(holders[block] == 1 for block in private), f"a block without content is shared: {holders}"
        free = self._all_free()
        assert free.isdisjoint(private), f"a held block is free: {self!r}"
        total = len(holders) + len(free) + len(self._cached)
        assert total == self.blocks, f"{self.blocks - total} blocks were lost: {self!r}"

    def __repr__(self) -> str:
        cached, free, lent = len(self._cached), self._empty, self._lent
        held = self.blocks - lent - cached - free
        return f"BlockPool(held={held}, lent={lent}, cached={cached}, free={free}, blocks={self.blocks})"
