"""The KV pool: one resident tensor, block-major, so that a block over all layers is one contiguous run of bytes.

That is what makes a sequence's move to another instance a short list of (source, target, length). The pool knows
neither who owns a block nor which are free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from hyperflexis.engine.config import ModelConfig


def ranges(source: Sequence[int], target: Sequence[int], block_bytes: int) -> list[tuple[int, int, int]]:
    """Return what copies these blocks of one pool into those of another: (source offset, target offset, bytes) of each.

    Ranges that adjoin are not joined: whoever moves bytes does that. A copy that is given up half-way may leave half a
    number behind: `KvPool.scrub` the target's blocks then.
    """
    return [(one * block_bytes, other * block_bytes, block_bytes) for one, other in zip(source, target, strict=True)]


class KvPool:
    """Keys and values of all sequences: `data[block, layer, 0 for keys or 1 for values, token, kv head, dim]`."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        device: torch.device | str,
        memory: memoryview | None = None,
    ) -> None:
        """Lie in `memory`, if there is one: of the host, writable, exactly as large as the blocks, and all zeros."""
        if blocks < 1 or block_tokens < 1:
            raise ValueError(f"a pool of {blocks} blocks of {block_tokens} tokens holds nothing")
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.layers = config.layers
        shape = (blocks, config.layers, 2, block_tokens, config.kv_heads, config.head_dim)
        # Zeroed, not empty: padded positions are weighted with 0, and 0 times a stray NaN would still be NaN.
        self.data = torch.zeros(shape, dtype=dtype, device=device) if memory is None else _within(memory, shape, dtype)

        # A "plane" is one block's keys or values of one layer; a "slot" is one token's share of a plane. Layer views
        # are shifted so that one index tensor, made for layer 0's keys, serves every layer.
        planes = self.data.view(blocks * config.layers * 2, -1)  # [planes, block_tokens * kv_heads * head_dim]
        slots = self.data.view(-1, *shape[-2:])  # [slots, kv_heads, head_dim]
        self.planes = [planes[2 * layer :] for layer in range(config.layers)]
        self.key_slots = [slots[2 * layer * block_tokens :] for layer in range(config.layers)]
        self.value_slots = [slots[(2 * layer + 1) * block_tokens :] for layer in range(config.layers)]

    @property
    def planes_per_block(self) -> int:
        return 2 * self.layers

    @property
    def bytes(self) -> int:
        return self.data.numel() * self.data.element_size()

    @property
    def bytes_per_block(self) -> int:
        return self.bytes // self.blocks

    @staticmethod
    def block_bytes(config: ModelConfig, block_tokens: int, dtype: torch.dtype) -> int:
        """Return what one block costs, over all layers."""
        return math.prod((config.layers, 2, block_tokens, config.kv_heads, config.head_dim)) * dtype.itemsize

    def drop(self) -> None:
        """Give the memory back; nothing may be computed until `restore`. Not for a pool in memory of its owner's."""
        self.data.untyped_storage().resize_(0)

    def restore(self) -> None:
        """Have the memory back, all zeros. Views of it are views of it again."""
        self.data.untyped_storage().resize_(self.bytes)
        self.data.zero_()

    def scrub(self, blocks: list[int]) -> None:
        """Replace what is not finite by 0, so that a failed sequence leaves nothing that poisons the next owner."""
        index = torch.tensor(blocks, device=self.data.device)
        self.data.index_copy_(0, index, self.data.index_select(0, index).nan_to_num_(0.0, 0.0, 0.0))


def _within(memory: memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    needed = math.prod(shape) * dtype.itemsize
    if memory.nbytes != needed:
        raise ValueError(f"the pool takes {needed} bytes, and {memory.nbytes} were given")
    return torch.frombuffer(memory, dtype=dtype).view(shape)
