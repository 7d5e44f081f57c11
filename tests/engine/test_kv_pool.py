"""The KV pool's memory: what it costs, where a token lies, what is left behind."""

from __future__ import annotations

import pytest
import torch
from engine_models import tiny_config

from hyperflexis.engine.kv import KvPool


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pool_costs_its_blocks_and_nothing_else(dtype: torch.dtype) -> None:
    config = tiny_config()
    pool = KvPool(config, blocks=7, block_tokens=5, dtype=dtype, device="cpu")
    each = KvPool.block_bytes(config, 5, dtype)
    assert each == 2 * 2 * 5 * 2 * 8 * dtype.itemsize
    assert pool.bytes == 7 * each == pool.data.untyped_storage().nbytes()
    assert pool.data.shape == (7, 2, 2, 5, 2, 8)
    storage = pool.data.untyped_storage().data_ptr()
    assert all(view.untyped_storage().data_ptr() == storage for view in (*pool.planes, *pool.key_slots))


def test_a_block_is_one_run_of_bytes_over_all_layers() -> None:
    pool = KvPool(tiny_config(), blocks=3, block_tokens=4, dtype=torch.float32, device="cpu")
    assert pool.data[1].is_contiguous()
    assert pool.data.stride(0) * 4 == KvPool.block_bytes(tiny_config(), 4, torch.float32)


def test_one_index_serves_every_layer() -> None:
    pool = KvPool(tiny_config(layers=3), blocks=3, block_tokens=4, dtype=torch.float32, device="cpu")
    block, token = 2, 3
    plane = block * pool.planes_per_block
    for layer in range(3):
        pool.key_slots[layer][plane * 4 + token] = 10 * layer + 1
        pool.value_slots[layer][plane * 4 + token] = 10 * layer + 2
        assert pool.data[block, layer, 0, token].unique().tolist() == [10 * layer + 1]
        assert pool.data[block, layer, 1, token].unique().tolist() == [10 * layer + 2]
        assert pool.planes[layer][plane].view(4, -1)[token].unique().tolist() == [10 * layer + 1]
        assert pool.planes[layer][plane + 1].view(4, -1)[token].unique().tolist() == [10 * layer + 2]
    assert int((pool.data != 0).sum()) == 3 * 2 * 16


def test_scrubbing_leaves_finite_values_alone() -> None:
    pool = KvPool(tiny_config(), blocks=3, block_tokens=2, dtype=torch.float32, device="cpu")
    pool.data.fill_(1.5)
    pool.data[1, 0, 0, 1] = float("nan")
    pool.data[2, 1, 1, 0] = float("inf")
    pool.scrub([1])
    assert pool.data[1].isfinite().all()
    assert pool.data[1, 0, 0, 0].unique().tolist() == [1.5]
    assert not pool.data[2].isfinite().all()


@pytest.mark.parametrize("size", [{"blocks": 0, "block_tokens": 4}, {"blocks": 4, "block_tokens": 0}])
def test_an_empty_pool_is_refused(size: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="holds nothing"):
        KvPool(tiny_config(), **size, dtype=torch.float32, device="cpu")
