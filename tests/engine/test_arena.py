"""The arena: aligned, named by its hash, and shared rather than copied."""

from __future__ import annotations

import mmap

import pytest
import torch
from engine_models import tiny_config

from hyperflexis.engine.arena import ALIGNMENT_BYTES, ArenaLayout
from hyperflexis.engine.weights import random_weights

VARIANTS = [
    tiny_config(),
    tiny_config(tie_word_embeddings=False),
    tiny_config(qkv_bias=True),
    tiny_config(qkv_bias=True, o_bias=True),
    tiny_config(mlp_bias=True),
    tiny_config(qk_norm=True),
    tiny_config(layers=3),
    tiny_config(kv_heads=4),
    tiny_config(vocab_size=98),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_aligned_and_do_not_overlap(dtype: torch.dtype) -> None:
    for config in VARIANTS:
        layout = ArenaLayout.of(config, dtype)
        end = 0
        for entry in layout.entries.values():
            assert entry.offset % ALIGNMENT_BYTES == 0
            assert entry.offset >= end
            assert entry.dtype == dtype
            end = entry.offset + entry.bytes
        assert end <= layout.bytes < end + ALIGNMENT_BYTES


def test_the_hash_is_stable_and_tells_layouts_apart() -> None:
    hashes = [ArenaLayout.of(config, dtype).hash for config in VARIANTS for dtype in (torch.float32, torch.bfloat16)]
    assert len(set(hashes)) == len(hashes)
    assert hashes[0] == ArenaLayout.of(tiny_config(rope_theta=5.0), torch.float32).hash
    # Processes of different versions compare hashes: a change here is a change of the protocol.
    assert hashes[0][:12] == "d1fbdc4cb53b"


def test_a_tied_projection_takes_no_room() -> None:
    tied, untied = (ArenaLayout.of(tiny_config(tie_word_embeddings=tie), torch.float32) for tie in (True, False))
    assert "lm_head" not in tied.entries
    assert untied.entries["lm_head"].shape == untied.entries["embed"].shape == (97, 32)


@pytest.mark.filterwarnings("error")
def test_views_share_memory_with_any_buffer() -> None:
    layout = ArenaLayout.of(tiny_config(), torch.float32)
    with mmap.mmap(-1, layout.bytes) as mapped:
        for buffer in (bytearray(layout.bytes), mapped, layout.allocate()):
            views = layout.views(buffer)
            views["norm"].fill_(2.5)
            again = layout.views(buffer)
            assert again["norm"].tolist() == [2.5] * 32
            assert {name: tuple(view.shape) for name, view in views.items()} == {
                name: entry.shape for name, entry in layout.entries.items()
            }
            del views, again
    read_only = layout.views(bytes(layout.bytes))
    assert read_only["embed"].shape == (97, 32)


def test_a_small_buffer_is_refused() -> None:
    layout = ArenaLayout.of(tiny_config(), torch.float32)
    with pytest.raises(ValueError, match="the layout needs"):
        layout.views(bytearray(layout.bytes - 1))


def test_an_own_arena_is_aligned_for_vector_loads() -> None:
    assert ArenaLayout.of(tiny_config(), torch.float32).allocate().data_ptr() % 64 == 0


def test_random_weights_depend_on_the_seed_alone() -> None:
    config = tiny_config(qkv_bias=True)
    layout = ArenaLayout.of(config, torch.float32)
    arenas = [torch.zeros(layout.bytes, dtype=torch.uint8) for _ in range(3)]
    for arena, seed in zip(arenas, (1, 1, 2), strict=True):
        random_weights(config, layout, arena, seed)
    assert torch.equal(arenas[0], arenas[1])
    assert not torch.equal(arenas[0], arenas[2])
    assert layout.views(arenas[0])["layers.1.mlp_norm"].tolist() == [1.0] * 32
