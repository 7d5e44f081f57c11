"""Whoever keeps a connection waiting is cut off, and keeps nobody out."""

from __future__ import annotations

import asyncio

import pytest
from gateway_fakes import COMPLETION, FakeBackend, Served, answer_script, on_loop, served

from hyperflexis.gateway import Limits

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
NEVER_S = 1e6

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(it: Served, data: bytes = b"") -> Stream:
    reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
    writer.write(data)
    return reader, writer


async def is_cut(stream: Stream) -> bool:
    """Wait for the end."""
    try:
        return not await stream[0].read()
    except ConnectionResetError:
        return True
    finally:
        stream[1].close()


@pytest.mark.parametrize("said", [b"", b"G", HEAD, HEAD + b"x-a: b\r\n"])
@on_loop
async def test_head_that_does_not_come_is_not_waited_for(said: bytes) -> None:
    async with served(limits=Limits(head_s=0.02, idle_s=NEVER_S)) as it:
        assert await is_cut(await connect(it, said))


@on_loop
async def test_head_that_comes_byte_by_byte_is_not_waited_for() -> None:
    async with served(limits=Limits(head_s=0.05, idle_s=NEVER_S)) as it:
        stream = await connect(it, HEAD)

        async def drip() -> None:
            for byte in b"x-a: " + b"b" * 1000:
                stream[1].write(bytes([byte]))
                await asyncio.sleep(0.001)

        dripping = asyncio.create_task(drip())
        assert await is_cut(stream)
        dripping.cancel()


@on_loop
async def test_second_head_is_not_waited_for_either() -> None:
    async with served(limits=Limits(head_s=0.5, idle_s=NEVER_S)) as it:
        stream = await connect(it, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await stream[0].readline()).split()[1] == b"200"
        await stream[0].readuntil(b"}")
        stream[1].write(b"GET /health HT")
        assert await is_cut(stream)


@on_loop
async def test_idle_connection_is_closed() -> None:
    async with served(limits=Limits(idle_s=0.02)) as it:
        stream = await connect(it, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await stream[0].read()).endswith(b"}")
        stream[1].close()


@on_loop
async def test_answer_that_takes_long_is_not_cut() -> None:
    """However long a stream: its connection waits for nothing."""
    script = answer_script(step_s=0.01)
    async with served(FakeBackend(script), limits=Limits(head_s=0.4, idle_s=0.02)) as it:
        assert (await it.events("/v1/completions", COMPLETION))[-1] == "[DONE]"


@on_loop
async def test_those_that_wait_make_room_for_those_that_ask() -> None:
    async with served(limits=Limits(connections_max=5, head_s=NEVER_S, idle_s=NEVER_S)) as it:
        lurking = [await connect(it, HEAD) for _ in range(20)]
        status, _, _ = await it.post("/v1/completions", COMPLETION)
        assert status == 200
        assert all([await is_cut(each) for each in lurking[:14]])
        for _, writer in lurking:
            writer.close()


@on_loop
async def test_those_that_are_answered_do_not_make_room() -> None:
    script = answer_script(forever=True, step_s=0.001)
    async with served(FakeBackend(script), limits=Limits(connections_max=2)) as it:
        body = COMPLETION | {"stream": True, "max_tokens": 2000}
        streams = [await it.http.post(it.url + "/v1/completions", json=body) for _ in range(2)]
        reader, writer = await connect(it, HEAD)
        told = await reader.read()
        assert told.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in told
        assert b"too_many_connections" in told
        writer.close()
        for stream in streams:
            assert await stream.content.readany()
            stream.close()


@on_loop
async def test_nothing_is_left_of_connections_that_have_gone() -> None:
    async with served() as it:
        (listener,) = it.gateway._listeners
        for _ in range(5):
            _, writer = await connect(it, HEAD)
            writer.close()
        await it.post("/v1/completions", COMPLETION)
        await it.http.close()
        while len(listener._connections):  # noqa: ASYNC110 there is no event for it
            await asyncio.sleep(0)
        assert not listener._connections._heads
        assert not listener._connections._idle


@on_loop
async def test_heads_are_bounded() -> None:
    async with served() as it:
        for head in (b"GET /" + b"a" * 20_000, b"GET / HTTP/1.1\r\nHost: x\r\nx: " + b"a" * 20_000):
            reader, writer = await connect(it, head)
            assert (await reader.readline()).split()[1] == b"400"
            writer.close()
        reader, writer = await connect(it, b"GET / HTTP/1.1\r\nHost: x\r\n" + b"x: y\r\n" * 2000 + b"\r\n")
        assert (await reader.readline()).split()[1] == b"400"
        writer.close()
