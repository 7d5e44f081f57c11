"""A name for weights: the same for the same values however they are filed, another for others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hyperflexis.engine.errors import CheckpointError
from hyperflexis.engine.fingerprint import fingerprint
from hyperflexis.engine.weights import INDEX_FILE, SINGLE_FILE


@pytest.fixture
def original(checkpoints, tmp_path: Path) -> Path:
    path = tmp_path / "original"
    shutil.copytree(checkpoints("qwen3").path, path)
    return path


def resave(path: Path, tensors: dict[str, torch.Tensor], **options: object) -> None:
    save_file(tensors, path / SINGLE_FILE, **options)


def test_same_weights_have_the_same_name_in_any_files(original: Path) -> None:
    name = fingerprint(original)
    tensors = load_file(original / SINGLE_FILE)
    resave(original, dict(reversed(tensors.items())), metadata={"format": "pt", "note": "by another hand"})
    assert fingerprint(original) == name
    (original / SINGLE_FILE).unlink()
    halves = [dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2])]
    index = {}
    for number, half in enumerate(halves):
        save_file(half, original / f"part-{number}.safetensors")
        index |= dict.fromkeys(half, f"part-{number}.safetensors")
    (original / INDEX_FILE).write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    assert fingerprint(original) == name


def test_other_values_of_any_tensor_have_another_name(original: Path) -> None:
    tensors = load_file(original / SINGLE_FILE)
    names = {fingerprint(original)}
    for tensor in tensors:
        resave(original, {**tensors, tensor: tensors[tensor] + 1e-3})
        names.add(fingerprint(original))
    assert len(names) == 1 + len(tensors)


def test_other_dtype_has_another_name(original: Path) -> None:
    name = fingerprint(original)
    resave(original, {key: value.to(torch.bfloat16) for key, value in load_file(original / SINGLE_FILE).items()})
    assert fingerprint(original) != name


def test_without_weights_there_is_no_name(original: Path) -> None:
    (original / SINGLE_FILE).unlink()
    with pytest.raises(CheckpointError, match="neither"):
        fingerprint(original)
