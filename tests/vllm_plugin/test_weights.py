"""Tensors for vLLM from donors and from disk, without vLLM: who gives when others fail, and that all give the same."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hyperflexis.adapters.native.arena_memory import ArenaMemory
from hyperflexis.engine.arena import ArenaLayout
from hyperflexis.engine.config import ModelConfig
from hyperflexis.engine.errors import CheckpointError
from hyperflexis.engine.fingerprint import fingerprint
from hyperflexis.engine.weights import load_checkpoint
from hyperflexis.transfer.memory import SharedMemory
from hyperflexis.transfer.weights.donor import Donor
from hyperflexis.transfer.weights.identity import Identity
from hyperflexis.transfer.weights.manifest import Manifest
from hyperflexis.transfer.weights.offer import Offer, offer_at
from hyperflexis.vllm_plugin.peers import Peers
from hyperflexis.vllm_plugin.weights import Weights

DEMO = Path(__file__).parent.parent.parent / "src" / "hyperflexis" / "demo_model"
SECRET = b"a token that both were given"
DTYPE = torch.float32


def lending() -> Peers:
    return Peers([], ("127.0.0.1", 0), SECRET)


def asking(*offers: Offer, lend: bool = False) -> Peers:
    return Peers(list(offers), ("127.0.0.1", 0) if lend else None, SECRET)


def offer_of(weights: Weights, secret: bytes = SECRET) -> Offer:
    assert weights.lent_at is not None
    return offer_at(*weights.lent_at, secret)


@pytest.fixture(scope="module")
def first() -> Iterator[Weights]:
    """From disk, and lent as long as these tests last."""
    weights = Weights(DEMO, DTYPE, lending())
    yield weights
    weights.close()


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A directory with a configuration and no weights."""
    for file in DEMO.glob("*.json"):
        shutil.copy(file, tmp_path)
    return tmp_path


def same_as_checkpoint(weights: Weights) -> bool:
    expected = load_file(DEMO / "model.safetensors")
    found = dict(weights.tensors())
    extra = expected.keys() - found.keys()
    assert extra <= {"lm_head.weight"}, "a tied checkpoint may carry it"
    return all(torch.equal(found[name], expected[name].to(DTYPE)) for name in found)


def test_disk_gives_what_the_checkpoint_has(first: Weights) -> None:
    assert first.origin == "disk"
    assert same_as_checkpoint(first)


def test_donor_gives_the_same_also_without_files(first: Weights, bare: Path) -> None:
    weights = Weights(bare, DTYPE, asking(offer_of(first)))
    assert weights.origin.endswith(" by attach"), weights.origin
    assert (weights.failures, weights.lent_at) == ([], None)
    assert same_as_checkpoint(weights)
    weights.close()


def test_recipient_lends_on_at_once(first: Weights, bare: Path) -> None:
    second = Weights(bare, DTYPE, asking(offer_of(first), lend=True))
    third = Weights(bare, DTYPE, asking(offer_of(second)))
    assert third.origin.endswith(" by attach")
    assert same_as_checkpoint(third)
    for each in (second, third):
        each.close()


def test_dead_and_foreign_donors_are_passed_over(first: Weights, bare: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    nobody = offer_at("127.0.0.1", port, SECRET)
    weights = Weights(bare, DTYPE, asking(nobody, offer_of(first, b"another secret, as long"), offer_of(first)))
    assert weights.origin.endswith(" by attach")
    assert len(weights.failures) == 2
    assert "another secret" in weights.failures[1]
    weights.close()


def test_other_dtype_comes_from_disk(first: Weights) -> None:
    weights = Weights(DEMO, torch.bfloat16, asking(offer_of(first)))
    assert weights.origin == "disk"
    assert "another dtype (float32, not bfloat16)" in weights.failures[0]
    assert next(weights.tensors())[1].dtype == torch.bfloat16
    weights.close()


def test_lie_is_found_and_the_disk_asked() -> None:
    """A donor with the right digests, and other bytes almost everywhere."""
    layout = ArenaLayout.of(ModelConfig.from_directory(DEMO), DTYPE)
    true = bytearray(layout.bytes)
    load_checkpoint(DEMO, ModelConfig.from_directory(DEMO), layout, true)
    arena = ArenaMemory()
    arena.resize(layout.bytes)
    os.pwrite(arena.fd, bytes(layout.bytes), 0)
    arena.seal()
    memory = SharedMemory.of_file(arena.fd)
    liar = Donor(secret=SECRET, tcp_host="127.0.0.1")
    liar.lend(Identity(fingerprint(DEMO), "float32", layout.hash, layout.bytes), memory)
    liar.publish(Manifest.of(memoryview(true)))
    try:
        weights = Weights(DEMO, DTYPE, asking(_by_address(liar)))
    finally:
        liar.close()
        arena.close()
    assert weights.origin == "disk"
    assert "is not what it is to be at byte" in weights.failures[0]
    assert same_as_checkpoint(weights)
    weights.close()


def _by_address(donor: Donor) -> Offer:
    assert donor.offer.tcp is not None
    return offer_at(*donor.offer.tcp, SECRET)


def test_nobody_has_them(bare: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(CheckpointError, match=r"no donor gave the weights: .*does not answer"):
        Weights(bare, DTYPE, asking(offer_at("127.0.0.1", port, SECRET)))


def test_address_in_use_is_no_reason_not_to_serve(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        weights = Weights(DEMO, DTYPE, Peers([], taken.getsockname()[:2], SECRET))
    assert weights.lent_at is None
    assert "weights are not lent on 127.0.0.1" in caplog.text
    assert same_as_checkpoint(weights)
    weights.close()
