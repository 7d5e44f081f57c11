"""The gateway process's end of an instance's socket, with this test at the other end. No process is started."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from adapters.fleets import Heard, submission
from helpers.virtual_loop import virtual
from hyperflexis.adapters.native.host import NativeAdapter
from hyperflexis.wire.framing import Framer, Frames
from hyperflexis.wire.messages import Configure, Failed, Ready, Shutdown, StepReport, ToInstance, Work

READY = Ready(10, 16, 4, {}, [], "cpu")


class Peer:
    """Stands in for the instance's process."""

    def __init__(self) -> None:
        self.sock, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self._frames: Frames[Any] = Frames(ToInstance)
        self._framer = Framer()

    def adapter(self, heard: Heard) -> NativeAdapter:
        adapter = NativeAdapter(heard, asyncio.get_running_loop())
        adapter.connect(self.theirs)
        return adapter

    def say(self, *messages: Any) -> None:
        self.sock.sendall(b"".join(map(self._framer.frame, messages)))

    def receive(self) -> list[Any]:
        return list(self._frames.feed(self.sock.recv(1 << 16)))


@pytest.fixture
def peer() -> Iterator[Peer]:
    pair = Peer()
    with pair.sock:
        yield pair


def report(request: int, token: int) -> StepReport:
    return StepReport(0.01, 0, 0, 1, 9, [request], [token], [], [], [], [], [], [], 1, 0, 0, 1, 5)


async def turn() -> None:
    await asyncio.sleep(0.001)


@virtual
async def test_all_of_one_turn_travels_as_one_message_up_to_a_cancellation(peer: Peer) -> None:
    adapter = peer.adapter(Heard())
    await turn()
    adapter.submit(submission(1, [1, 2]))
    adapter.cancel(7)
    adapter.submit(submission(2, [3]))
    adapter.submit(submission(3, [4]))
    await turn()
    assert peer.receive() == [
        Work([submission(1, [1, 2])], [7]),
        Work([submission(2, [3]), submission(3, [4])], []),
    ]
    adapter.close()
    await turn()


@virtual
async def test_what_is_said_before_the_connection_is_sent_after_it(peer: Peer) -> None:
    adapter = peer.adapter(Heard())
    adapter.configure({"order": "arrival"})
    adapter.submit(submission(1, [1]))
    await turn()
    assert peer.receive() == [Configure({"order": "arrival"}), Work([submission(1, [1])], [])]
    adapter.close()
    await turn()
    assert peer.receive() == [Shutdown()]
    assert peer.sock.recv(1) == b""


@virtual
async def test_close_before_the_connection(peer: Peer) -> None:
    adapter = peer.adapter(Heard())
    adapter.close()
    await turn()
    assert peer.receive() == [Shutdown()]
    assert peer.sock.recv(1) == b""


@virtual
async def test_last_words_are_heard_even_if_the_exit_is_heard_first(peer: Peer) -> None:
    """The zygote's news come by another socket than the instance's own."""
    heard = Heard()
    adapter = peer.adapter(heard)
    await turn()
    peer.say(READY, report(1, 5), Failed("EngineError: out of everything"))
    peer.sock.close()
    adapter.on_exit(1)
    assert heard.lost == []
    assert await heard.until_lost() == "EngineError: out of everything"
    assert heard.tokens == {1: [5]}


@pytest.mark.parametrize("is_exit_first", [True, False])
@virtual
async def test_exit_status_is_the_reason_without_last_words(peer: Peer, is_exit_first: bool) -> None:
    heard = Heard()
    adapter = peer.adapter(heard)
    await turn()
    if is_exit_first:
        adapter.on_exit(-11)
        peer.sock.close()
    else:
        peer.sock.close()
        await turn()
        adapter.on_exit(-11)
    assert await heard.until_lost() == "killed by SIGSEGV"
    await asyncio.sleep(10.0)
    assert len(heard.lost) == 1


@virtual
async def test_process_that_closes_its_socket_yet_lives_is_lost(peer: Peer) -> None:
    heard = Heard()
    peer.adapter(heard)
    await turn()
    peer.sock.close()
    assert await heard.until_lost() == "it closed its socket"


@virtual
async def test_process_that_ended_is_lost_although_its_socket_stays_open(peer: Peer) -> None:
    heard = Heard()
    adapter = peer.adapter(heard)
    await turn()
    adapter.on_exit(0)
    assert await heard.until_lost() == "exited with status 0"
    await turn()


@virtual
async def test_garbage_is_a_loss(peer: Peer) -> None:
    heard = Heard()
    peer.adapter(heard)
    await turn()
    peer.sock.sendall(b"\x05" + bytes(7) + b"hello")
    assert (await heard.until_lost()).startswith("it sent garbage: ")
    await turn()


@virtual
async def test_nothing_is_heard_after_close(peer: Peer) -> None:
    heard = Heard()
    adapter = peer.adapter(heard)
    await turn()
    peer.say(READY, report(1, 5))
    adapter.close()
    adapter.on_exit(0)
    await asyncio.sleep(10.0)
    assert heard.ready is None
    assert heard.reports == []
    assert heard.lost == []


@virtual
async def test_zygote_that_cannot_fork_says_so_and_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from hyperflexis.adapters.native.messages import Exited, Fork, decode_from_zygote
    from hyperflexis.adapters.native.zygote import Zygote

    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    ours, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near, far = socket.socketpair()
    with ours, control, near, far:
        zygote = Zygote(control)
        monkeypatch.setattr(zygote, "_model", object())
        monkeypatch.setattr(os, "fork", fork)
        zygote._start(Fork(3, "cpu", 1, 16, 10, 4, number=8), far)
        assert decode_from_zygote(ours.recv(1000)) == Exited(8, 1)
        assert near.recv(1) == b"", "its end of the instance's socket is left open"
