"""Nothing is left behind: no file, no thread, whatever happened in between."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator

import pytest
from transfer_world import MB, MEDIA, HandClock, filled

from hyperflexis.transfer.errors import TransferError
from hyperflexis.transfer.receiver import Receiver
from hyperflexis.transfer.source import Source


def held() -> tuple[int, set[str]]:
    gc.collect()
    return len(os.listdir("/proc/self/fd")), {each.name for each in threading.enumerate() if "transfer" in each.name}


@pytest.fixture
def nothing_left() -> Iterator[None]:
    before = held()
    yield
    assert held() == before


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.usefixtures("nothing_left")
def test_after_pulls_of_every_outcome(medium: str) -> None:
    clock = HandClock()
    with Source(clock=clock) as source, Receiver([medium], clock=clock) as receiver:
        for turn in range(5):
            memory = filled(MB)
            region = source.expose(memory, 5.0)
            descriptor = source.describe(region)
            target = bytearray(MB)
            handles = [receiver.pull(descriptor, [(0, 0, MB)], target, has_checksums=bool(turn % 2)) for _ in range(4)]
            handles[0].cancel()
            if turn == 3:
                source.revoke(region)
            for handle in handles:
                try:
                    handle.result(20.0)
                except TransferError:
                    assert turn == 3 or handle is handles[0]
            memory.close()
    del memory, region, descriptor, target, handles, handle, source, receiver


@pytest.mark.usefixtures("nothing_left")
def test_after_a_source_that_could_not_start() -> None:
    with pytest.raises(OSError, match="assign"):
        Source(tcp_host="192.0.2.1")


@pytest.mark.parametrize("medium", MEDIA)
def test_connections_and_mappings_are_reused(medium: str) -> None:
    with Source() as source, Receiver([medium]) as receiver:
        memory = filled(MB)
        target = bytearray(MB)
        counts = set()
        for _ in range(6):
            region = source.expose(memory, 60.0)
            receiver.pull(source.describe(region), [(0, 0, MB)], target).result(20.0)
            source.revoke(region)
            counts.add(len(os.listdir("/proc/self/fd")))
        assert len(counts) == 1


def test_attachment_outlives_its_source_and_receiver() -> None:
    """Whoever computes with attached weights must not be pulled the ground away."""
    with Source() as source, Receiver() as receiver:
        memory = filled(MB)
        attachment = receiver.attach(source.describe(source.expose(memory, 60.0)))
    memory.close()
    assert attachment.view == memory.view
    with pytest.raises(TransferError):
        attachment.check()
