"""Streams on the wire: push, slow and departing clients, segments, and what is told at shutdown."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from gateway_fakes import (
    ANSWER,
    CHAT,
    COMPLETION,
    FakeBackend,
    Script,
    answer_script,
    codec,
    on_loop,
    parse_events,
    served,
    text_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperflexis.gateway import Gateway, Limits
from hyperflexis.gateway.answer import StreamedAnswer
from hyperflexis.gateway.backend import End, EndReason, ServedModel


async def until(condition: Callable[[], Any], timeout_s: float = 5.0) -> float:
    """Wait for a condition; returns how long it took."""
    start = time.perf_counter()
    while not condition():
        assert time.perf_counter() - start < timeout_s, "it did not come"
        await asyncio.sleep(0.001)
    return time.perf_counter() - start


def unnamed(event: str) -> Any:
    """An event without what differs from request to request."""
    if event == "[DONE]":
        return event
    told = json.loads(event)
    return {key: value for key, value in told.items() if key not in ("id", "created")}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@on_loop
async def test_push_and_plain_writing_give_equal_bytes(path: str) -> None:
    body = (CHAT if "chat" in path else COMPLETION) | {"stream_options": {"include_usage": True}, "n": 2}
    streams = []
    for options in ({"allow_push": True}, {"allow_push": False}):
        async with served(FakeBackend(answer_script(step_s=0.001)), **options) as it:
            streams.append([unnamed(event) for event in await it.events(path, body)])
    pushed, written = streams
    assert pushed == written
    assert len(pushed) > 20


@on_loop
async def test_http_1_0_gets_the_same_events_without_chunks() -> None:
    async with served(FakeBackend(answer_script(step_s=0.001))) as it:
        expected = await it.events("/v1/completions", COMPLETION)
        data = json.dumps(COMPLETION | {"stream": True}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
    assert b"chunked" not in head.lower()
    assert [unnamed(event) for event in parse_events(body)] == [unnamed(event) for event in expected]


tokens = st.lists(st.integers(0, codec().vocab_tokens - 1), min_size=1, max_size=40)


@given(
    tokens=tokens,
    per_call=st.integers(1, 5),
    stop=st.sampled_from([None, ["e", "the"], ["�"]]),
    logprobs=st.sampled_from([None, 1]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_streamed_text_equals_the_whole(
    tokens: list[int], per_call: int, stop: list[str] | None, logprobs: int | None
) -> None:
    """Whatever the tokens are, and however they come."""

    async def compare() -> None:
        body = COMPLETION | {"stop": stop, "logprobs": logprobs, "ignore_eos": True, "max_tokens": len(tokens)}
        async with served(FakeBackend(Script(tokens=tokens, per_call=per_call))) as it:
            _, whole, _ = await it.post("/v1/completions", body)
            events = await it.events("/v1/completions", body)
        (choice,) = whole["choices"]
        assert text_of(events) == choice["text"]
        if stop is None:
            assert choice["text"] == codec().decode(tokens)
        told = [json.loads(event)["choices"][0] for event in events[:-1]]
        assert told[-1]["finish_reason"] == choice["finish_reason"]
        offsets = [offset for each in told if each["logprobs"] for offset in each["logprobs"]["text_offset"]]
        assert offsets == (choice["logprobs"] or {"text_offset": []})["text_offset"]

    on_loop(compare)()


@pytest.mark.parametrize("run", [uvloop.run, asyncio.run])
def test_head_and_first_event_leave_in_one_segment(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    """On a kept connection too, and at once: nothing waits for an acknowledgement. On either event loop."""
    run(_first_segments())


async def _first_segments() -> None:
    async with served(FakeBackend(answer_script(step_s=0.02))) as it:
        loop = asyncio.get_running_loop()
        sock = socket.create_connection(("127.0.0.1", it.port))
        sock.setblocking(False)
        data = json.dumps(CHAT | {"stream": True, "max_tokens": 4}).encode()
        request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data
        took_s = []
        for _ in range(4):
            start = time.perf_counter()
            await loop.sock_sendall(sock, request)
            first = await loop.sock_recv(sock, 1 << 16)
            took_s.append(time.perf_counter() - start)
            assert first.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b'"role":"assistant"' in first
            assert b'"content":"G' in first
            rest = first
            while not rest.endswith(b"0\r\n\r\n"):
                rest += await loop.sock_recv(sock, 1 << 16)
        sock.close()
    # The backend takes 20 ms; a delayed acknowledgement would add 40 to each but the first.
    assert min(took_s[1:]) < 0.055


@pytest.mark.parametrize("held_chars", [1, 3, 8])
@on_loop
async def test_first_tokens_without_text_do_not_overtake_the_head(held_chars: int) -> None:
    """They are held back where they may begin a stop string; the head comes first all the same."""
    stop = ANSWER[:held_chars] + "\u2603"
    async with served(FakeBackend(answer_script(step_s=0.003))) as it:
        for _ in range(2):
            events = await it.events("/v1/completions", COMPLETION | {"stop": [stop]})
            assert text_of(events) == ANSWER


@on_loop
async def test_each_token_is_its_own_event() -> None:
    """There is no next one before its event has come."""
    turns, events = asyncio.Semaphore(1), 0
    script = Script(tokens=codec().encode("Hello text"), turns=turns)
    body = COMPLETION | {"stream": True}
    async with served(FakeBackend(script)) as it, it.http.post(it.url + "/v1/completions", json=body) as response:
        async for line in response.content:
            if line.startswith(b"data: {"):
                events += 1
                turns.release()
    assert events == len(script.tokens) + 1


@pytest.mark.parametrize("stream", [False, True])
@on_loop
async def test_departed_client_frees_its_work_at_once(stream: bool) -> None:
    backend = FakeBackend(answer_script(step_s=0.005, forever=True))
    async with served(backend) as it:
        data = json.dumps(CHAT | {"stream": stream, "n": 2}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        await until(lambda: len(backend.running) == 2)
        if stream:
            await reader.readuntil(b"data: ")
        writer.close()
        await writer.wait_closed()
        took_s = await until(lambda: len(backend.cancelled) == 2)
        text = await (await it.http.get(it.url + "/metrics")).text()
    assert took_s < 0.5
    assert not backend.running
    assert 'hyperflexis_requests_total{class="default",code="499"} 1.0' in text
    assert "hyperflexis_requests_in_flight 0.0" in text


@on_loop
async def test_client_that_leaves_while_queued_frees_its_work() -> None:
    backend = FakeBackend(answer_script(step_s=60.0))
    async with served(backend) as it:
        request = asyncio.create_task(it.events("/v1/chat/completions", CHAT))
        await until(lambda: backend.running)
        request.cancel()
        await until(lambda: backend.cancelled)
    assert not backend.running


class StalledClient:
    """Asks for a stream and reads nothing until told to. Its socket takes little."""

    def __init__(self, port: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.connect(("127.0.0.1", port))
        self._socket.setblocking(False)

    async def ask(self, body: dict[str, Any]) -> None:
        data = json.dumps(body | {"stream": True}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data)
        await self._loop.sock_sendall(self._socket, head + data)

    async def read(self) -> bytes:
        """Everything up to the last chunk, or up to the end of the connection."""
        received = bytearray()
        while not received.endswith(b"\r\n0\r\n\r\n"):
            try:
                data = await self._loop.sock_recv(self._socket, 1 << 20)
            except ConnectionError:
                break
            if not data:
                break
            received += data
        return bytes(received)

    async def __aenter__(self) -> StalledClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()


LONG_TEXT = "Hello world, hello text. " * 80_000
LONG = {"prompt": "x", "max_tokens": 10**6}
LARGE_MODEL = (ServedModel("large", 1, 10_000_000),)


@on_loop
async def test_slow_reader_is_waited_for_and_loses_nothing() -> None:
    """The transport fills, events wait in the backlog, and follow when the client reads."""
    backend = FakeBackend(Script(tokens=codec().encode(LONG_TEXT), per_call=20), models=LARGE_MODEL)
    async with served(backend, limits=Limits(stream_backlog_bytes_max=2**26)) as it, StalledClient(it.port) as client:
        await client.ask(LONG)
        await until(lambda: backend.requests and not backend.running, 20.0)
        (answer,) = it.gateway._generation._live
        assert isinstance(answer, StreamedAnswer)
        assert answer.stream.paused
        assert not answer.stream.closed
        assert answer.stream._backlog_bytes > 100_000
        received = await client.read()
    events = parse_events(_dechunked(received.partition(b"\r\n\r\n")[2]))
    # Told as a flag: the difference of such texts is nothing to print.
    is_whole = text_of(events) == LONG_TEXT
    assert is_whole
    assert events[-1] == "[DONE]"


def _dechunked(data: bytes) -> bytes:
    chunks, at = [], 0
    while at < len(data):
        line_end = data.index(b"\r\n", at)
        length = int(data[at:line_end], 16)
        at = line_end + 2 + length + 2
        chunks.append(data[line_end + 2 : at - 2])
    return b"".join(chunks)


@on_loop
async def test_reader_that_stops_is_cut_off_at_the_cap_and_others_go_on() -> None:
    backend = FakeBackend(Script(tokens=codec().encode("Hello text"), per_call=500, forever=True))
    async with served(backend, limits=Limits(stream_backlog_bytes_max=100_000)) as it, StalledClient(it.port) as client:
        await client.ask(LONG | {"max_tokens": 1000})
        await until(lambda: backend.cancelled == [1], 20.0)
        backend.script = answer_script()
        assert text_of(await it.events("/v1/chat/completions", CHAT)) == ANSWER
        assert b"[DONE]" not in await client.read()


@on_loop
async def test_reader_that_stops_at_the_end_is_cut_off_in_time() -> None:
    backend = FakeBackend(Script(tokens=codec().encode(LONG_TEXT), per_call=20), models=LARGE_MODEL)
    async with (
        served(backend, limits=Limits(stream_backlog_bytes_max=2**26, stall_s=0.1)) as it,
        StalledClient(it.port) as client,
    ):
        await client.ask(LONG)
        await until(lambda: backend.requests and not backend.running, 20.0)
        await until(lambda: not it.gateway._generation._live, 5.0)
        assert b"[DONE]" not in await client.read()


@on_loop
async def test_many_streams_and_departures_at_once() -> None:
    """Half of 40 clients leave in the middle; the others get every token."""
    backend = FakeBackend(answer_script(step_s=0.003))
    async with served(backend) as it:
        tasks = [asyncio.create_task(it.events("/v1/chat/completions", CHAT)) for _ in range(40)]
        await until(lambda: len(backend.running) == 40)
        await asyncio.sleep(0.02)
        for task in tasks[::2]:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: not backend.running)
    assert [text_of(answer) for answer in answers[1::2] if not isinstance(answer, BaseException)] == [ANSWER] * 20
    assert len(backend.cancelled) == 20


@on_loop
async def test_tokens_for_a_dead_connection_raise_nothing() -> None:
    """The step that carries them serves others too."""
    backend = FakeBackend(answer_script(step_s=0.005, forever=True))
    async with served(backend) as it:
        async with it.http.post(it.url + "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
            await response.content.readany()
            (running,) = backend.running.values()
            response.close()
            for _ in range(200):
                running.sink.on_tokens(codec().encode("more"), None)
                await asyncio.sleep(0.0001)
        await until(lambda: backend.cancelled)
        running.sink.on_tokens([1], None)
        running.sink.on_end(End(EndReason.CANCELLED))


@on_loop
async def test_drain_waits_for_what_runs_and_refuses_what_comes() -> None:
    backend = FakeBackend(answer_script(step_s=0.005))
    async with served(backend) as it:
        running = asyncio.create_task(it.events("/v1/chat/completions", CHAT))
        await until(lambda: backend.running)
        assert await it.gateway.drain(0.01) is False
        status, answer, headers = await it.post("/v1/completions", {"prompt": "x"})
        assert (status, answer["error"]["code"]) == (503, "rejected_shutting_down")
        assert headers["x-llm-d-request-dropped-reason"] == "rejected-shutting-down"
        assert (await it.http.get(it.url + "/ready")).status == 503
        assert (await it.http.get(it.url + "/health")).status == 200
        assert await it.gateway.drain(5.0) is True
        assert text_of(await running) == ANSWER


@on_loop
async def test_stop_tells_the_clients() -> None:
    backend = FakeBackend(answer_script(step_s=0.005, forever=True))
    async with served(backend) as it:
        streamed = asyncio.create_task(it.events("/v1/chat/completions", CHAT))
        whole = asyncio.create_task(it.post("/v1/chat/completions", CHAT))
        await until(lambda: len(backend.running) == 2)
        await asyncio.sleep(0.02)
        start = time.perf_counter()
        await it.gateway.stop()
        assert time.perf_counter() - start < 2.0
        events = await streamed
        status, _, _ = await whole
    assert "shutting down" in events[-2]
    assert events[-1] == "[DONE]"
    assert status == 503
    assert sorted(backend.cancelled) == [1, 2]


@on_loop
async def test_stop_does_not_wait_for_whoever_does_not_read() -> None:
    backend = FakeBackend(Script(tokens=codec().encode(LONG_TEXT), per_call=20), models=LARGE_MODEL)
    async with served(backend, limits=Limits(stream_backlog_bytes_max=2**26)) as it, StalledClient(it.port) as client:
        await client.ask(LONG)
        await until(lambda: backend.requests and not backend.running, 20.0)
        start = time.perf_counter()
        await it.gateway.stop()
        assert time.perf_counter() - start < 5.0


@pytest.mark.parametrize("stream", [False, True])
@on_loop
async def test_a_bug_in_one_answer_does_not_reach_the_step(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def push(self, tokens: Any) -> str:
            raise RuntimeError("planted")

        def flush(self) -> str:
            return ""

    backend = FakeBackend(answer_script(step_s=0.005))
    async with served(backend) as it:
        request = asyncio.create_task(it.post("/v1/chat/completions", CHAT | {"stream": stream}))
        await until(lambda: backend.running)
        (running,) = backend.running.values()
        running.sink._detokenizer = Broken()
        status, answer, _ = await request
        await until(lambda: not backend.running)
    assert (status, answer["error"]["code"]) == (500, "failed")
    assert "planted" in caplog.text


@on_loop
async def test_port_in_use_is_an_os_error() -> None:
    async with served() as it:
        other = Gateway(FakeBackend(), codec(), port=it.port)
        with pytest.raises(OSError, match="address already in use"):
            await other.start()
        await other.stop()
