"""What every medium that works everywhere does alike: the contract."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_world import MB, MEDIA, SIZE, HandClock, apart, filled

from hyperflexis.transfer import connections, shm, tcp
from hyperflexis.transfer.descriptor import Descriptor, read_descriptor
from hyperflexis.transfer.door import DoorLimits
from hyperflexis.transfer.errors import (
    BadDescriptor,
    BadRanges,
    Cancelled,
    Corrupt,
    LeaseExpired,
    Recycled,
    RefusedError,
    Revoked,
    TimedOut,
    TransferError,
    Unreachable,
)
from hyperflexis.transfer.handle import Transfer
from hyperflexis.transfer.protocol import SEGMENT_BYTES
from hyperflexis.transfer.receiver import Receiver
from hyperflexis.transfer.source import Errand, Source, SourceLimits

WAIT_S = 20.0


def lent(source: Source, memory: Any, lease_s: float = 10.0) -> Descriptor:
    """A descriptor as it arrives elsewhere."""
    return read_descriptor(source.describe(source.expose(memory, lease_s, "kv")).to_bytes())


def pull(receiver: Receiver, descriptor: Descriptor, size_bytes: int, **options: Any) -> bytearray:
    target = bytearray(size_bytes)
    receiver.pull(descriptor, [(0, 0, size_bytes)], target, **options).result(WAIT_S)
    return target


def failure(receiver: Receiver, descriptor: Descriptor, size_bytes: int = 64, **options: Any) -> TransferError:
    with pytest.raises(TransferError) as found:
        pull(receiver, descriptor, size_bytes, **options)
    return found.value


# Bytes.


@pytest.mark.parametrize("has_checksums", [False, True])
def test_ranges_arrive_where_they_belong(source: Source, receiver: Receiver, medium: str, has_checksums: bool) -> None:
    memory = filled(3 * MB)
    target = bytearray(b"\7" * 3 * MB)
    ranges = [(5, 100, 7), (MB - 1, 2 * MB - 1, MB + 1), (12, 107, 3)]
    descriptor = lent(source, memory)
    pulled = receiver.pull(descriptor, ranges, target, has_checksums=has_checksums).result(WAIT_S)
    assert (pulled.medium, pulled.bytes) == (medium, 7 + MB + 1 + 3)
    expected = bytearray(b"\7" * 3 * MB)
    expected[100:110] = memory.view[5:15]
    expected[2 * MB - 1 : 3 * MB] = memory.view[MB - 1 : 2 * MB]
    assert target == expected


@pytest.mark.parametrize("name", MEDIA)
def test_any_ranges_arrive_byte_equal(name: str) -> None:
    memory = filled(SIZE)
    with Source() as owner, Receiver([name]) as receiver:
        descriptor = lent(owner, memory)

        @given(apart(), st.booleans())
        @settings(max_examples=40)
        def check(ranges: list[tuple[int, int, int]], has_checksums: bool) -> None:
            target, expected = bytearray(SIZE), bytearray(SIZE)
            for at_source, at_target, length in ranges:
                expected[at_target : at_target + length] = memory.view[at_source : at_source + length]
            receiver.pull(descriptor, ranges, target, has_checksums=has_checksums).result(WAIT_S)
            assert target == expected

        check()


def test_many_small_ranges(source: Source, receiver: Receiver) -> None:
    """More than one segment takes, and more than one call to the kernel."""
    memory = filled(MB)
    ranges = [(offset, MB - 128 - offset, 100) for offset in range(0, MB - 128, 128)]
    target = bytearray(MB)
    receiver.pull(lent(source, memory), ranges, target, has_checksums=True).result(WAIT_S)
    assert all(target[to : to + n] == memory.view[at : at + n] for at, to, n in ranges)


def test_pull_of_nothing(source: Source, receiver: Receiver) -> None:
    assert receiver.pull(lent(source, filled(10)), [(0, 0, 0)], bytearray(1)).result(WAIT_S).bytes == 0


def test_one_source_serves_many_pulls_at_once(source: Source, receiver: Receiver) -> None:
    memory = filled(MB)
    descriptors = [lent(source, memory) for _ in range(5)]
    targets = [bytearray(MB) for _ in range(20)]
    handles = [
        receiver.pull(descriptors[index % 5], [(0, 0, MB)], target, has_checksums=True)
        for index, target in enumerate(targets)
    ]
    for handle in handles:
        handle.result(WAIT_S)
    assert all(target == memory.view for target in targets)


# Leases.


def test_expired_lease_is_refused(source: Source, receiver: Receiver, clock: HandClock) -> None:
    descriptor = lent(source, filled(64), lease_s=2.0)
    clock.advance(1.9)
    pull(receiver, descriptor, 64)
    clock.advance(0.2)
    error = failure(receiver, descriptor)
    assert isinstance(error, LeaseExpired)
    assert str(error).startswith(f"region kv of {source.owner} is no longer lent")


def test_revoked_region_is_refused(source: Source, receiver: Receiver) -> None:
    region = source.expose(filled(64), 10.0)
    descriptor = source.describe(region)
    pull(receiver, descriptor, 64)
    source.revoke(region)
    source.revoke(region)
    assert isinstance(failure(receiver, descriptor), Revoked)
    for refused in (source.renew, source.shorten, source.recycle):
        with pytest.raises(Revoked):
            refused(region, 1.0)
    with pytest.raises(Revoked):
        source.describe(region)


def test_recycled_memory_is_refused_to_holders_of_the_old_descriptor(source: Source, receiver: Receiver) -> None:
    region = source.expose(filled(64), 10.0)
    old = source.describe(region)
    pull(receiver, old, 64)
    source.recycle(region, 10.0)
    assert isinstance(failure(receiver, old), Recycled)
    pull(receiver, source.describe(region), 64)


def test_renewed_lease_holds_for_descriptors_already_out(source: Source, receiver: Receiver, clock: HandClock) -> None:
    region = source.expose(filled(64), 2.0)
    descriptor = source.describe(region)
    assert descriptor.lease_s == 2.0
    source.renew(region, 5.0)
    clock.advance(4.0)
    pull(receiver, descriptor, 64)
    source.shorten(region, 0.5)
    clock.advance(0.5)
    assert isinstance(failure(receiver, descriptor), LeaseExpired)
    with pytest.raises(LeaseExpired):
        source.renew(region, 5.0)
    source.recycle(region, 1.0)
    pull(receiver, source.describe(region), 64)


@pytest.mark.parametrize("end", ["revoke", "recycle", "expire"])
def test_lease_that_ends_while_bytes_move(
    source: Source, receiver: Receiver, clock: HandClock, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late: until the last byte has been read, the owner's word counts."""
    memory = filled(3 * MB)
    region = source.expose(memory, 10.0)
    descriptor = source.describe(region)
    pull(receiver, descriptor, 3 * MB)
    acts: dict[str, tuple[Callable[[], object], type[RefusedError]]] = {
        "revoke": (lambda: source.revoke(region), Revoked),
        "recycle": (lambda: source.recycle(region, 10.0), Recycled),
        "expire": (lambda: clock.advance(11.0), LeaseExpired),
    }
    act, expected = acts[end]
    _after_the_last_byte(monkeypatch, act)
    target = bytearray(3 * MB)
    with pytest.raises(expected):
        receiver.pull(descriptor, [(0, 0, 3 * MB)], target).result(WAIT_S)


def _after_the_last_byte(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Both where a reader copies by itself, and where the source sends."""
    copy, send = shm._copy, tcp.send_all
    segments = 0

    def copy_and_act(view: memoryview, transfer: Transfer) -> None:
        copy(view, transfer)
        act()

    def send_and_act(sock: Any, views: list[Any]) -> None:
        nonlocal segments
        send(sock, views)
        segments += 1
        if segments == 3 * MB // SEGMENT_BYTES:
            act()

    monkeypatch.setattr(shm, "_copy", copy_and_act)
    monkeypatch.setattr(tcp, "send_all", send_and_act)


def test_lease_that_ends_while_checksums_are_computed(
    source: Source, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is the lease's end, not that bytes differ which may be others' by now."""
    memory = filled(64)
    region = source.expose(memory, 10.0)
    descriptor = source.describe(region)
    compute = Source._checksums

    def revoke_and_compute(owner: Source, errand: Errand) -> list[int]:
        source.revoke(region)
        memory.view[:] = bytes(64)
        return compute(owner, errand)

    monkeypatch.setattr(Source, "_checksums", revoke_and_compute)
    assert isinstance(failure(receiver, descriptor, has_checksums=True), Revoked)


# Errors.


def test_corrupted_bytes_are_noticed(
    source: Source, receiver: Receiver, medium: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = filled(MB)
    descriptor = lent(source, memory)
    module, name = (shm, "_copy") if medium == "shm" else (tcp, "_receive")
    original = getattr(module, name)

    def damaged(what: Any, transfer: Transfer) -> Any:
        found = original(what, transfer)
        transfer.target[700_000] ^= 1
        return found

    monkeypatch.setattr(module, name, damaged)
    ranges = [(0, 0, 1000), (500_000, 600_000, 200_000)]
    pulled = receiver.pull(descriptor, ranges, bytearray(MB), has_checksums=True)
    with pytest.raises(Corrupt, match=r"bytes 500000 to 700000 of region kv of process .* target offset 600000"):
        pulled.result(WAIT_S)
    receiver.pull(descriptor, ranges, bytearray(MB)).result(WAIT_S)


@pytest.mark.parametrize("change", [{"token": b"x" * 16}, {"token": b""}, {"region": 99}])
def test_forged_descriptor_is_refused(source: Source, receiver: Receiver, change: dict[str, Any]) -> None:
    forged = msgspec.structs.replace(lent(source, filled(64)), **change)
    assert isinstance(failure(receiver, forged), BadDescriptor)


def test_source_that_is_gone_is_unreachable(clock: HandClock, receiver: Receiver) -> None:
    with Source(clock=clock) as source:
        descriptor = lent(source, filled(64))
    assert isinstance(failure(receiver, descriptor), Unreachable)


def test_source_that_closes_is_noticed_by_those_who_know_it(clock: HandClock, receiver: Receiver) -> None:
    with Source(clock=clock) as source:
        descriptor = lent(source, filled(64))
        pull(receiver, descriptor, 64)
    assert isinstance(failure(receiver, descriptor), Unreachable | RefusedError)


def test_ranges_that_do_not_fit_are_refused_at_once(source: Source, receiver: Receiver) -> None:
    descriptor = lent(source, filled(64))
    with pytest.raises(BadRanges, match="leaves the region of 64 bytes"):
        receiver.pull(descriptor, [(60, 0, 5)], bytearray(64))
    with pytest.raises(BadRanges, match="the target of 3"):
        receiver.pull(descriptor, [(0, 0, 5)], bytearray(3))


@pytest.mark.parametrize("target", [b"read only", [1, 2], memoryview(bytearray(20))[::2]])
def test_target_that_cannot_be_filled(source: Source, receiver: Receiver, target: Any) -> None:
    with pytest.raises(BadDescriptor, match="mend the caller"):
        receiver.pull(lent(source, filled(64)), [(0, 0, 5)], target)


# The end of pulls.


def _stuck(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Whoever moves bytes reports, and then waits until told to go on."""
    is_stuck, may_go_on = threading.Event(), threading.Event()
    copy, send = shm._copy_large, tcp.send_all

    def wait() -> None:
        is_stuck.set()
        may_go_on.wait(WAIT_S)

    def copy_slowly(view: memoryview, target: memoryview, whole: Any, transfer: Transfer) -> None:
        wait()
        copy(view, target, whole, transfer)

    def send_slowly(sock: Any, views: list[Any]) -> None:
        if len(views) > 1:
            wait()
        send(sock, views)

    monkeypatch.setattr(shm, "_copy_large", copy_slowly)
    monkeypatch.setattr(tcp, "send_all", send_slowly)
    return is_stuck, may_go_on


def test_cancelled_pull_ends(source: Source, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    is_stuck, may_go_on = _stuck(monkeypatch)
    handle = receiver.pull(lent(source, filled(8 * MB)), [(0, 0, 8 * MB)], bytearray(8 * MB))
    assert is_stuck.wait(WAIT_S)
    assert not handle.is_done
    handle.cancel()
    handle.cancel()
    # A copy goes on to its next look at the handle; a socket is woken at once.
    threading.Timer(0.05, may_go_on.set).start()
    with pytest.raises(Cancelled, match="was cancelled by its caller"):
        handle.result(WAIT_S)
    may_go_on.set()
    handle.cancel()
    pull(receiver, lent(source, filled(64)), 64)


def test_pull_ends_at_its_time_limit(source: Source, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    is_stuck, may_go_on = _stuck(monkeypatch)
    handle = receiver.pull(lent(source, filled(8 * MB)), [(0, 0, 8 * MB)], bytearray(8 * MB), timeout_s=0.03)
    assert is_stuck.wait(WAIT_S)
    threading.Timer(0.1, may_go_on.set).start()
    with pytest.raises(TimedOut, match=r"within the 0.03 s its caller allows"):
        handle.result(WAIT_S)
    may_go_on.set()


def test_closing_a_receiver_cancels_its_pulls(
    source: Source, medium: str, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_stuck, may_go_on = _stuck(monkeypatch)
    receiver = Receiver([medium], clock=clock)
    descriptor = lent(source, filled(8 * MB))
    handles = [receiver.pull(descriptor, [(0, 0, 8 * MB)], bytearray(8 * MB)) for _ in range(6)]
    assert is_stuck.wait(WAIT_S)
    threading.Timer(0.05, may_go_on.set).start()
    receiver.close()
    for handle in handles:
        with pytest.raises(Cancelled):
            handle.result(0)
    with pytest.raises(Cancelled, match="closed"):
        receiver.pull(descriptor, [(0, 0, 64)], bytearray(64)).result(WAIT_S)


def test_closing_a_source_ends_its_pulls(
    receiver: Receiver, medium: str, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(clock=clock)
    is_stuck, may_go_on = _stuck(monkeypatch)
    handle = receiver.pull(lent(source, filled(8 * MB)), [(0, 0, 8 * MB)], bytearray(8 * MB))
    assert is_stuck.wait(WAIT_S)
    threading.Timer(0.05, may_go_on.set).start()
    source.close()
    with pytest.raises(TransferError):
        handle.result(WAIT_S)


def test_callback_hears_of_every_end(source: Source, receiver: Receiver) -> None:
    heard: list[Transfer] = []
    is_heard = threading.Semaphore(0)

    def note(transfer: Transfer) -> None:
        heard.append(transfer)
        is_heard.release()

    region = source.expose(filled(64), 10.0)
    descriptor = source.describe(region)
    first = receiver.pull(descriptor, [(0, 0, 64)], bytearray(64))
    first.add_done_callback(note)
    assert is_heard.acquire(timeout=WAIT_S)
    source.revoke(region)
    second = receiver.pull(descriptor, [(0, 0, 64)], bytearray(64))
    second.add_done_callback(note)
    assert is_heard.acquire(timeout=WAIT_S)
    assert heard == [first, second]
    assert all(each.is_done for each in heard)
    assert "Pulled(medium=" in repr(first)
    assert "Revoked" in repr(second)


# What is special.


def test_estimate_learns_from_pulls(source: Source, receiver: Receiver, medium: str) -> None:
    descriptor = lent(source, filled(64))
    before = receiver.predict_s(descriptor, MB)
    pull(receiver, descriptor, 64)
    assert receiver.predict_s(descriptor, MB) != before
    assert receiver.predict_s(descriptor, MB) == receiver.bandwidth.predict_s(source.id, medium, MB)


@pytest.mark.parametrize("buffer", [b"0123456789", bytearray(b"0123456789"), memoryview(b"0123456789")])
def test_any_buffer_can_be_lent_but_only_shared_memory_mapped(source: Source, buffer: Any) -> None:
    descriptor = lent(source, buffer)
    assert descriptor.media == ("unix", "tcp")
    with Receiver() as receiver:
        assert pull(receiver, descriptor, 10) == b"0123456789"
        with pytest.raises(Unreachable, match="cannot be mapped"):
            receiver.attach(descriptor)


def test_attached_region_is_read_in_place(source: Source, clock: HandClock) -> None:
    memory = filled(MB)
    region = source.expose(memory, math.inf, "weights")
    with Receiver(clock=clock) as receiver:
        attachment = receiver.attach(read_descriptor(source.describe(region).to_bytes()))
        assert attachment.view == memory.view
        assert attachment.view.readonly
        memory.view[5] ^= 255
        assert attachment.view[5] == memory.view[5]
        assert attachment.check() == math.inf
        source.revoke(region)
        with pytest.raises(Revoked, match="region weights"):
            attachment.check()


def test_no_way_leads_there(source: Source) -> None:
    with Receiver(["shm"]) as receiver:
        descriptor = lent(source, bytearray(64))
        error = failure(receiver, descriptor)
        assert isinstance(error, Unreachable)
        assert "offered: unix, tcp" in str(error)
        with pytest.raises(Unreachable):
            receiver.predict_s(descriptor, MB)


def test_best_way_is_taken_and_the_next_where_it_fails(source: Source, clock: HandClock) -> None:
    descriptor = lent(source, filled(64))
    with Receiver(clock=clock) as receiver:
        target = bytearray(64)
        assert receiver.pull(descriptor, [(0, 0, 64)], target).result(WAIT_S).medium == "shm"
    with Receiver(clock=clock) as receiver:
        elsewhere = msgspec.structs.replace(descriptor, unix="nobody-listens-there")
        assert receiver.pull(elsewhere, [(0, 0, 64)], target).result(WAIT_S).medium == "tcp"


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
def test_source_must_know_its_address(host: str) -> None:
    with pytest.raises(ValueError, match="name the one address"):
        Source(tcp_host=host)


def test_source_on_an_address_of_another_machine() -> None:
    with pytest.raises(OSError, match="assign"):
        Source(tcp_host="192.0.2.1")


@pytest.mark.parametrize("is_seen", [True, False])
def test_connection_that_the_source_gave_up_is_made_anew(
    medium: str, is_seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle peers are closed out; it costs them the next connection, also where it ends just as it is used again."""
    if not is_seen:
        monkeypatch.setattr(connections, "_is_quiet", lambda _: True)
    tick = threading.Event()
    with Source(limits=SourceLimits(door=DoorLimits(idle_s=0.01))) as source, Receiver([medium]) as receiver:
        memory = filled(64)
        descriptor = lent(source, memory, 60.0)
        for _ in range(3):
            assert pull(receiver, descriptor, 64) == memory.view
            while source._door._connections:
                tick.wait(0.001)


def test_source_without_tcp() -> None:
    with Source(tcp_host=None) as source, Receiver(["tcp"]) as receiver:
        descriptor = lent(source, filled(64))
        assert descriptor.tcp is None
        assert isinstance(failure(receiver, descriptor), Unreachable)
