"""Who speaks for a zygote, and what becomes of its instances when nobody does. Children are programs that wait."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

pytest.importorskip("torch")
if sys.platform != "linux":
    pytest.skip("instances as processes need Linux", allow_module_level=True)

from hyperflexis.adapters.native import loading, reins, zygote
from hyperflexis.adapters.native.keep import SOCKET_NAME
from hyperflexis.adapters.native.messages import (
    DATAGRAM_BYTES_MAX,
    Digested,
    Dismiss,
    Exited,
    Fork,
    Forked,
    Greeting,
    Load,
    Loaded,
    Offered,
    Orphan,
    Orphans,
    TakeOver,
    decode_from_zygote,
    encode,
)
from hyperflexis.adapters.native.words import words

LOAD = Load("/models/m", "cpu", "auto", 16, None, 2)
LOADED = Loaded("cpu", 1, "float32", 1, "", 8, 128, 100, [], 0.0)
OFFERED, DIGESTED = Offered(b"here"), Digested(b"root")
TIMEOUT_S = 7.0


class World:
    """A zygote whose loop is turned by hand, and whose clock is the test's."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch, *, is_kept: bool = True) -> None:
        self.now = 100.0
        self.address = str(directory / SOCKET_NAME)
        patch.setattr(zygote, "time", SimpleNamespace(monotonic=lambda: self.now))
        patch.setattr(loading, "load", self._load)
        patch.setattr(os, "fork", self._fork)
        patch.setattr(zygote, "_reins", self._reins)
        self.ends: dict[int, socket.socket] = {}
        """The instances' ends of their reins, by process."""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._last_end: socket.socket | None = None
        self.ours, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener = None
        if is_kept:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            listener.bind(self.address)
        self.zygote = zygote.Zygote(control, listener, TIMEOUT_S)
        self.is_over = False

    def _load(self, order: Load, hear: Any) -> loading.Held:
        assert order == LOAD
        hear(OFFERED)
        return loading.Held(object(), LOADED, None)  # type: ignore[arg-type]

    def _reins(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._last_end = theirs.dup()
        return ours, theirs

    def _fork(self) -> int:
        process = subprocess.Popen(["sleep", "1000"])
        self._processes.append(process)
        if self._last_end is not None:
            self.ends[process.pid], self._last_end = self._last_end, None
        return process.pid

    def turn(self) -> None:
        """Let the zygote take all that there is for it."""
        while not self.is_over and self._has_news():
            self.is_over = not self.zygote.turn(0.0)
        self.is_over = self.is_over or self.now >= self.zygote._ends_s

    def _has_news(self) -> bool:
        return bool(self.zygote._poll.poll(0))

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(self.address)
        self.turn()
        return sock

    def start(self, gateway: socket.socket, order: Fork) -> None:
        near, far = socket.socketpair()
        with near, far:
            socket.send_fds(gateway, [encode(order)], [far.fileno()])
        self.turn()

    def take_over(self, gateway: socket.socket) -> None:
        socket.send_fds(gateway, [encode(TakeOver(TIMEOUT_S))], [reins.STDERR])
        self.turn()

    def see_end(self, pid: int) -> None:
        """Let the zygote notice that a process has ended, unless it has already."""
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        self.turn()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for sock in (*self.ends.values(), self.ours, self.zygote._control, self.zygote._listener):
            if sock is not None:
                sock.close()
        for descriptor, each in self.zygote._children.items():
            os.close(descriptor)
            if each.reins is not None:
                each.reins.close()
        for process in self._processes:
            with contextlib.suppress(ChildProcessError):  # The zygote has reaped it.
                os.waitpid(process.pid, 0)
            process.returncode = 0


def heard(sock: socket.socket) -> list[Any]:
    """All that was said there and not read yet; None at its end."""
    sock.setblocking(False)
    found: list[Any] = []
    try:
        while data := sock.recv(DATAGRAM_BYTES_MAX):
            found.append(data)
        return [*map(decode_from_zygote, found), None]
    except BlockingIOError:
        return [decode_from_zygote(data) for data in found]
    finally:
        sock.setblocking(True)


def greeted(sock: socket.socket) -> Greeting:
    return msgspec.msgpack.decode(sock.recv(DATAGRAM_BYTES_MAX), type=Greeting)


def order(number: int, orphan_pid: int = 0) -> Fork:
    return Fork(number, "cpu", 1, 16, 8, 4, number=number, orphan_pid=orphan_pid)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, monkeypatch)
    yield made
    made.close()


def loaded(world: World) -> None:
    world.ours.send(encode(LOAD))
    world.turn()
    assert heard(world.ours) == [OFFERED, LOADED]


def forked(world: World, gateway: socket.socket, number: int) -> int:
    world.start(gateway, order(number))
    (told,) = heard(gateway)
    assert isinstance(told, Forked)
    assert told.number == number
    return told.pid


def test_without_a_keep_it_ends_with_its_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, is_kept=False)
    world.ours.close()
    world.turn()
    assert world.is_over
    world.close()


def test_without_a_model_there_is_nothing_to_keep(world: World) -> None:
    world.ours.close()
    world.turn()
    assert world.is_over


def test_next_gateway_hears_all_that_the_first_one_did(world: World) -> None:
    loaded(world)
    world.zygote._tell_of_weights(encode(DIGESTED))
    assert heard(world.ours) == [DIGESTED]
    pid = forked(world, world.ours, 1)
    world.ours.close()
    world.turn()
    second = world.connect()
    greeting = greeted(second)
    assert (greeting.words, greeting.load) == (words(), encode(LOAD))
    world.take_over(second)
    assert heard(second) == [Orphans([Orphan(pid, "cpu")]), OFFERED, LOADED, DIGESTED]
    second.close()


def test_orphan_is_given_the_order_and_the_stream(world: World) -> None:
    loaded(world)
    pid = forked(world, world.ours, 1)
    world.ours.close()
    world.turn()
    second = world.connect()
    greeted(second)
    world.take_over(second)
    heard(second)
    near, far = socket.socketpair()
    with near, far:
        socket.send_fds(second, [encode(order(5, pid))], [far.fileno()])
        world.turn()
        near.send(b"through")
        data, fds, _, _ = socket.recv_fds(world.ends[pid], DATAGRAM_BYTES_MAX, 3)
    assert heard(second) == [Forked(5, pid)]
    with socket.socket(fileno=fds[0]) as stream:
        assert stream.recv(99) == b"through"
    os.close(fds[1])
    assert len(fds) == 2
    assert data == encode(order(5, pid))
    second.close()


@pytest.mark.parametrize("is_reaped", [True, False])
def test_another_one_is_forked_for_an_orphan_that_died(world: World, is_reaped: bool) -> None:
    loaded(world)
    pid = forked(world, world.ours, 1)
    world.ours.close()
    world.turn()
    second = world.connect()
    greeted(second)
    world.take_over(second)
    heard(second)
    world.ends.pop(pid).close()  # As its end does.
    if is_reaped:
        os.kill(pid, signal.SIGKILL)
        world.see_end(pid)
    world.start(second, order(1, pid))
    (told,) = heard(second)
    assert isinstance(told, Forked)
    assert told.pid != pid
    second.close()


def test_who_only_looks_gains_no_time_and_may_order_nothing(world: World) -> None:
    loaded(world)
    world.ours.close()
    world.turn()
    world.now += TIMEOUT_S - 1.0
    visitor = world.connect()
    greeted(visitor)
    world.start(visitor, order(1))
    assert heard(visitor) == [None]
    assert not world.zygote._children
    visitor.close()
    world.now += 1.0
    world.turn()
    assert world.is_over


def test_foreign_user_is_not_let_in(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded(world)
    world.ours.close()
    world.turn()
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    stranger = world.connect()
    assert heard(stranger) == [None]
    monkeypatch.undo()
    stranger.close()


def test_orphans_are_dismissed_by_process_and_others_by_number(world: World) -> None:
    loaded(world)
    pids = [forked(world, world.ours, number) for number in (1, 2)]
    world.ours.close()
    world.turn()
    second = world.connect()
    greeted(second)
    world.take_over(second)
    world.start(second, order(1, pids[0]))
    heard(second)
    second.send(encode(Dismiss(orphans=pids)))
    world.turn()
    world.see_end(pids[1])
    assert [each.pid for each in world.zygote._children.values()] == [pids[0]]
    assert heard(second) == [], "of an orphan nobody knows"
    second.send(encode(Dismiss(number=1)))
    world.turn()
    world.see_end(pids[0])
    assert heard(second) == [Exited(1, -signal.SIGKILL)]
    second.close()


class Gateways(RuleBasedStateMachine):
    """Gateways come, look, take over, start, die; instances die at any time. What each one hears is what is."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.folder = tempfile.TemporaryDirectory()
        self.world = World(Path(self.folder.name), self.patch)
        loaded(self.world)
        self.connected: socket.socket | None = self.world.ours
        self.is_gateway = True
        self.deadline_s = math.inf
        self.numbers: dict[int, int] = {}
        """Number of the fork by process, of those that this gateway knows."""
        self.living: set[int] = set()
        self.next_number = 1

    def teardown(self) -> None:
        if self.connected is not None:
            self.connected.close()
        self.world.close()
        self.patch.undo()
        self.folder.cleanup()

    @precondition(lambda self: self.connected is not None)
    @rule()
    def disconnect(self) -> None:
        assert self.connected is not None
        self.connected.close()
        self.connected = None
        if self.is_gateway:
            self.deadline_s = self.world.now + TIMEOUT_S
        self.is_gateway, self.numbers = False, {}
        self.world.turn()

    @precondition(lambda self: self.connected is None and not self.world.is_over)
    @rule()
    def look(self) -> None:
        self.connected = self.world.connect()
        assert greeted(self.connected).load == encode(LOAD)

    @precondition(lambda self: self.connected is not None and not self.is_gateway and not self.world.is_over)
    @rule()
    def take_over(self) -> None:
        assert self.connected is not None
        self.world.take_over(self.connected)
        orphans, *rest = heard(self.connected)
        assert {each.pid for each in orphans.orphans} == self.living
        assert rest == [OFFERED, LOADED]
        self.is_gateway, self.deadline_s, self.next_number = True, math.inf, 1

    @precondition(lambda self: self.is_gateway and len(self.living) < 4)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        assert self.connected is not None
        orphans = sorted(self.living - self.numbers.keys())
        orphan = data.draw(st.sampled_from([0, *orphans]))
        number, self.next_number = self.next_number, self.next_number + 1
        self.world.start(self.connected, order(number, orphan))
        (told,) = heard(self.connected)
        assert told.number == number
        assert told.pid == orphan or (not orphan and told.pid not in self.living)
        self.living.add(told.pid)
        self.numbers[told.pid] = number

    @precondition(lambda self: self.living and not self.world.is_over)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        pid = data.draw(st.sampled_from(sorted(self.living)))
        self.living.remove(pid)
        self.world.ends.pop(pid).close()
        os.kill(pid, signal.SIGKILL)
        self.world.see_end(pid)
        number = self.numbers.pop(pid, None)
        if self.connected is not None:
            expected = [] if number is None else [Exited(number, -signal.SIGKILL)]
            assert heard(self.connected) == expected

    @rule(seconds=st.floats(0.1, 5.0))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.turn()

    @invariant()
    def it_waits_just_so_long(self) -> None:
        assert self.world.is_over == (self.world.now >= self.deadline_s)
        if not self.world.is_over:
            assert {each.pid for each in self.world.zygote._children.values()} == self.living


Gateways.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestGateways = Gateways.TestCase


def test_reins_of_nobody_are_not_offered_to() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    near, far = socket.socketpair()
    with ours, near, far:
        assert not reins.offer(ours, order(1), far)


def test_instance_whose_zygote_has_gone_is_adopted_by_nobody() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    with theirs:
        assert reins.accept(theirs) is None
