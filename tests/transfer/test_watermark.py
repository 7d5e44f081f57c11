"""Nothing is served before it has settled, in whatever order it is asked for and comes."""

from __future__ import annotations

import threading
import time

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from helpers.soak import examples
from hyperflexis.transfer import source as source_module
from hyperflexis.transfer.choice import offered
from hyperflexis.transfer.errors import Unsettled
from hyperflexis.transfer.handle import Transfer
from hyperflexis.transfer.memory import SharedMemory
from hyperflexis.transfer.receiver import Receiver, ReceiverLimits
from hyperflexis.transfer.source import Source, SourceLimits
from hyperflexis.transfer.watermark import Watermark

SIZE = 64
WAIT_S = 20.0
POISON = 0xFF

steps = st.lists(
    st.one_of(
        st.tuples(st.just("rise"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("pull"), st.integers(0, SIZE - 1), st.integers(1, SIZE)),
    ),
    max_size=12,
)


@given(steps=steps, medium=st.sampled_from(["unix", "tcp"]))
@settings(max_examples=examples(40))
def test_no_byte_is_served_before_it_has_settled(steps: list[tuple[str, int, int]], medium: str) -> None:
    truth = bytes(range(SIZE))
    memory, watermark = bytearray([POISON] * SIZE), Watermark(SIZE)
    pulls: list[tuple[int, Transfer, bytearray]] = []
    limits = SourceLimits(transfers_max=12)
    with Source(limits=limits) as source, Receiver([medium], ReceiverLimits(transfers_max=12)) as receiver:
        descriptor = source.describe(source.expose(memory, 60.0, watermark=watermark))
        for act, start, length in steps:
            if act == "rise":
                end = min(SIZE, watermark.settled_bytes + start)
                memory[:end] = truth[:end]
                watermark.rise(end)
            else:
                target = bytearray(min(length, SIZE - start))
                pull = receiver.pull(descriptor, [(start, 0, len(target))], target, timeout_s=None)
                pulls.append((start, pull, target))
            for at, pull, target in pulls:
                if at + len(target) <= watermark.settled_bytes:
                    pull.result(WAIT_S)
                    assert target == truth[at : at + len(target)]
                else:
                    assert not pull.is_done
        watermark.break_off("the test is over")
        for at, pull, target in pulls:
            if at + len(target) > watermark.settled_bytes:
                with pytest.raises(Unsettled, match="the test is over"):
                    pull.result(WAIT_S)


def test_region_that_is_being_filled_is_lent_by_its_source_alone() -> None:
    """Who maps memory, or reads it by RDMA, asks nobody how far it has come."""
    memory = SharedMemory(4096)
    assert offered(memory, has_nixl=True, has_tcp=True, is_filling=True) == ("unix", "tcp")
    assert offered(memory, has_nixl=True, has_tcp=False, is_filling=True) == ("unix",)


def test_wait_for_what_does_not_come_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "SETTLING_S", 0.1)
    with Source() as source, Receiver(["unix"]) as receiver:
        descriptor = source.describe(source.expose(bytearray(SIZE), 60.0, watermark=Watermark(SIZE)))
        with pytest.raises(Unsettled, match="has come no further"):
            receiver.pull(descriptor, [(0, 0, 1)], bytearray(1)).result(WAIT_S)


def test_closing_waits_for_nobody_who_waits() -> None:
    source = Source()
    descriptor = source.describe(source.expose(bytearray(SIZE), 60.0, watermark=Watermark(SIZE)))
    with Receiver(["unix"]) as receiver:
        pull = receiver.pull(descriptor, [(0, 0, 1)], bytearray(1))
        began_s = time.monotonic()
        source.close()
        assert time.monotonic() - began_s < 5
        assert pull.is_done or pull._outcome.exception(WAIT_S)


def test_mark_never_falls() -> None:
    watermark = Watermark(SIZE)
    watermark.rise(10)
    for wrong in (9, SIZE + 1):
        with pytest.raises(AssertionError):
            watermark.rise(wrong)
    assert watermark.reaches(10)
    assert not watermark.reaches(11)


def test_waiter_is_woken() -> None:
    watermark, woken = Watermark(SIZE), threading.Event()
    thread = threading.Thread(target=lambda: watermark.reaches(SIZE, WAIT_S) and woken.set())
    thread.start()
    watermark.rise(SIZE)
    assert woken.wait(WAIT_S)
    thread.join()
