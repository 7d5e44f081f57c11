"""Loading: the right rows of the arena, whatever the files look like, and one clear line where they are wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_models import Checkpoint, load, make_checkpoint
from safetensors.torch import load_file, save_file

from hyperflexis.engine.arena import ArenaLayout
from hyperflexis.engine.config import ModelConfig
from hyperflexis.engine.errors import CheckpointError
from hyperflexis.engine.shard import Shard
from hyperflexis.engine.weights import INDEX_FILE, SINGLE_FILE, load_checkpoint

Change = Callable[[dict[str, torch.Tensor]], object]


def _load(path: Path, dtype: torch.dtype = torch.float32, **options: object) -> dict[str, torch.Tensor]:
    config = ModelConfig.from_directory(path)
    layout = ArenaLayout.of(config, dtype)
    arena = layout.allocate()
    load_checkpoint(path, config, layout, arena, **options)
    return layout.views(arena)


@pytest.fixture
def changed(checkpoints, tmp_path: Path) -> Callable[[str, Change], Path]:
    """A copy of a checkpoint whose tensors were changed."""

    def change(name: str, by: Change) -> Path:
        source = checkpoints(name).path
        path = tmp_path / "changed"
        shutil.copytree(source, path)
        tensors = load_file(source / SINGLE_FILE)
        by(tensors)
        save_file(tensors, path / SINGLE_FILE, metadata={"format": "pt"})
        return path

    return change


def test_fused_rows_hold_the_checkpoints_values(checkpoints) -> None:
    for name in ("llama_mha_biases", "qwen3", "qwen2_mqa"):
        checkpoint: Checkpoint = checkpoints(name)
        views, state = _load(checkpoint.path), checkpoint.reference.state_dict()
        for layer in range(3):
            at = f"model.layers.{layer}."
            for ours, theirs in (
                ("qkv", [f"self_attn.{part}_proj" for part in "qkv"]),
                ("gate_up", ["mlp.gate_proj", "mlp.up_proj"]),
                ("o", ["self_attn.o_proj"]),
                ("down", ["mlp.down_proj"]),
            ):
                fused = torch.cat([state[f"{at}{each}.weight"] for each in theirs])
                assert torch.equal(views[f"layers.{layer}.{ours}"], fused)
                if f"{at}{theirs[0]}.bias" in state:
                    fused = torch.cat([state[f"{at}{each}.bias"] for each in theirs])
                    assert torch.equal(views[f"layers.{layer}.{ours}_bias"], fused)
        assert torch.equal(views["embed"], state["model.embed_tokens.weight"])
        assert torch.equal(views["lm_head"], state["lm_head.weight"])


def test_a_sharded_checkpoint_loads_alike(checkpoints, tmp_path: Path) -> None:
    checkpoint = checkpoints("qwen2_tied")
    checkpoint.reference.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / INDEX_FILE).exists()
    assert not (tmp_path / SINGLE_FILE).exists()
    seen: list[tuple[int, int]] = []
    sharded = _load(tmp_path, on_progress=lambda done, total: seen.append((done, total)))
    whole = _load(checkpoint.path)
    assert all(torch.equal(sharded[name], view) for name, view in whole.items())
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {seen[-1][0]} == {sum(view.nbytes for view in whole.values())}


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
def test_values_are_converted_to_the_arenas_dtype(changed, stored: torch.dtype) -> None:
    def convert(tensors: dict[str, torch.Tensor]) -> None:
        tensors |= {name: tensor.to(stored) for name, tensor in tensors.items()}

    path = changed("llama_tied", convert)
    expected = load_file(path / SINGLE_FILE)["model.layers.2.mlp.down_proj.weight"]
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(_load(path, dtype)["layers.2.down"], expected.to(dtype))


def test_conversion_works_in_pieces(changed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperflexis.engine.shard.PIECE_BYTES", 1000)
    path = changed("llama_tied", lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items()}))
    expected = load_file(path / SINGLE_FILE)["model.embed_tokens.weight"]
    assert torch.equal(_load(path)["embed"], expected.float())


def test_harmless_extras_are_ignored(changed) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = torch.zeros(3)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)

    _load(changed("llama_tied", add))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("model.norm.weight"), r"model\.norm\.weight not found"),
        (lambda t: [t.pop(name) for name in list(t) if ".mlp." in name], r"down_proj\.weight and 8 more not found"),
        (lambda t: t.update(extra=torch.zeros(2)), "unexpected tensor extra"),
        (
            lambda t: t.update({"model.layers.1.self_attn.k_proj.weight": torch.zeros(32, 63)}),
            r"k_proj\.weight has shape \[32, 63\], its configuration says \[32, 64\]",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.int32)}),
            r"model\.norm\.weight has dtype I32",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(changed, change: Change, reason: str) -> None:
    path = changed("llama_tied", change)
    with pytest.raises(CheckpointError, match=reason) as caught:
        _load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 100, 4000, -1, -2000])
def test_a_file_cut_off_anywhere_is_named(changed, keep: int) -> None:
    path = changed("llama_tied", lambda _: None)
    whole = (path / SINGLE_FILE).read_bytes()
    (path / SINGLE_FILE).write_bytes(whole[:keep])
    with pytest.raises(CheckpointError, match=SINGLE_FILE):
        _load(path)


def _framed(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not a model at all, but long enough to look", "not a safetensors file"),
        (_framed(b"{{{"), "header is not valid"),
        (_framed(b"\xff\xfe"), "header is not valid"),
        (_framed([]), "not a JSON object"),
        (_framed({"a": {"dtype": "F32"}}), "entry of a is not valid"),
        (_framed({"a": 3}), "entry of a is not valid"),
        (_framed({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}), "a lies outside the file"),
        (_framed({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"x" * 8), "do not fit"),
        (_framed({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"x" * 9), "1 bytes after"),
        (_framed({"a": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}}, b"x" * 9), "leaves a hole"),
        (_framed(b'{"a": {}, "a": {}}'), "occurs twice"),
    ],
)
def test_garbage_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        Shard(file)
    assert str(file) in str(caught.value)


def test_missing_files_are_named(checkpoints, tmp_path: Path) -> None:
    source = checkpoints("llama_tied").path
    shutil.copy(source / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="neither"):
        _load(tmp_path)
    for text, reason in [
        ("{}", "no valid weight_map"),
        ("[1]", "no valid weight_map"),
        ('{"weight_map": {"a": "../a"}}', "is not a file name"),
        ('{"weight_map": {"a": "gone.safetensors"}}', r"gone\.safetensors: no such file"),
    ]:
        (tmp_path / INDEX_FILE).write_text(text)
        with pytest.raises(CheckpointError, match=reason):
            _load(tmp_path)


def test_a_tensor_in_two_files_is_refused(checkpoints, tmp_path: Path) -> None:
    source = checkpoints("llama_tied").path
    shutil.copy(source / "config.json", tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        shutil.copy(source / SINGLE_FILE, tmp_path / name)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    with pytest.raises(CheckpointError, match="stands in another file"):
        _load(tmp_path)


def test_a_bfloat16_checkpoint_runs_in_float32(tmp_path: Path) -> None:
    checkpoint = make_checkpoint("llama_tied", tmp_path)
    checkpoint.reference.to(torch.bfloat16).save_pretrained(tmp_path)
    config = ModelConfig.from_directory(tmp_path)
    assert config.dtype == torch.bfloat16
    assert load(tmp_path).config == config
