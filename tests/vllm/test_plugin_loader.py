"""Weights between real vLLM processes, and from our own engine to them, without a file of weights at the recipient."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Server, free_port, serving
from test_plugin_scheduler import complete, play

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

PROMPT = [70, 71, 72, 73]


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("secret") / "token"
    file.write_text("a token that all were given", encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def bare(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model without its weights."""
    folder = tmp_path_factory.mktemp("bare")
    for file in tiny_llama.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def expected(tiny_llama: Path) -> list[int]:
    """What the model answers, by the library that made it."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    answer = model.generate(torch.tensor([PROMPT]), max_new_tokens=16, do_sample=False, eos_token_id=None)
    return [int(each) for each in answer[0, len(PROMPT) :]]


def words(token: str, **more: str) -> str:
    return json.dumps({"token_file": token} | more)


@pytest.fixture(scope="module")
def donor(
    bare: Path, native: str, token: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, str]]:
    """A server that has its weights from an instance of ours, and lends them on."""
    address = f"127.0.0.1:{free_port()}"
    flags = ("--load-format", "hyperflexis", "--model-loader-extra-config")
    extra = words(token, donors=native, lend_on=address)
    with serving(bare, tmp_path_factory.mktemp("donor"), (*flags, extra)) as server:
        yield server, address


@pytest.fixture(scope="module")
def native(tiny_llama: Path, token: str) -> Iterator[str]:
    """Our own engine's weights, lent."""
    address = f"127.0.0.1:{free_port()}"
    words = [sys.executable, str(Path(__file__).with_name("native_lender.py")), str(tiny_llama), address, token]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as lender:
        assert lender.stdout is not None
        assert lender.stdin is not None
        assert lender.stdout.readline() == b"lending\n"
        yield address
        lender.stdin.close()


def test_vllm_starts_from_our_instance_without_files(donor: tuple[Server, str], expected: list[int]) -> None:
    server, _ = donor
    assert complete(server, PROMPT, 16)["choices"][0]["token_ids"] == expected
    said = server.log.read_text(encoding="utf-8", errors="replace")
    assert re.search(r"weights of .* come from process \d+ on \S+ by attach, lent on", said)


def test_vllm_starts_from_vllm_that_serves(
    donor: tuple[Server, str], bare: Path, token: str, expected: list[int]
) -> None:
    _, address = donor
    seen = play("loader", str(bare), words(token, donors=address))
    assert seen["tokens"] == expected


def test_disk_comes_after_donors_that_do_not_give(
    tiny_llama: Path, token: str, tmp_path: Path, expected: list[int]
) -> None:
    other = tmp_path / "other"
    other.write_text("a token that nobody else has", encoding="utf-8")
    nobody = f"127.0.0.1:{free_port()}"
    seen = play("loader", str(tiny_llama), words(str(other), donors=nobody))
    assert seen["tokens"] == expected
