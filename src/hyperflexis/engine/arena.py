"""Where each weight lies in one flat buffer: the layout that is loaded into, shared between processes, and swapped.

Matrices that are multiplied by the same input are fused (q, k and v in one; gate and up in one), and a tied output
projection is the embedding itself. The layout knows no files and no values. Its hash names it: two processes whose
hashes agree may exchange arenas byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch

from hyperflexis.engine.config import ModelConfig

ALIGNMENT_BYTES = 256
"""A multiple of every cache line, of CUDA's allocation granule and of what direct transfers ask for."""

Buffer: TypeAlias = "bytes | bytearray | memoryview | torch.Tensor"
"""Anything with the buffer protocol (an mmap too), or a flat uint8 tensor on any device."""


@dataclass(frozen=True, slots=True)
class ArenaEntry:
    """One tensor's place."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class ArenaLayout:
    """The manifest: name → place, in the order in which the bytes lie."""

    entries: dict[str, ArenaEntry]
    bytes: int

    @classmethod
    def of(cls, config: ModelConfig, dtype: torch.dtype) -> ArenaLayout:
        entries: dict[str, ArenaEntry] = {}
        offset = 0
        for name, shape in _shapes(config):
            entries[name] = ArenaEntry(offset, shape, dtype)
            offset += -(-entries[name].bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return cls(entries, offset)

    @cached_property
    def hash(self) -> str:
        """Hex digest over every name, offset, shape and dtype."""
        rows = [[name, at.offset, list(at.shape), str(at.dtype)] for name, at in self.entries.items()]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def allocate(self) -> torch.Tensor:
        """Return a buffer of this process's own, aligned for vector loads.

        A bytearray is not: its bytes begin 16 past a boundary.
        """
        return torch.empty(self.bytes, dtype=torch.uint8)

    def views(self, buffer: Buffer) -> dict[str, torch.Tensor]:
        """Return every tensor as a view of the buffer; nothing is copied."""
        flat = flat_bytes(buffer)
        if flat.numel() < self.bytes:
            raise ValueError(f"the buffer has {flat.numel()} bytes, the layout needs {self.bytes}")
        return {
            name: flat[at.offset : at.offset + at.bytes].view(at.dtype).view(at.shape)
            for name, at in self.entries.items()
        }


def flat_bytes(buffer: Buffer) -> torch.Tensor:
    """Return the buffer as a uint8 tensor that shares its memory."""
    if isinstance(buffer, torch.Tensor):
        return buffer.view(torch.uint8).view(-1)
    with warnings.catch_warnings():
        # Attaching another process's arena read-only is the normal case; nothing here writes to it.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(buffer, dtype=torch.uint8)


def _shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, ffn = config.hidden_size, config.intermediate_size
    q_rows = config.heads * config.head_dim
    qkv_rows = q_rows + 2 * config.kv_heads * config.head_dim
    yield "embed", (config.vocab_size, hidden)
    for layer in range(config.layers):
        at = f"layers.{layer}."
        yield at + "attention_norm", (hidden,)
        yield at + "qkv", (qkv_rows, hidden)
        if config.qkv_bias:
            yield at + "qkv_bias", (qkv_rows,)
        if config.qk_norm:
            yield at + "q_norm", (config.head_dim,)
            yield at + "k_norm", (config.head_dim,)
        yield at + "o", (hidden, q_rows)
        if config.o_bias:
            yield at + "o_bias", (hidden,)
        yield at + "mlp_norm", (hidden,)
        yield at + "gate_up", (2 * ffn, hidden)
        if config.mlp_bias:
            yield at + "gate_up_bias", (2 * ffn,)
        yield at + "down", (hidden, ffn)
        if config.mlp_bias:
            yield at + "down_bias", (hidden,)
    yield "norm", (hidden,)
    if not config.tie_word_embeddings:
        yield "lm_head", (config.vocab_size, hidden)
