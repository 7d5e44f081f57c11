"""Weights on a device: from a sibling there, or from the host, the same ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from adapters.fleets import DEMO_MODEL, Heard, NativeFleet, submission
from hyperflexis.adapters.native import device_weights, loading
from hyperflexis.adapters.native.arena_memory import ArenaMemory
from hyperflexis.engine.arena import ArenaLayout
from hyperflexis.engine.config import ModelConfig
from hyperflexis.engine.weights import random_weights
from hyperflexis.transfer.memory import SharedMemory
from hyperflexis.transfer.source import Source


@pytest.fixture
def model() -> Iterator[loading.Model]:
    config = ModelConfig.from_directory(DEMO_MODEL)
    layout, memory = ArenaLayout.of(config, torch.float32), ArenaMemory()
    memory.resize(layout.bytes)
    random_weights(config, layout, memoryview(memory.map_for_writing()), seed=1)
    memory.seal()
    yield loading.Model(config, layout, memory, torch.float32)
    memory.close()


def test_on_a_host_they_are_the_arena(model: loading.Model) -> None:
    flat = device_weights.flat_weights(model, "cpu")
    assert bytes(flat[:4096].numpy()) == model.memory.map_for_reading()[:4096]


def test_sibling_that_gives_nothing_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """What lies on a host is lent by no medium of devices."""
    memory = SharedMemory(4096)
    with Source() as source, caplog.at_level(logging.WARNING):
        sibling = source.describe(source.expose(memory, 60.0)).to_bytes()
        assert not device_weights.pulled(torch.zeros(4096, dtype=torch.uint8), sibling)
    assert "weights come from this host's memory" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_second_instance_has_its_siblings_weights() -> None:
    fleet = NativeFleet(device="cuda", instances=2)

    async def play() -> None:
        heard = [Heard(), Heard()]
        for each in heard:
            adapter = fleet.start(each)
            ready = await each.until_ready()
            assert ready.weights
            adapter.submit(submission(1, [11, 12, 13], 16))
            await each.until_finished(1)
        assert heard[0].tokens == heard[1].tokens

    fleet.play(play())
    fleet.close()
