"""Causal attention over the paged KV pool, for a packed step of decodes and prompt chunks of any mix.

`GatherAttention` runs everywhere and is the reference: gather a group's blocks into a resident buffer, then
`scaled_dot_product_attention`. `paged_attention` has the way that needs no gathering, where a device offers one.

Keys and values of the step's own tokens are in the pool before `attend` is called. This file knows neither weights
nor rotary embedding.

Measured (2 AMD EPYC cores, one thread): advanced indexing is 4-5 times slower than `index_select` of whole planes; in
bf16 a one-token query with `enable_gqa` is 6 times slower than query heads folded into the query length; gathering
all of a large batch before computing any of it is up to 1.4 times slower than doing so group by group, within the
cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from hyperflexis.engine.batch import BlockTables, Ints, PackedBatch
from hyperflexis.engine.config import ModelConfig
from hyperflexis.engine.kv import KvPool

DECODE_GROUP_OVERHEAD_TOKENS = 256
"""A further group of decodes is worth its kernel launches when it saves at least this many padded context tokens."""
GATHER_BYTES_MAX = 1 << 20
"""On a CPU, decodes are gathered and computed in groups of about so much KV per layer."""
PREFILL_GROUP_OVERHEAD_TOKENS = 64
"""The same for prompt chunks, in padded query tokens."""
TILE_TOKENS = 256
"""Chunks that continue a long context are computed in tiles of so many queries."""
BATCHED_MASK_ELEMENTS_MAX = 1 << 20
"""Continuing chunks whose padded mask would be larger are computed one by one."""


class Attention(Protocol):
    """What the model needs of either way."""

    def plan(self, batch: PackedBatch, tables: BlockTables) -> Any:
        """Work out, once per step, what all layers share."""

    def attend(self, plan: Any, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Return `[N, heads * head_dim]` for q `[N, heads, head_dim]` and the step's own k and v `[N, kv_heads, …]`."""


def split_similar(sizes: Ints, overhead: int) -> list[tuple[int, int]]:
    """Cut sizes (descending) into runs, so that padding each run to its largest wastes little."""
    count = len(sizes)
    if count == 0:
        return []
    if (sizes[0] - sizes[-1]) * count <= overhead:
        return [(0, count)]
    runs: list[tuple[int, int]] = []
    begin = 0
    listed: list[int] = sizes.tolist()
    for index, size in enumerate(listed):
        # Cutting here spares everything that follows the padding up to the run's largest.
        if (listed[begin] - size) * (count - index) > overhead:
            runs.append((begin, index))
            begin = index
    return [*runs, (begin, count)]


@dataclass(slots=True)
class Padding:
    """Index tensors between packed tokens and a `[sequences, queries]` rectangle."""

    sequences: int
    queries: int
    spread: torch.Tensor | None
    """[sequences * queries] packed index of each place; None where the rectangle is full."""
    collect: torch.Tensor | None
    """[tokens] place of each packed token."""

    @classmethod
    def of(cls, counts: Ints, device: torch.device) -> Padding:
        sequences, queries = len(counts), int(counts[0] if len(counts) == 1 else counts.max())
        if int(counts.min()) == queries:
            return cls(sequences, queries, None, None)
        places = np.arange(queries)
        offsets = np.cumsum(counts) - counts
        # Places past a chunk's end repeat its last token; nobody reads what they compute.
        spread = offsets[:, None] + np.minimum(places, counts[:, None] - 1)
        collect = np.flatnonzero(places < counts[:, None])
        return cls(sequences, queries, to_device(spread.reshape(-1), device), to_device(collect, device))

    def rectangle(self, packed: torch.Tensor) -> torch.Tensor:
        """`[tokens, heads, dim]` → `[sequences, heads, queries, dim]`."""
        padded = packed if self.spread is None else packed.index_select(0, self.spread)
        return padded.view(self.sequences, self.queries, *packed.shape[1:]).transpose(1, 2)

    def packed(self, rectangle: torch.Tensor) -> torch.Tensor:
        """`[sequences, heads, queries, dim]` → `[tokens, heads * dim]`."""
        rows = rectangle.transpose(1, 2).reshape(self.sequences * self.queries, -1)
        return rows if self.collect is None else rows.index_select(0, self.collect)


def to_device(array: Ints, device: torch.device) -> torch.Tensor:
    """Share the array's memory on the CPU; elsewhere copy without waiting."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.to(device, non_blocking=True)


@dataclass(slots=True)
class Gather:
    """Blocks of some sequences side by side: which planes to fetch, and what they are once fetched."""

    planes: torch.Tensor
    """[2 * sequences * blocks]: the key planes of all sequences, then their value planes."""
    target: torch.Tensor
    """The part of the resident buffer that they go to. Every layer overwrites the one before."""
    keys: torch.Tensor
    """[sequences, kv_heads, context, head_dim], a view of the target."""
    values: torch.Tensor


@dataclass(slots=True)
class DecodeGroup:
    """Single-token queries over contexts of similar length."""

    begin: int
    end: int
    gather: Gather
    mask: torch.Tensor | None
    """[sequences, 1, 1, context]; None where all contexts are equally long."""


@dataclass(slots=True)
class FreshGroup:
    """Whole prompts (or their first chunks) of similar length: no context but their own tokens."""

    begin: int
    end: int
    padding: Padding


@dataclass(slots=True)
class ContinuedGroup:
    """Chunks that see earlier tokens from the pool besides their own."""

    begin: int
    end: int
    padding: Padding
    gather: Gather
    tiles: list[tuple[int, int, int, torch.Tensor]]
    """(first query, end, context visible to the last, mask `[sequences or 1, 1, queries, context]`)."""


@dataclass(slots=True)
class GatherPlan:
    """The groups of a step, in packed order."""

    groups: list[DecodeGroup | FreshGroup | ContinuedGroup]


class CausalBand:
    """One resident mask from which every causal mask is a view: row i sees columns up to `before + i`.

    Each side doubles when it must grow, so it takes at most twice the longest context × `TILE_TOKENS` elements.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._before = self._after = 0
        self._band = torch.empty(0, dtype=dtype, device=device)

    def view(self, queries: int, prior: int, context: int) -> torch.Tensor:
        """Return `[queries, context]`: query i sees keys 0 … prior + i."""
        before, after = prior, context - prior
        if before > self._before or after > self._after:
            before = max(before, 2 * self._before) if before > self._before else self._before
            after = max(after, 2 * self._after, TILE_TOKENS) if after > self._after else self._after
            self._grow(before, after)
        first = self._before - prior
        return self._band[:queries, first : first + context]

    def _grow(self, before: int, after: int) -> None:
        self._before, self._after = before, after
        band = self._band.new_full((TILE_TOKENS, before + after), float("-inf"))
        self._band = band.triu_(before + 1)


class GatherAttention:
    """The reference: gather blocks, then scaled dot product attention."""

    def __init__(self, config: ModelConfig, pool: KvPool) -> None:
        self._heads, self._kv_heads, self._head_dim = config.heads, config.kv_heads, config.head_dim
        self._pool = pool
        self._device, self._dtype = pool.data.device, pool.data.dtype
        self._is_grouped = config.heads != config.kv_heads
        # A query of a single row takes a path that is twice as slow in bfloat16 as one of the same row twice.
        self._is_doubled = not self._is_grouped and self._dtype == torch.bfloat16 and self._device.type == "cpu"
        self._band = CausalBand(self._dtype, self._device)
        self._gathered = torch.empty((0, pool.planes[0].shape[1]), dtype=self._dtype, device=self._device)

    # Planning ---------------------------------------------------------------------------------------------------------

    def plan(self, batch: PackedBatch, tables: BlockTables) -> GatherPlan:
        groups: list[DecodeGroup | FreshGroup | ContinuedGroup] = []
        contexts = batch.starts + batch.counts
        for begin, end in split_similar(contexts[: batch.decodes], DECODE_GROUP_OVERHEAD_TOKENS):
            share = self._sequences_max(int(contexts[begin]))
            groups.extend(
                self._decode_group(batch, tables, contexts, at, min(at + share, end)) for at in range(begin, end, share)
            )
        fresh = batch.counts[batch.decodes : batch.fresh]
        for begin, end in split_similar(fresh, PREFILL_GROUP_OVERHEAD_TOKENS):
            groups.append(self._fresh_group(batch, batch.decodes + begin, batch.decodes + end))
        for begin, end in self._split_continued(batch):
            groups.append(self._continued_group(batch, tables, contexts, begin, end))
        return GatherPlan(groups)

    def _sequences_max(self, context: int) -> int:
        """Return how many sequences to gather at once, so that what was gathered is still in the cache when used."""
        if self._device.type != "cpu":
            return 1 << 30
        token_bytes = 2 * self._kv_heads * self._head_dim * self._dtype.itemsize
        return max(1, GATHER_BYTES_MAX // (context * token_bytes))

    def _decode_group(
        self, batch: PackedBatch, tables: BlockTables, contexts: Ints, begin: int, end: int
    ) -> DecodeGroup:
        context, shortest = int(contexts[begin]), int(contexts[end - 1])
        gather = self._gather(tables, batch.rows[begin:end], context)
        mask = None
        if shortest != context:
            hidden = np.arange(context) >= contexts[begin:end, None]
            bias = torch.from_numpy(np.where(hidden, np.float32("-inf"), np.float32(0.0)))
            mask = bias.to(device=self._device, dtype=self._dtype)[:, None, None]
        return DecodeGroup(begin, end, gather, mask)

    def _fresh_group(self, batch: PackedBatch, begin: int, end: int) -> FreshGroup:
        first, last = _token_range(batch, begin, end)
        return FreshGroup(first, last, Padding.of(batch.counts[begin:end], self._device))

    def _split_continued(self, batch: PackedBatch) -> list[tuple[int, int]]:
        """Batch chunks of similar context while they are short; the rest one by one."""
        contexts = (batch.starts + batch.counts)[batch.fresh :]
        runs: list[tuple[int, int]] = []
        for begin, end in split_similar(contexts, DECODE_GROUP_OVERHEAD_TOKENS):
            at, to = batch.fresh + begin, batch.fresh + end
            queries = int(batch.counts[at:to].max())
            elements = (to - at) * queries * int(contexts[begin])
            padded = (to - at) * queries - int(batch.counts[at:to].sum())
            if queries > TILE_TOKENS or elements > BATCHED_MASK_ELEMENTS_MAX or padded > (to - at) * TILE_TOKENS // 4:
                runs.extend((index, index + 1) for index in range(at, to))
            else:
                runs.append((at, to))
        return runs

    def _continued_group(
        self, batch: PackedBatch, tables: BlockTables, contexts: Ints, begin: int, end: int
    ) -> ContinuedGroup:
        context = int(contexts[begin])
        padding = Padding.of(batch.counts[begin:end], self._device)
        gather = self._gather(tables, batch.rows[begin:end], context)
        starts: list[int] = batch.starts[begin:end].tolist()
        if len(starts) > 1:
            masks = torch.stack([self._band.view(padding.queries, start, context) for start in starts])
            tiles = [(0, padding.queries, context, masks[:, None])]
        else:
            tiles = []
            for first in range(0, padding.queries, TILE_TOKENS):
                last = min(first + TILE_TOKENS, padding.queries)
                visible = starts[0] + last
                mask = self._band.view(last - first, starts[0] + first, visible)
                tiles.append((first, last, visible, mask[None, None]))
        first_token, last_token = _token_range(batch, begin, end)
        return ContinuedGroup(first_token, last_token, padding, gather, tiles)

    def _gather(self, tables: BlockTables, rows: Ints, context: int) -> Gather:
        sequences, blocks = len(rows), -(-context // tables.block_tokens)
        index = np.empty((2, sequences, blocks), dtype=np.int64)
        index[0] = tables.planes[rows, :blocks]
        np.add(index[0], 1, out=index[1])
        if index.size > self._gathered.shape[0]:
            self._gathered = self._gathered.new_empty((index.size + index.size // 2, self._gathered.shape[1]))
        target = self._gathered[: index.size]
        fetched = target.view(2, sequences, -1, self._kv_heads, self._head_dim)[:, :, :context].transpose(2, 3)
        return Gather(to_device(index.reshape(-1), self._device), target, fetched[0], fetched[1])

    # Computing --------------------------------------------------------------------------------------------------------

    def attend(self, plan: GatherPlan, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        outputs = []
        for group in plan.groups:
            mine = q[group.begin : group.end]
            if isinstance(group, DecodeGroup):
                outputs.append(self._decode(group, layer, mine))
            elif isinstance(group, FreshGroup):
                outputs.append(self._fresh(group, mine, k[group.begin : group.end], v[group.begin : group.end]))
            else:
                outputs.append(self._continued(group, layer, mine))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _fetch(self, gather: Gather, layer: int) -> None:
        torch.index_select(self._pool.planes[layer], 0, gather.planes, out=gather.target)

    def _decode(self, group: DecodeGroup, layer: int, q: torch.Tensor) -> torch.Tensor:
        self._fetch(group.gather, layer)
        keys, values = group.gather.keys, group.gather.values
        # Query heads that share a kv head become its queries: [sequences, kv_heads, heads per kv head, head_dim].
        folded = q.view(keys.shape[0], self._kv_heads, -1, self._head_dim)
        if self._is_doubled:
            folded = folded.expand(-1, -1, 2, -1)
        out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=group.mask)
        return (out[:, :, :1] if self._is_doubled else out).reshape(keys.shape[0], -1)

    def _fresh(self, group: FreshGroup, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        # Padded keys lie after every real query of their sequence, so causality alone hides them.
        shape = group.padding.rectangle
        out = F.scaled_dot_product_attention(shape(q), shape(k), shape(v), is_causal=True, enable_gqa=self._is_grouped)
        return group.padding.packed(out)

    def _continued(self, group: ContinuedGroup, layer: int, q: torch.Tensor) -> torch.Tensor:
        self._fetch(group.gather, layer)
        keys, values = group.gather.keys, group.gather.values
        queries = group.padding.rectangle(q)
        tiles = [
            F.scaled_dot_product_attention(
                queries[:, :, first:last],
                keys[:, :, :context],
                values[:, :, :context],
                attn_mask=mask,
                enable_gqa=self._is_grouped,
            )
            for first, last, context, mask in group.tiles
        ]
        return group.padding.packed(tiles[0] if len(tiles) == 1 else torch.cat(tiles, 2))


def _token_range(batch: PackedBatch, begin: int, end: int) -> tuple[int, int]:
    return int(batch.offsets[begin]), int(batch.offsets[end - 1] + batch.counts[end - 1])
