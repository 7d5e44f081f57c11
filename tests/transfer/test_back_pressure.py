"""Sources and receivers do so much at once and no more, and nobody's queue is another's delay."""

from __future__ import annotations

import threading

import pytest
from transfer_world import MB, filled

from hyperflexis.transfer.errors import Exhausted
from hyperflexis.transfer.handle import Transfer
from hyperflexis.transfer.receiver import Receiver, ReceiverLimits
from hyperflexis.transfer.source import Errand, Source, SourceLimits
from hyperflexis.transfer.tcp import StreamMedium

WAIT_S = 20.0


def test_source_serves_peers_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """One peer's eight pulls do not come before another's first."""
    order: list[str] = []
    has_begun, may_go_on = threading.Event(), threading.Event()
    serve = Source._serve

    def slowly(source: Source, errand: Errand) -> bool:
        order.append(errand.request.claim.peer)
        has_begun.set()
        may_go_on.wait(WAIT_S)
        return serve(source, errand)

    monkeypatch.setattr(Source, "_serve", slowly)
    limits = ReceiverLimits(transfers_max=8)
    with (
        Source(limits=SourceLimits(transfers_max=1)) as source,
        Receiver(["unix"], limits) as greedy,
        Receiver(["unix"], limits) as modest,
    ):
        descriptor = source.describe(source.expose(filled(64), 60.0))
        first = greedy.pull(descriptor, [(0, 0, 64)], bytearray(64))
        assert has_begun.wait(WAIT_S)
        handles = [first, *(greedy.pull(descriptor, [(0, 0, 64)], bytearray(64)) for _ in range(7))]
        _until_queued(source, greedy.id, 7)
        handles += [modest.pull(descriptor, [(0, 0, 64)], bytearray(64)) for _ in range(2)]
        _until_queued(source, modest.id, 2)
        may_go_on.set()
        for handle in handles:
            handle.result(WAIT_S)
        assert handles[1].waited_s > 0
        g, m = greedy.id, modest.id
        assert order == [g, g, m, g, m, g, g, g, g, g]


def _until_queued(source: Source, peer: str, count: int) -> None:
    tick = threading.Event()
    while len(source._turns._lines.get(peer, ())) < count:
        tick.wait(0.001)


def test_receiver_bounds_the_bytes_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = threading.Lock()
    running, most = 0, 0
    are_two, may_go_on = threading.Semaphore(0), threading.Event()
    pull = StreamMedium.pull

    def counting(medium: StreamMedium, transfer: Transfer) -> None:
        nonlocal running, most
        with lock:
            running += transfer.bytes
            most = max(most, running)
        are_two.release()
        may_go_on.wait(WAIT_S)
        pull(medium, transfer)
        with lock:
            running -= transfer.bytes

    monkeypatch.setattr(StreamMedium, "pull", counting)
    with Source() as source, Receiver(["unix"], ReceiverLimits(transfers_max=6, bytes_max=2 * MB)) as receiver:
        descriptor = source.describe(source.expose(filled(4 * MB), 60.0))
        handles = [receiver.pull(descriptor, [(0, 0, MB)], bytearray(MB)) for _ in range(6)]
        large = receiver.pull(descriptor, [(0, 0, 4 * MB)], bytearray(4 * MB))
        assert are_two.acquire(timeout=WAIT_S)
        assert are_two.acquire(timeout=WAIT_S)
        may_go_on.set()
        for handle in (*handles, large):
            handle.result(WAIT_S)
    # The large one exceeds the bound by itself; so it ran alone.
    assert most == 4 * MB
    assert running == 0


def test_pull_cancelled_while_it_waits_never_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    has_begun, may_go_on = threading.Event(), threading.Event()
    begun: list[Transfer] = []

    def slowly(_: StreamMedium, transfer: Transfer) -> None:
        begun.append(transfer)
        has_begun.set()
        may_go_on.wait(WAIT_S)

    monkeypatch.setattr(StreamMedium, "pull", slowly)
    with Source() as source, Receiver(["unix"], ReceiverLimits(transfers_max=1)) as receiver:
        descriptor = source.describe(source.expose(filled(64), 60.0))
        first, second = (receiver.pull(descriptor, [(0, 0, 64)], bytearray(64)) for _ in range(2))
        assert has_begun.wait(WAIT_S)
        second.cancel()
        assert second.is_done
        may_go_on.set()
        first.result(WAIT_S)
        assert begun == [first]


def test_source_lends_so_many_regions() -> None:
    with Source(limits=SourceLimits(regions_max=3)) as source:
        memory = filled(64)
        regions = [source.expose(memory, 60.0) for _ in range(3)]
        with pytest.raises(Exhausted, match="regions_max"):
            source.expose(memory, 60.0)
        source.revoke(regions[1])
        source.expose(memory, 60.0)
