"""A node's steward, without a cluster: whom it lets in, whom it refuses, and how it ends what it has let in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from adapters.fleets import DEMO_MODEL, Heard, submission, until_dead
from hyperflexis.adapters.native.host import NativeAdapter
from hyperflexis.adapters.native.messages import Fork, Load, Loaded, LoadFailed
from hyperflexis.runtime.launchers import steward as module
from hyperflexis.runtime.launchers.ray_words import TOKEN_BYTES, Door
from hyperflexis.runtime.launchers.steward import Steward, take_usual_share

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed"),
]
LOAD = Load(str(DEMO_MODEL), "cpu", "float32", block_tokens=16, kv_bytes=1 << 22, instances=1)


class House:
    """A steward on loopback with the demo model, for all tests of this module."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.steward = Steward("127.0.0.1")
        self.door: Door
        self.numbers = 0

    def play(self, test: Coroutine[Any, Any, None]) -> None:
        self.runner.run(test)

    async def open(self) -> None:
        self.door = await self.steward.open()
        loaded = await self.steward.load(LOAD, "", [])
        assert isinstance(loaded, Loaded)
        self.fork = Fork(0, "cpu", 1, 16, loaded.blocks, 8)

    async def admit(self) -> tuple[int, bytes]:
        self.numbers += 1
        token = secrets.token_bytes(TOKEN_BYTES)
        await self.steward.admit(self.numbers, self.fork, token)
        return self.numbers, token

    @contextlib.asynccontextmanager
    async def connected(self, token: bytes) -> AsyncIterator[socket.socket]:
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, (self.door.host, self.door.port))
            await loop.sock_sendall(sock, token)
            yield sock

    async def is_closed(self, sock: socket.socket) -> bool:
        async with asyncio.timeout(10.0):
            return await asyncio.get_running_loop().sock_recv(sock, 1) == b""

    async def start(self, token: bytes) -> tuple[NativeAdapter, Heard]:
        loop, heard = asyncio.get_running_loop(), Heard()
        adapter = NativeAdapter(heard, loop)
        sock = socket.socket()
        sock.setblocking(False)
        await loop.sock_connect(sock, (self.door.host, self.door.port))
        await loop.sock_sendall(sock, token)
        adapter.connect(sock)
        return adapter, heard


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    house = House()
    house.play(house.open())
    yield house
    house.play(house.steward.close())
    house.runner.close()


def test_instance_is_spoken_to_by_tcp(house: House) -> None:
    async def play() -> None:
        number, token = await house.admit()
        adapter, heard = await house.start(token)
        await heard.until_ready()
        adapter.submit(submission(1, [1, 2, 3]))
        await heard.until_finished(1)
        assert len(heard.tokens[1]) == 8
        ended = asyncio.ensure_future(house.steward.ended(number))
        adapter.close()
        assert await ended == "exited with status 0"
        await house.steward.expel(number)

    house.play(play())


@pytest.mark.parametrize("token", [b"", b"x" * (TOKEN_BYTES - 1), b"x" * TOKEN_BYTES, b"GET / HTTP/1.1\r\n" * 9])
def test_stranger_is_refused(house: House, token: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GREETING_S", 0.05)

    async def play() -> None:
        number, _ = await house.admit()
        async with house.connected(token) as sock:
            with contextlib.suppress(ConnectionResetError):  # What it said was not read to its end.
                assert await house.is_closed(sock)
        assert await house.steward.pids() == {}
        await house.steward.expel(number)

    house.play(play())


def test_token_opens_once(house: House) -> None:
    async def play() -> None:
        number, token = await house.admit()
        adapter, heard = await house.start(token)
        await heard.until_ready()
        async with house.connected(token) as sock:
            assert await house.is_closed(sock)
        assert not heard.lost
        adapter.close()
        await house.steward.ended(number)
        await house.steward.expel(number)

    house.play(play())


def test_token_of_what_was_expelled_opens_nothing(house: House) -> None:
    async def play() -> None:
        number, token = await house.admit()
        await house.steward.expel(number)
        async with house.connected(token) as sock:
            assert await house.is_closed(sock)

    house.play(play())


def test_strangers_do_not_keep_out_who_is_expected(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number they are closed out at once; those who linger are, soon."""
    monkeypatch.setattr(module, "GREETING_S", 0.2)
    monkeypatch.setattr(module, "STRANGERS_MAX", 3)

    async def play() -> None:
        number, token = await house.admit()
        async with contextlib.AsyncExitStack() as stack:
            lingering = [await stack.enter_async_context(house.connected(b"x")) for _ in range(5)]
            assert all([await house.is_closed(each) for each in lingering])
        adapter, heard = await house.start(token)
        await heard.until_ready()
        adapter.close()
        await house.steward.ended(number)
        await house.steward.expel(number)

    house.play(play())


def test_watcher_hears_every_byte_back(house: House) -> None:
    async def play() -> None:
        loop = asyncio.get_running_loop()
        async with house.connected(house.door.token) as sock:
            for byte in (b"a", b"b", b"c"):
                await loop.sock_sendall(sock, byte)
                assert await loop.sock_recv(sock, 8) == byte

    house.play(play())


def test_frozen_instance_can_be_expelled(house: House) -> None:
    async def play() -> None:
        number, token = await house.admit()
        _, heard = await house.start(token)
        await heard.until_ready()
        (pid,) = (await house.steward.pids()).values()
        os.kill(pid, signal.SIGSTOP)
        ended = asyncio.ensure_future(house.steward.ended(number))
        await asyncio.sleep(0)
        await house.steward.expel(number)
        assert await ended == "killed by SIGKILL"
        await until_dead(pid)
        await heard.until_lost()

    house.play(play())


def test_instance_that_is_expelled_while_it_is_forked_ends(house: House) -> None:
    async def play() -> None:
        number, token = await house.admit()
        _, heard = await house.start(token)
        ended = asyncio.ensure_future(house.steward.ended(number))
        while not house.steward._tenants[number].is_inside:  # noqa: ASYNC110 no event tells
            await asyncio.sleep(0)
        await house.steward.expel(number)
        assert await ended == "killed by SIGKILL"
        await heard.until_lost()

    house.play(play())


def test_model_that_is_not_on_the_node(house: House, tmp_path: Path) -> None:
    async def play() -> None:
        order = Load(str(tmp_path / "absent"), "cpu", "auto", 16, None, 1)
        failed = await house.steward.load(order, "", [])
        assert isinstance(failed, LoadFailed)
        assert failed.reason == f"node 127.0.0.1: there is no directory {tmp_path / 'absent'}"
        assert "same path on every node" in failed.hint

    house.play(play())


def test_model_that_is_not_on_the_node_comes_from_another(house: House, tmp_path: Path) -> None:
    async def play() -> None:
        offer = await house.steward.offer()
        receiver = Steward("127.0.0.1")
        await receiver.open()
        try:
            order = Load(str(tmp_path / "absent"), "cpu", "float32", 16, 1 << 22, 1)
            loaded = await receiver.load(order, "", [offer])
            assert isinstance(loaded, Loaded)
            assert loaded.origin != "disk"
            assert await receiver.offer(), "it does not lend them on"
            files = receiver._located(str(tmp_path / "absent"), "", [offer])
            assert "config.json" in os.listdir(files)
            assert "config.json" not in os.listdir(), "they lie where this process was started"
        finally:
            await receiver.close()
        assert files.rpartition("/")[2] not in os.listdir(files.rpartition("/")[0])

    house.play(play())


def test_demo_model_is_found_where_the_package_is(house: House) -> None:
    assert house.steward._located("", "", []) == str(DEMO_MODEL)


def test_it_yields_to_other_programs_no_more_than_those_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ray starts it nice. Tried in a thread, whose niceness is its own, and ends with it."""
    seen = []

    def play() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, 5)
        take_usual_share()
        seen.append(os.getpriority(os.PRIO_PROCESS, 0))
        seen.append(int(subprocess.check_output(["nice"])))

    def refuse(*_: int) -> None:
        raise PermissionError

    thread = threading.Thread(target=play)
    thread.start()
    thread.join()
    may = seen[0] == 0
    assert seen == ([0, 0] if may else [5, 5])
    assert ("RAY_worker_niceness=0" in caplog.text) is not may
    monkeypatch.setattr(os, "getpriority", lambda *_: 15)
    monkeypatch.setattr(os, "setpriority", refuse)
    take_usual_share()
    assert "run at niceness 15" in caplog.text


def test_it_leaves_when_it_has_neither_node_nor_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        left = asyncio.Event()
        monkeypatch.setattr(module, "FORGOTTEN_ASKED_S", 0.001)
        monkeypatch.setattr(module.os, "_exit", lambda status: left.set())
        steward = Steward("127.0.0.1")
        steward._watchers = 1
        leaving = asyncio.create_task(steward._leave_if_forgotten())
        await asyncio.sleep(0.01)
        monkeypatch.setattr(module.os, "getppid", lambda: 1)
        await asyncio.sleep(0.01)
        assert not left.is_set(), "a gateway still watches"
        steward._watchers = 0
        await leaving
        assert left.is_set()

    asyncio.run(play())
