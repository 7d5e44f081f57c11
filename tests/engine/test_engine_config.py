"""`ModelConfig`: both forms that transformers writes, and every refusal by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hyperflexis.engine.config import ModelConfig, RopeScaling
from hyperflexis.engine.errors import CheckpointError, EngineError, UnsupportedModelError

PLAIN = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def _read(path: Path, generation: dict[str, object] | None = None, **changes: object) -> ModelConfig:
    (path / "config.json").write_text(json.dumps({**PLAIN, **changes}))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return ModelConfig.from_directory(path)


def test_a_plain_llama(tmp_path: Path) -> None:
    config = _read(tmp_path)
    assert (config.layers, config.heads, config.kv_heads, config.head_dim) == (2, 4, 2, 16)
    assert (config.rope_theta, config.rope_scaling, config.eos_ids) == (10000.0, None, (3,))
    assert not any((config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm, config.tie_word_embeddings))
    assert config.dtype == torch.float32


def test_families_differ_in_biases_norms_and_defaults(tmp_path: Path) -> None:
    llama = _read(tmp_path, attention_bias=True, mlp_bias=True)
    assert (llama.qkv_bias, llama.o_bias, llama.mlp_bias, llama.qk_norm) == (True, True, True, False)
    qwen2 = _read(tmp_path, architectures=["Qwen2ForCausalLM"], use_sliding_window=False, sliding_window=4096)
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.mlp_bias, qwen2.qk_norm) == (True, False, False, False)
    qwen3 = _read(tmp_path, architectures=["Qwen3ForCausalLM"], layer_types=["full_attention"] * 2)
    assert (qwen3.qkv_bias, qwen3.o_bias, qwen3.qk_norm, qwen3.head_dim) == (False, False, True, 128)
    assert _read(tmp_path, num_key_value_heads=None).kv_heads == 4


@pytest.mark.parametrize(
    ("rope", "theta", "scaling"),
    [
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}, 5e5, RopeScaling("linear", 2.0)),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, 5e5, RopeScaling("llama3", 8.0, 1.0, 4.0, 128)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, None),
        ({"rope_parameters": {"rope_theta": 5e5, **LLAMA3}}, 5e5, RopeScaling("llama3", 8.0, 1.0, 4.0, 128)),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4}}, 1e4, RopeScaling("linear", 4.0)),
    ],
)
def test_both_forms_of_rope(tmp_path: Path, rope: dict[str, object], theta: float, scaling: RopeScaling | None) -> None:
    config = _read(tmp_path, **rope)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize(("value", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_both_names_of_dtype(tmp_path: Path, name: str, value: str, dtype: torch.dtype) -> None:
    assert _read(tmp_path, **{name: value}).dtype == dtype


def test_end_of_sequence_ids_come_from_both_files(tmp_path: Path) -> None:
    assert _read(tmp_path, {"eos_token_id": [7, 3, 5]}).eos_ids == (3, 5, 7)
    assert _read(tmp_path, {}, eos_token_id=None).eos_ids == ()
    with pytest.raises(CheckpointError, match="eos_token_id"):
        _read(tmp_path, {"eos_token_id": "</s>"})


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"architectures": None}, "architectures"),
        ({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}, "use_sliding_window = True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"num_experts": 8}, "num_experts = 8"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "longrope"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [8, 12, 12]}}, "mrope_section"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
        ({"head_dim": 15}, "head_dim = 15"),
    ],
)
def test_foreign_arithmetic_is_refused_by_name(tmp_path: Path, changes: dict[str, object], name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="is not supported") as caught:
        _read(tmp_path, **changes)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_size": "64"}, "hidden_size = '64' is not a positive integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"rope_theta": -1}, "rope_theta = -1"),
        ({"num_key_value_heads": 3}, "no multiple of 3"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "low_freq_factor"),
    ],
)
def test_senseless_fields_are_refused(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        _read(tmp_path, **changes)


def test_a_missing_or_torn_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        ModelConfig.from_directory(tmp_path)
    for text in ("{", "[]", "\xff"):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(CheckpointError, match=r"config\.json"):
            ModelConfig.from_directory(tmp_path)
    assert issubclass(CheckpointError, EngineError)
    assert issubclass(UnsupportedModelError, EngineError)
