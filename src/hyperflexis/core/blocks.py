"""Whose KV lives in which block: allocation, sharing by content, eviction.

A block is held (someone computes with it), cached (nobody does, but its content may be wanted again) or free. Cached
blocks are free to whoever needs one; the least recently used goes first. Conservation, held + cached + free = all, is
checked by `check`. Knows block ids and hashes, no tensor.
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
        self._free = list(range(blocks - 1, -1, -1))
        self._holders = [0] * blocks
        self._hash: list[bytes | None] = [None] * blocks
        self._by_hash: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def blocks_free(self) -> int:
        """Blocks that `take` could give now, cached ones included."""
        return len(self._free) + len(self._cached)

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

    def hold(self, blocks: Iterable[int]) -> None:
        """Share blocks that `find` gave."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._cached[block]
            self._holders[block] += 1

    def take(self, count: int) -> list[int]:
        """Blocks with no content, held once.

        Raises:
            AssertionError: there are fewer; ask `blocks_free` first.
        """
        assert count <= self.blocks_free, f"{count} blocks wanted, {self.blocks_free} free"
        taken = []
        for _ in range(count):
            block = self._free.pop() if self._free else self._evict()
            self._holders[block] = 1
            taken.append(block)
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Let go, last block first, so that the tail of a prefix is evicted before its head."""
        for block in reversed(blocks):
            assert self._holders[block] > 0, f"block {block} is released but not held"
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if self._hash[block] is None:
                self._free.append(block)
            else:
                self._cached[block] = None

    def publish(self, block: int, content: bytes) -> None:
        """Say that a held block is full and what it holds. The first block with some content is the one shared."""
        assert self._holders[block] > 0, f"block {block} is published but not held"
        if content not in self._by_hash and self._hash[block] is None:
            self._by_hash[content] = block
            self._hash[block] = content

    def disown(self, blocks: Sequence[int]) -> None:
        """Their content is not what it was published as: nobody may find it any more."""
        for block in blocks:
            content = self._hash[block]
            if content is None:
                continue
            del self._by_hash[content]
            self._hash[block] = None
            if block in self._cached:
                del self._cached[block]
                self._free.append(block)

    def forget(self) -> None:
        """Drop all cached content that nobody holds."""
        while self._cached:
            self._free.append(self._evict())

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        content = self._hash[block]
        assert content is not None
        del self._by_hash[content]
        self._hash[block] = None
        return block

    def check(self) -> None:
        """Every block is in exactly one place, and every content is where the index says."""
        held = {block for block, holders in enumerate(self._holders) if holders}
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), f"a block is free twice: {self!r}"
        assert held.isdisjoint(free | cached), f"a held block is also free: {self!r}"
        assert free.isdisjoint(cached), f"a free block is also cached: {self!r}"
        assert len(held) + len(free) + len(cached) == self.blocks, f"blocks were lost: {self!r}"
        assert all(self._hash[block] == content for content, block in self._by_hash.items()), repr(self)
        assert all(self._hash[block] is None for block in free), f"a free block has content: {self!r}"
        assert sum(content is not None for content in self._hash) == len(self._by_hash), repr(self)

    def check_holders(self, holders: dict[int, int]) -> None:
        """The caller's own count of who holds each block agrees with the pool's."""
        mine = {block: count for block, count in enumerate(self._holders) if count}
        assert mine == holders, f"holders differ: pool {mine}, callers {holders}"

    def __repr__(self) -> str:
        held = sum(1 for holders in self._holders if holders)
        return f"BlockPool(held={held}, cached={len(self._cached)}, free={len(self._free)}, blocks={self.blocks})"
