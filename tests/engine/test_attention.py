"""Both ways of attention against a naive softmax per token, for all small shapes and for grouped, tiled ones."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from engine_models import tiny_config

from hyperflexis.engine import attention as attention_module
from hyperflexis.engine import paged_attention as paged_module
from hyperflexis.engine.attention import TILE_TOKENS, Attention, CausalBand, GatherAttention, split_similar
from hyperflexis.engine.batch import BlockTables, SequenceSlice, pack
from hyperflexis.engine.config import ModelConfig
from hyperflexis.engine.kv import KvPool
from hyperflexis.engine.paged_attention import VarlenAttention, agrees_with_reference, choose_attention


def paged_kernel(  # noqa: PLR0917 - the signature is torch's
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: torch.Tensor,
    block_table: torch.Tensor,
) -> torch.Tensor:
    """What torch documents of its varlen attention with block tables, in the plainest terms."""
    assert cu_seq_k is None
    assert window_size == (-1, 0)
    assert enable_gqa == (query.shape[1] != key.shape[2])
    assert {cu_seq_q.dtype, seqused_k.dtype, block_table.dtype} == {torch.int32}
    assert max_k == int(seqused_k.max())
    assert max_q == int(cu_seq_q.diff().max())
    out = torch.empty_like(query)
    for index, length in enumerate(seqused_k.tolist()):
        blocks = block_table[index].long()
        keys, values = key[blocks].flatten(0, 1)[:length], value[blocks].flatten(0, 1)[:length]
        begin, end = int(cu_seq_q[index]), int(cu_seq_q[index + 1])
        for row in range(begin, end):
            out[row] = _attend_one(query[row], keys[: length - (end - row) + 1], values[: length - (end - row) + 1])
    return out


def _attend_one(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """One query `[heads, dim]` over the keys it sees `[tokens, kv_heads, dim]`."""
    share = q.shape[0] // keys.shape[1]
    out = torch.empty_like(q)
    for head in range(q.shape[0]):
        scores = keys[:, head // share].float() @ q[head].float() / math.sqrt(q.shape[1])
        out[head] = (scores.softmax(0) @ values[:, head // share].float()).to(q.dtype)
    return out


def _check(attend: type, config: ModelConfig, cases: list[tuple[int, int]], block_tokens: int, seed: int) -> None:
    """Compare a step of (tokens, start) cases with the naive loop."""
    chance = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-(start + tokens) // block_tokens) for tokens, start in cases]
    pool = KvPool(config, blocks=sum(counts), block_tokens=block_tokens, dtype=torch.float32, device="cpu")
    pool.data.copy_(torch.randn(pool.data.shape, generator=generator))
    free = chance.sample(range(sum(counts)), sum(counts))
    tables = BlockTables(block_tokens, pool.planes_per_block)
    slices = [
        SequenceSlice(i, [0] * tokens, start, [free.pop() for _ in range(count)], sample=False)
        for i, ((tokens, start), count) in enumerate(zip(cases, counts, strict=True))
    ]
    rows = [tables.open() for _ in slices]
    for row, each in zip(rows, slices, strict=True):
        tables.update(row, each.blocks, each.start, each.start + len(each.tokens))
    batch = pack(slices, rows, tables)
    layer = 1
    q = torch.randn((len(batch.ids), config.heads, config.head_dim), generator=generator)
    k, v = (torch.randn((len(batch.ids), config.kv_heads, config.head_dim), generator=generator) for _ in range(2))
    slots = torch.from_numpy(batch.slots)
    pool.key_slots[layer].index_copy_(0, slots, k)
    pool.value_slots[layer].index_copy_(0, slots, v)
    way: Attention = attend(config, pool)
    actual = way.attend(way.plan(batch, tables), layer, q, k, v).view_as(q)
    for segment, index in enumerate(batch.order):
        each = slices[index]
        keys, values = pool.data[each.blocks, layer].transpose(0, 1).flatten(1, 2)
        for place in range(len(each.tokens)):
            row = int(batch.offsets[segment]) + place
            seen = each.start + place + 1
            torch.testing.assert_close(actual[row], _attend_one(q[row], keys[:seen], values[:seen]))


def _varlen(config: ModelConfig, pool: KvPool) -> VarlenAttention:
    return VarlenAttention(config, pool, paged_kernel)


SMALL = [(tokens, start) for tokens in range(1, 10) for start in range(10 - tokens)]


@pytest.mark.parametrize("block_tokens", [1, 2, 3, 4])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_all_small_shapes_together_and_apart(block_tokens: int, kv_heads: int) -> None:
    config = tiny_config(kv_heads=kv_heads)
    _check(GatherAttention, config, SMALL, block_tokens, seed=1)
    chance = random.Random(kv_heads)
    for seed in range(12):
        _check(GatherAttention, config, chance.sample(SMALL, chance.randint(1, 5)), block_tokens, seed)


def test_the_paged_kernel_is_called_as_documented() -> None:
    for block_tokens in (1, 3, 4):
        _check(_varlen, tiny_config(), SMALL, block_tokens, seed=2)


def test_a_batch_is_gathered_in_groups_that_fit_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "GATHER_BYTES_MAX", 4 * 2 * 2 * 8 * 70)
    _check(GatherAttention, tiny_config(), [(1, 30 + index // 3) for index in range(11)], 4, seed=4)


def test_uneven_contexts_long_chunks_and_tiles() -> None:
    config = tiny_config(heads=2, kv_heads=1)
    decodes = [(1, 700), (1, 30), (1, 29), (1, 31), (1, 0)]
    chunks = [(TILE_TOKENS + 9, 40), (3, 600), (5, 590), (20, 3), (21, 0), (40, 0), (90, 0)]
    _check(GatherAttention, config, [*decodes, *chunks], 16, seed=3)


def test_a_long_context_does_not_pad_short_ones() -> None:
    lengths = np.array([8000, *[200 - index for index in range(31)]])
    assert split_similar(lengths, 512)[0] == (0, 1)
    assert len(split_similar(lengths, 512)) <= 6
    assert split_similar(np.array([64] * 40), 512) == [(0, 40)]
    assert split_similar(np.array([], dtype=np.int64), 512) == []
    for begin, end in split_similar(lengths, 512):
        assert begin < end


def test_every_view_of_the_band_is_a_causal_mask() -> None:
    band = CausalBand(torch.float32, torch.device("cpu"))
    for queries, prior, extra in [(3, 0, 0), (2, 5, 3), (TILE_TOKENS, 1, 300), (1, 900, 0), (4, 7, 0)]:
        context = prior + queries + extra
        visible = torch.arange(context) <= prior + torch.arange(queries)[:, None]
        mask = band.view(queries, prior, context)
        assert torch.equal(mask == 0, visible)
        assert torch.equal(mask.isneginf(), ~visible)


def test_the_band_grows_with_the_longest_context_alone() -> None:
    band = CausalBand(torch.float32, torch.device("cpu"))
    for prior in range(0, 5000, 50):
        mask = band.view(50, prior, prior + 50)
    assert mask.untyped_storage().nbytes() <= 4 * TILE_TOKENS * (2 * 5000 + TILE_TOKENS)


def test_a_kernel_is_chosen_only_where_it_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    for block_tokens in (1, 2, 3, 16, 4):
        pool = KvPool(config, blocks=4, block_tokens=block_tokens, dtype=torch.float32, device="cpu")
        assert agrees_with_reference(config, pool, paged_kernel)
    assert not agrees_with_reference(config, pool, lambda *args, **named: paged_kernel(*args, **named) * 1.01)
    assert not agrees_with_reference(config, pool, lambda q, *_, **__: q[:1])

    def failing(*_: object, **__: object) -> torch.Tensor:
        raise NotImplementedError("not on this device")

    assert not agrees_with_reference(config, pool, failing)
    assert isinstance(choose_attention(config, pool), GatherAttention)
    # A device other than the CPU would probe torch's kernel, which refuses CPU tensors: the reference serves.
    monkeypatch.setattr(paged_module, "_is_accelerator", lambda _: True)
    assert isinstance(choose_attention(config, pool), GatherAttention)
    monkeypatch.setattr(paged_module, "_paged_kernel", lambda: paged_kernel)
    assert isinstance(choose_attention(config, pool), VarlenAttention)
    monkeypatch.setattr(paged_module, "_paged_kernel", lambda: None)
    assert isinstance(choose_attention(config, pool), GatherAttention)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_half_precision_agrees_within_its_precision(kv_heads: int) -> None:
    config = tiny_config(kv_heads=kv_heads)
    pool = KvPool(config, blocks=4, block_tokens=4, dtype=torch.bfloat16, device="cpu")
    assert agrees_with_reference(config, pool, paged_kernel)
