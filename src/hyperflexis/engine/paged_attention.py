"""Attention that reads the pool through block tables, where this device has such a kernel; and the choice of a way.

torch's paged flash kernel is found by its arguments, not by version, and is used only after it has agreed with the
reference (`GatherAttention`) on a small random step on this very device. Whatever goes wrong before that is an answer:
the reference serves.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hyperflexis.engine.attention import Attention, GatherAttention, to_device
from hyperflexis.engine.batch import BlockTables, PackedBatch, SequenceSlice, pack
from hyperflexis.engine.config import ModelConfig
from hyperflexis.engine.kv import KvPool


@dataclass(slots=True)
class VarlenPlan:
    """Arguments that all layers share."""

    query_ends: torch.Tensor
    """int32 [S + 1] cumulative."""
    contexts: torch.Tensor
    """int32 [S]"""
    blocks: torch.Tensor
    """int32 [S, blocks]"""
    query_max: int
    context_max: int


class VarlenAttention:
    """One call of torch's paged flash kernel for the whole packed step."""

    def __init__(self, config: ModelConfig, pool: KvPool, kernel: Any) -> None:
        self._kernel = kernel
        self._pool = pool
        self._is_grouped = config.heads != config.kv_heads

    def plan(self, batch: PackedBatch, tables: BlockTables) -> VarlenPlan:
        device = self._pool.data.device
        contexts = batch.starts + batch.counts
        context_max = int(contexts.max())
        blocks = tables.planes[batch.rows, : -(-context_max // tables.block_tokens)] // self._pool.planes_per_block
        ends = np.concatenate(([0], np.cumsum(batch.counts)))
        return VarlenPlan(
            query_ends=torch.from_numpy(ends.astype(np.int32)).to(device, non_blocking=True),
            contexts=torch.from_numpy(contexts.astype(np.int32)).to(device, non_blocking=True),
            blocks=torch.from_numpy(blocks.astype(np.int32)).to(device, non_blocking=True),
            query_max=int(batch.counts.max()),
            context_max=context_max,
        )

    def attend(self, plan: VarlenPlan, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        data = self._pool.data
        out: torch.Tensor = self._kernel(
            q,
            data[:, layer, 0],  # [blocks, block_tokens, kv_heads, head_dim]
            data[:, layer, 1],
            plan.query_ends,
            None,
            plan.query_max,
            plan.context_max,
            window_size=(-1, 0),  # causal, aligned to the end of each context
            enable_gqa=self._is_grouped,
            seqused_k=plan.contexts,
            block_table=plan.blocks,
        )
        return out.flatten(1)


def choose_attention(config: ModelConfig, pool: KvPool) -> Attention:
    """Return the paged kernel where this device has one that agrees with the reference, else the reference."""
    kernel = _paged_kernel() if _is_accelerator(pool.data.device) else None
    if kernel is not None and agrees_with_reference(config, pool, kernel):
        return VarlenAttention(config, pool, kernel)
    return GatherAttention(config, pool)


def _is_accelerator(device: torch.device) -> bool:
    return device.type != "cpu"


def _paged_kernel() -> Any:
    """Return torch's varlen attention if it takes block tables. Its arguments, not its version, tell."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    accepts = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"block_table", "seqused_k", "window_size", "enable_gqa"} <= accepts.keys() else None


def agrees_with_reference(config: ModelConfig, pool: KvPool, kernel: Any) -> bool:
    """Compute a small random step both ways: decodes, a prompt and a continuing chunk, over scattered blocks."""
    single = replace(config, layers=1)
    trial = KvPool(single, blocks=12, block_tokens=pool.block_tokens, dtype=pool.data.dtype, device=pool.data.device)
    length = pool.block_tokens
    # (tokens, start): no case outgrows its three blocks, whatever the block's length.
    cases = [(1, length), (1, 2 * length - 1), (length + 1, 0), (length + 1, (length + 1) // 2)]
    tables = BlockTables(length, trial.planes_per_block)
    blocks = [[3, 1, 0], [7, 5, 6], [2, 11, 8], [10, 4, 9]]
    slices = [SequenceSlice(i, [0] * n, start, blocks[i], sample=False) for i, (n, start) in enumerate(cases)]
    rows = [tables.open() for _ in slices]
    for row, each in zip(rows, slices, strict=True):
        tables.update(row, each.blocks, each.start, each.start + len(each.tokens))
    batch = pack(slices, rows, tables)
    generator = torch.Generator().manual_seed(0)

    def deviates(heads: int) -> torch.Tensor:
        values = torch.randn((len(batch.ids), heads, config.head_dim), generator=generator)
        return values.to(device=pool.data.device, dtype=pool.data.dtype)

    q, k, v = deviates(config.heads), deviates(config.kv_heads), deviates(config.kv_heads)
    trial.data.copy_(torch.randn(trial.data.shape, generator=generator))
    slots = to_device(batch.slots, pool.data.device)
    trial.key_slots[0].index_copy_(0, slots, k)
    trial.value_slots[0].index_copy_(0, slots, v)
    reference, candidate = GatherAttention(single, trial), VarlenAttention(single, trial, kernel)
    expected = reference.attend(reference.plan(batch, tables), 0, q, k, v).float()
    try:
        actual = candidate.attend(candidate.plan(batch, tables), 0, q, k, v).float()
    except Exception:  # noqa: BLE001 - whatever a foreign kernel raises, the answer is that it does not serve here
        return False
    tolerance = 1e-4 if pool.data.dtype == torch.float32 else 3e-2
    return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=tolerance, atol=tolerance)
