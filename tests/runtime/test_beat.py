"""Beats: who answers lives, who is silent or closes is lost, and who was stopped oneself blames nobody."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from hyperflexis.runtime.launchers import beat as module
from hyperflexis.runtime.launchers.beat import Beat

TOKEN = b"t" * 32
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.02)


@contextlib.asynccontextmanager
async def watched(answer: Answer, timeout_s: float = 0.2) -> AsyncIterator[asyncio.Future[str]]:
    """A node that answers so, and what is heard of its silence."""
    heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        beat = Beat(TOKEN, timeout_s, heard.set_result)
        await beat.connect(*server.sockets[0].getsockname()[:2])
        try:
            yield heard
        finally:
            beat.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        assert await reader.readexactly(len(TOKEN)) == TOKEN
        while data := await reader.read(64):
            writer.write(data)


async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        await reader.read(-1)


async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(len(TOKEN))
    writer.close()


def test_node_that_answers_lives() -> None:
    answered = asyncio.Event()

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readexactly(len(TOKEN))
            for _ in range(30):
                writer.write(await reader.readexactly(1))
            answered.set()
            await echo_rest(reader, writer)

    async def play() -> None:
        async with watched(count) as heard:
            await answered.wait()
            assert not heard.done()

    asyncio.run(play())


async def echo_rest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(64):
        writer.write(data)


def test_silent_node_is_lost() -> None:
    async def play() -> None:
        async with watched(keep_silent) as heard:
            assert (await heard).startswith("has not answered for ")

    asyncio.run(play())


def test_node_that_closes_is_lost_at_once() -> None:
    async def play() -> None:
        async with watched(leave, timeout_s=60.0) as heard:
            assert await heard == "has closed the connection"

    asyncio.run(play())


def test_node_that_cannot_be_reached_is_lost() -> None:
    async def play() -> None:
        heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()[:2]
        server.close()
        await server.wait_closed()
        await Beat(TOKEN, 60.0, heard.set_result).connect(*address)
        assert (await heard).startswith("cannot be reached: ")

    asyncio.run(play())


def test_who_stood_still_oneself_blames_nobody() -> None:
    async def play() -> None:
        async with watched(echo) as heard:
            time.sleep(0.5)  # noqa: ASYNC251 that is the case to be tested: nothing of this process runs
            await asyncio.sleep(0.1)
            assert not heard.done()

    asyncio.run(play())
