"""A random model in the shape of Qwen2.5-0.5B on disk, and whether its pages are in memory. For `weights.py`."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
    "eos_token_id": None,
    "torch_dtype": "bfloat16",
}
_LIBC = ctypes.CDLL(None, use_errno=True)


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, ffn, kv = 896, 4864, 128
    yield "model.embed_tokens.weight", (151_936, hidden)
    for layer in range(24):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", (hidden,)
        for name, rows in (("q", hidden), ("k", kv), ("v", kv)):
            yield f"{at}self_attn.{name}_proj.weight", (rows, hidden)
            yield f"{at}self_attn.{name}_proj.bias", (rows,)
        yield at + "self_attn.o_proj.weight", (hidden, hidden)
        yield at + "post_attention_layernorm.weight", (hidden,)
        yield at + "mlp.gate_proj.weight", (ffn, hidden)
        yield at + "mlp.up_proj.weight", (ffn, hidden)
        yield at + "mlp.down_proj.weight", (hidden, ffn)
    yield "model.norm.weight", (hidden,)


def make(directory: Path) -> Path:
    """Write it; the same one each time."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    header, offset = {}, 0
    for name, shape in _shapes():
        size_bytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size_bytes]}
        offset += size_bytes
    text = json.dumps(header).encode()
    generator = torch.Generator().manual_seed(5)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape in _shapes():
            values = torch.randn(shape, generator=generator).mul_(0.02).to(torch.bfloat16)
            file.write(memoryview(values.view(torch.uint8).numpy()))
        file.flush()
        os.fsync(file.fileno())
    return directory


def drop_pages(directory: Path) -> float:
    """Have the kernel forget the weights; return the share of them that is in memory all the same."""
    path = directory / "model.safetensors"
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return resident_share(path)


def resident_share(path: Path) -> float:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as mapped:
        pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
        base = np.frombuffer(mapped, np.uint8)
        code = _LIBC.mincore(
            ctypes.c_void_p(base.ctypes.data), ctypes.c_size_t(len(mapped)), ctypes.c_void_p(pages.ctypes.data)
        )
        del base
        assert code == 0, "mincore failed"
        return float((pages & 1).mean())


def read_pages(directory: Path) -> None:
    """Have all of it in memory."""
    scratch = bytearray(1 << 22)
    with (directory / "model.safetensors").open("rb", buffering=0) as file:
        while file.readinto(scratch):
            pass
