"""What a checkpoint directory says about its model, checked: shapes, rotary embedding, end-of-sequence ids.

Reads `config.json` and `generation_config.json` as transformers 4 and 5 write them. It knows no weights. Whatever
this engine does not compute is refused here, by name, rather than computed wrongly: a model that silently ignores its
sliding window answers fluently and is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hyperflexis.engine.errors import CheckpointError, UnsupportedModelError

FAMILIES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")

# Fields that change the arithmetic. Absent, null, false, 0 and empty all mean "off".
_REFUSED_WHEN_SET = (
    "quantization_config",
    "use_sliding_window",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_softcapping",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
)

_DTYPES = {
    "float32": torch.float32,
    "float": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
}


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched for long contexts. The last three fields are llama3's alone."""

    kind: str
    """`linear` or `llama3`."""
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_tokens: int = 8192


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One decoder of the Llama family. Sizes are counts of elements."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    context_tokens_max: int
    eos_ids: tuple[int, ...]
    dtype: torch.dtype
    """The checkpoint's own; the engine may run in another."""

    @classmethod
    def from_directory(cls, path: str | Path) -> ModelConfig:
        """Read a checkpoint directory.

        Raises:
            CheckpointError: no readable `config.json`, or a field is missing or senseless.
            UnsupportedModelError: the model asks for what this engine does not compute.
        """
        directory = Path(path)
        raw = _read_json(directory / "config.json")
        generation_file = directory / "generation_config.json"
        generation = _read_json(generation_file) if generation_file.exists() else {}
        return _parse(_Fields(raw, directory / "config.json"), generation)


class _Fields:
    """`config.json` with errors that say which field of which file is at fault."""

    def __init__(self, raw: Mapping[str, Any], file: Path) -> None:
        self.raw = raw
        self.file = file

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.raw.get(name)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self.file}: {name} is missing")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{self.file}: {name} = {value!r} is not a positive integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.raw.get(name)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self.file}: {name} is missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise CheckpointError(f"{self.file}: {name} = {value!r} is not a positive number")
        return float(value)

    def refuse(self, name: str, value: object, hint: str = "") -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.file}: {name} = {value!r} is not supported{hint}")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file}: not a JSON object")
    return raw


def _parse(fields: _Fields, generation: Mapping[str, Any]) -> ModelConfig:
    raw = fields.raw
    architecture = _architecture(fields)
    _refuse_foreign_arithmetic(fields)
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    # Defaults are those of each family's own configuration class.
    kv_heads = fields.integer("num_key_value_heads", heads if architecture == "LlamaForCausalLM" else 32)
    head_dim = fields.integer("head_dim", 128 if architecture == "Qwen3ForCausalLM" else max(hidden // heads, 1))
    if heads % kv_heads:
        raise CheckpointError(f"{fields.file}: num_attention_heads = {heads} is no multiple of {kv_heads} kv heads")
    if head_dim % 2:
        raise fields.refuse("head_dim", head_dim, " (rotary embedding needs an even one)")
    attention_bias = bool(raw.get("attention_bias", False)) and architecture != "Qwen2ForCausalLM"
    rope_theta, rope_scaling = _rope(fields)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=attention_bias or architecture == "Qwen2ForCausalLM",
        o_bias=attention_bias,
        mlp_bias=bool(raw.get("mlp_bias", False)) and architecture == "LlamaForCausalLM",
        qk_norm=architecture == "Qwen3ForCausalLM",
        context_tokens_max=fields.integer("max_position_embeddings", 2048),
        eos_ids=_eos_ids(fields, generation),
        dtype=_dtype(fields),
    )


def _architecture(fields: _Fields) -> str:
    names = fields.raw.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in FAMILIES:
        raise fields.refuse("architectures", names, f" (supported: {', '.join(FAMILIES)})")
    return str(names[0])


def _refuse_foreign_arithmetic(fields: _Fields) -> None:
    raw = fields.raw
    for name in _REFUSED_WHEN_SET:
        if raw.get(name):
            raise fields.refuse(name, raw[name])
    if raw.get("hidden_act", "silu") != "silu":
        raise fields.refuse("hidden_act", raw["hidden_act"])
    other_layers = sorted(set(raw.get("layer_types") or []) - {"full_attention"})
    if other_layers:
        raise fields.refuse("layer_types", other_layers)


def _rope(fields: _Fields) -> tuple[float, RopeScaling | None]:
    """Read either form: transformers 5 has `rope_parameters`, 4 has `rope_theta` beside `rope_scaling`."""
    raw = fields.raw
    name = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    parameters = raw.get(name) or {}
    if not isinstance(parameters, dict) or any(isinstance(value, dict) for value in parameters.values()):
        raise fields.refuse(name, parameters)
    inner = _Fields(parameters, fields.file)
    theta = inner.number("rope_theta") if "rope_theta" in parameters else fields.number("rope_theta", 10000.0)
    for source in (raw, parameters):
        if source.get("partial_rotary_factor", 1.0) not in (None, 1, 1.0):
            raise fields.refuse("partial_rotary_factor", source["partial_rotary_factor"])
    if parameters.get("mrope_section"):
        raise fields.refuse("mrope_section", parameters["mrope_section"])
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", inner.number("factor"))
    if kind != "llama3":
        raise fields.refuse(f"{name}.rope_type", kind, " (supported: default, linear, llama3)")
    low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
    if not low < high:
        raise CheckpointError(f"{fields.file}: low_freq_factor = {low} is not below high_freq_factor = {high}")
    original = inner.integer("original_max_position_embeddings")
    return theta, RopeScaling("llama3", inner.number("factor"), low, high, original)


def _eos_ids(fields: _Fields, generation: Mapping[str, Any]) -> tuple[int, ...]:
    ids: set[int] = set()
    for source in (fields.raw, generation):
        value = source.get("eos_token_id")
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(each, bool) or not isinstance(each, int) for each in listed):
            raise CheckpointError(f"{fields.file}: eos_token_id = {value!r} is not an integer or a list of them")
        ids.update(listed)
    return tuple(sorted(ids))


def _dtype(fields: _Fields) -> torch.dtype:
    value = fields.raw.get("dtype") or fields.raw.get("torch_dtype") or "float32"
    if value not in _DTYPES:
        raise fields.refuse("dtype", value)
    return _DTYPES[value]
