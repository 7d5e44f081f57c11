"""Content hashes of KV blocks: equal prefixes have equal chains, so their KV can be shared.

The hash of a block covers its tokens and everything before them. It is BLAKE2b of 128 bits: a collision would answer
one client with another's context, so a fast non-cryptographic hash is no option. Knows nothing of where blocks live.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

_DIGEST_BYTES = 16
_TOKEN_BYTES = 4


def block_hashes(tokens: Sequence[int], block_tokens: int) -> list[bytes]:
    """The chain over all whole blocks of `tokens`: one 16-byte hash per block, in order."""
    return extend_hashes([], tokens, block_tokens)


def extend_hashes(chain: list[bytes], tokens: Sequence[int], block_tokens: int) -> list[bytes]:
    """Append to `chain`, which covers the first blocks of `tokens`, the hashes of the whole blocks that follow."""
    done = len(chain)
    total = len(tokens) // block_tokens
    if done == total:
        return chain
    data = memoryview(array("I", tokens[done * block_tokens : total * block_tokens])).cast("B")
    stride = block_tokens * _TOKEN_BYTES
    parent = chain[-1] if chain else b""
    for start in range(0, len(data), stride):
        parent = blake2b(parent + data[start : start + stride], digest_size=_DIGEST_BYTES).digest()
        chain.append(parent)
    return chain


class PrefixResidency:
    """Which content one instance is believed to hold, as far as the control plane can know without asking.

    Optimistic: everything dispatched there counts as held, and the least recently used content beyond the instance's
    size as gone. A wrong belief costs a mispredicted prefill, nothing else.
    """

    def __init__(self, blocks_max: int) -> None:
        self._blocks_max = blocks_max
        self._held: OrderedDict[bytes, None] = OrderedDict()

    def longest(self, chain: Sequence[bytes]) -> int:
        """How many blocks of this chain, from its start, are believed to be there.

        A head is touched after its tail and evicted after it, so what is held of a chain is one stretch from its
        start, and halving finds its end.
        """
        if not chain or chain[0] not in self._held:
            return 0
        low, high = 1, len(chain)
        while low < high:
            middle = (low + high + 1) // 2
            if chain[middle - 1] in self._held:
                low = middle
            else:
                high = middle - 1
        return low

    def add(self, chain: Sequence[bytes]) -> None:
        # Heads are touched last, hence evicted last, as in the pool itself.
        for content in reversed(chain):
            self._held[content] = None
            self._held.move_to_end(content)
        while len(self._held) > self._blocks_max:
            self._held.popitem(last=False)
