"""What a deployment tells the launchers of vLLM servers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hyperflexis.cli import sources
from hyperflexis.cli.attached import PROBE_TEXT, attach_spec, kv_token_bytes, roles_of, serve_spec
from hyperflexis.cli.errors import OperatorError
from hyperflexis.core.instance import Role
from hyperflexis.core.latency import StepShape
from hyperflexis.gateway.tokenizer import TextCodec
from hyperflexis.runtime.checkpoint import demo_directory
from hyperflexis.runtime.launchers.attached import AttachSpec, Target


def spec_of(*sets: str) -> AttachSpec:
    deployment = sources.load(sets=sets).deployment
    directory = demo_directory()
    return attach_spec(deployment, directory, TextCodec.load(directory), [((64, 4096, 0, 0), 0.01)])


def test_servers_are_told_with_their_roles_and_how_they_are_treated(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n", encoding="utf-8")
    spec = spec_of(
        "attach=[http://a:1, {url: 'http://b:2', model: m, kv_tokens: 5}]",
        f"vllm.api_key_file={tmp_path / 'key'}",
        "vllm.silence_timeout_s=3",
        "vllm.metrics_ms=50",
        "engine.seqs_max=7",
    )
    assert spec.targets == [Target("http://a:1"), Target("http://b:2", Role.MIXED, "m", 5)]
    assert (spec.watch.health_s, spec.watch.metrics_s, spec.watch.silence_s) == (1.0, 0.05, 3.0)
    assert (spec.seqs_max, spec.api_key, spec.samples) == (7, "secret", [(StepShape(64, 4096), 0.01)])


def test_servers_that_are_started_here_have_a_key_that_nobody_else_knows() -> None:
    keys = {spec_of("launcher=vllm").api_key for _ in range(2)}
    assert len(keys) == 2
    assert all(len(key) > 30 for key in keys)
    assert spec_of("attach=[http://a:1]").api_key == ""


def test_text_that_tokenizers_are_compared_by_holds_many_tokens() -> None:
    probe = spec_of("attach=[http://a:1]").tokens
    assert probe is not None
    assert probe.text == PROBE_TEXT
    assert len(set(probe.ids)) > 20


def test_key_that_cannot_be_read_is_an_operators_mistake() -> None:
    with pytest.raises(OperatorError, match=r"vllm\.api_key_file '/nowhere' cannot be read: No such file or directory"):
        spec_of("attach=[http://a:1]", "vllm.api_key_file=/nowhere")


def test_servers_that_are_started_get_model_name_and_roles() -> None:
    deployment = sources.load(sets=["launcher=vllm", "prefill=1", "decode=2", "vllm.gpus_per_instance=4"]).deployment
    spec = serve_spec(deployment, demo_directory(), spec_of())
    assert (spec.model, spec.served_name, spec.gpus) == (str(demo_directory().resolve()), "demo", 4)
    assert roles_of(deployment) == [Role.PREFILL, Role.DECODE, Role.DECODE]
    elastic = sources.load(sets=["launcher=vllm", "scaling.min=0", "scaling.max=4"]).deployment
    assert roles_of(elastic) == [Role.MIXED], "one has to say what all of them can do"
    apart = sources.load(sets=["launcher=vllm", "scaling.prefill_max=2", "scaling.decode_max=4"]).deployment
    assert roles_of(apart) == [Role.PREFILL]


def test_kv_of_a_token_is_known_from_the_models_configuration(tmp_path: Path) -> None:
    assert kv_token_bytes(demo_directory()) == 2 * 5 * 2 * 64 * 2
    assert kv_token_bytes(tmp_path) == 0
    nested = {"text_config": {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}}
    (tmp_path / "config.json").write_text(json.dumps(nested), encoding="utf-8")
    assert kv_token_bytes(tmp_path) == 2 * 2 * 4 * 16 * 2
