"""Fills an arena: from a Hugging Face checkpoint, or with random numbers for tests and benchmarks.

Each tensor is read once, straight to its rows of the fused matrix, converted on the way; there is never a second copy
of the model in memory. A checkpoint that does not hold exactly the tensors of its configuration is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from hyperflexis.engine.arena import ArenaLayout, Buffer
from hyperflexis.engine.config import ModelConfig
from hyperflexis.engine.errors import CheckpointError
from hyperflexis.engine.shard import Shard

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

Progress = Callable[[int, int], None]
"""Called after each tensor with bytes of the arena filled so far, and in all."""


def load_checkpoint(
    directory: str | Path,
    config: ModelConfig,
    layout: ArenaLayout,
    buffer: Buffer,
    on_progress: Progress | None = None,
) -> None:
    """Fill the arena from the checkpoint's safetensors, one file or an index of several.

    Raises:
        CheckpointError: a file is missing, torn or corrupt; a tensor is missing, unknown, doubled or misshapen.
    """
    targets = checkpoint_views(config, layout.views(buffer))
    bytes_total = sum(target.nbytes for target in targets.values())
    bytes_done = 0
    found: set[str] = set()
    for path in shard_files(Path(directory)):
        with Shard(path) as shard:
            for name, entry in shard.tensors.items():
                if _is_harmless(name, config):
                    continue
                target = _expect(path, name, entry.shape, targets, found)
                shard.read(name, target)
                found.add(name)
                bytes_done += target.nbytes
                if on_progress is not None:
                    on_progress(bytes_done, bytes_total)
    missing = sorted(targets.keys() - found)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{directory}: {missing[0]}{more} not found in the checkpoint")


def random_weights(config: ModelConfig, layout: ArenaLayout, buffer: Buffer, seed: int, scale: float = 0.02) -> None:
    """Fill the arena with normal deviates of this scale, norms with ones. The same seed gives the same weights."""
    generator = torch.Generator().manual_seed(seed)
    for name, view in layout.views(buffer).items():
        if name.endswith("norm"):
            view.fill_(1.0)
        else:
            view.copy_(torch.randn(view.shape, generator=generator).mul_(scale))


def checkpoint_views(config: ModelConfig, views: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Map every name of the checkpoint to the rows of the arena that it fills."""
    targets = {"model.embed_tokens.weight": views["embed"], "model.norm.weight": views["norm"]}
    if not config.tie_word_embeddings:
        targets["lm_head.weight"] = views["lm_head"]
    q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
    qkv = [("self_attn.q_proj", q_rows), ("self_attn.k_proj", kv_rows), ("self_attn.v_proj", kv_rows)]
    gate_up = [("mlp.gate_proj", config.intermediate_size), ("mlp.up_proj", config.intermediate_size)]
    whole = {
        "attention_norm": "input_layernorm.weight",
        "mlp_norm": "post_attention_layernorm.weight",
        "q_norm": "self_attn.q_norm.weight",
        "k_norm": "self_attn.k_norm.weight",
        "o": "self_attn.o_proj.weight",
        "o_bias": "self_attn.o_proj.bias",
        "down": "mlp.down_proj.weight",
        "down_bias": "mlp.down_proj.bias",
    }
    split = {
        "qkv": [(f"{name}.weight", rows) for name, rows in qkv],
        "qkv_bias": [(f"{name}.bias", rows) for name, rows in qkv],
        "gate_up": [(f"{name}.weight", rows) for name, rows in gate_up],
        "gate_up_bias": [(f"{name}.bias", rows) for name, rows in gate_up],
    }
    for layer in range(config.layers):
        for ours, theirs in whole.items():
            if f"layers.{layer}.{ours}" in views:
                targets[f"model.layers.{layer}.{theirs}"] = views[f"layers.{layer}.{ours}"]
        for ours, parts in split.items():
            if f"layers.{layer}.{ours}" in views:
                rows = torch.split(views[f"layers.{layer}.{ours}"], [count for _, count in parts])
                targets |= {f"model.layers.{layer}.{name}": row for (name, _), row in zip(parts, rows, strict=True)}
    return targets


def shard_files(directory: Path) -> Iterator[Path]:
    """The checkpoint's safetensors files.

    Raises:
        CheckpointError: there are none.
    """
    if (directory / SINGLE_FILE).exists():
        yield directory / SINGLE_FILE
        return
    index = directory / INDEX_FILE
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except FileNotFoundError:
        raise CheckpointError(f"{directory}: neither {SINGLE_FILE} nor {INDEX_FILE} is there") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index}: no valid weight_map") from None
    for name in names:
        if not isinstance(name, str) or "/" in name:
            raise CheckpointError(f"{index}: {name!r} is not a file name")
        yield directory / name


def _is_harmless(name: str, config: ModelConfig) -> bool:
    """Tell whether older or tied checkpoints may carry this tensor although nothing needs it."""
    return name.endswith("rotary_emb.inv_freq") or (config.tie_word_embeddings and name == "lm_head.weight")


def _expect(
    path: Path, name: str, shape: tuple[int, ...], targets: dict[str, torch.Tensor], found: set[str]
) -> torch.Tensor:
    target = targets.get(name)
    if target is None:
        raise CheckpointError(f"{path}: unexpected tensor {name}")
    if name in found:
        raise CheckpointError(f"{path}: {name} stands in another file of the checkpoint too")
    if tuple(target.shape) != shape:
        raise CheckpointError(f"{path}: {name} has shape {list(shape)}, its configuration says {list(target.shape)}")
    return target
