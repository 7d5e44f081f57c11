"""Random tiny models of every family and variant, as transformers writes them, and runners over them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
import transformers

from hyperflexis.engine.arena import ArenaLayout
from hyperflexis.engine.config import ModelConfig
from hyperflexis.engine.runner import Runner
from hyperflexis.engine.weights import load_checkpoint, random_weights

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

_SIZE = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Small deviations make greedy output repeat one token, whatever the arithmetic.
    "initializer_range": 0.2,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

SHAPES: dict[str, tuple[str, dict[str, object]]] = {
    "llama_tied": ("Llama", {"tie_word_embeddings": True}),
    "llama_mha_biases": ("Llama", {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
    "llama_rope_llama3": ("Llama", {"rope_parameters": _LLAMA3_ROPE}),
    "llama_rope_linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5}}),
    "qwen2_tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2_mqa": ("Qwen2", {"num_key_value_heads": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3_tied_biases": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True, "attention_bias": True}),
}


@dataclass
class Checkpoint:
    """A model in transformers and on disk."""

    reference: transformers.PreTrainedModel
    path: Path

    @torch.no_grad()
    def logits(self, tokens: list[int]) -> torch.Tensor:
        """[tokens, vocab]"""
        return self.reference(torch.tensor([tokens])).logits[0]

    def assert_greedy(self, prompt: list[int], output: list[int]) -> None:
        """Each token is the most likely one after those before it: one forward instead of one per token."""
        logits = self.logits([*prompt, *output[:-1]])[len(prompt) - 1 :]
        assert logits.argmax(-1).tolist() == output


def make_checkpoint(name: str, path: Path, **overrides: object) -> Checkpoint:
    family, shape = SHAPES[name]
    settings = {"eos_token_id": None, "bos_token_id": None, **_SIZE, **shape, **overrides}
    config = getattr(transformers, f"{family}Config")(**settings)
    torch.manual_seed(len(name))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases begin as 0 and norms as 1: forgetting one would go unseen
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(path)
    return Checkpoint(model, path)


def load(path: Path, dtype: torch.dtype = torch.float32, **options: object) -> Runner:
    """A runner over the checkpoint at this path."""
    config = ModelConfig.from_directory(path)
    layout = ArenaLayout.of(config, dtype)
    arena = layout.allocate()
    load_checkpoint(path, config, layout, arena)
    return Runner(config, layout.views(arena), dtype=dtype, **{"blocks": 256, "block_tokens": 4, **options})


def tiny_config(**overrides: object) -> ModelConfig:
    settings: dict[str, object] = {
        "architecture": "LlamaForCausalLM",
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "qkv_bias": False,
        "o_bias": False,
        "mlp_bias": False,
        "qk_norm": False,
        "context_tokens_max": 512,
        "eos_ids": (),
        "dtype": torch.float32,
        **overrides,
    }
    return ModelConfig(**settings)


def random_runner(dtype: torch.dtype = torch.float32, config: ModelConfig | None = None, **options: object) -> Runner:
    """A runner over random weights, without any file."""
    config = config or tiny_config()
    layout = ArenaLayout.of(config, dtype)
    arena = layout.allocate()
    random_weights(config, layout, arena, seed=3, scale=0.2)
    return Runner(config, layout.views(arena), dtype=dtype, **{"blocks": 256, "block_tokens": 4, **options})
