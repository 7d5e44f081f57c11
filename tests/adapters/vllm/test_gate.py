"""A server that takes no more is asked with one request at a time, ever more seldom, until it takes one."""

from __future__ import annotations

import asyncio
from typing import Any

from helpers.virtual_loop import virtual
from hyperflexis.adapters.vllm.gate import PAUSE_MAX_S, PAUSE_S, Gate


class Server:
    """What a gate sends to, and when."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.sent: list[tuple[float, str]] = []
        self.gate = Gate(self._take)

    def _take(self, running: Any) -> None:
        self.sent.append((round(self.loop.time(), 3), running.id))


class Request:
    def __init__(self, name: str) -> None:
        self.id = name


@virtual
async def test_open_gate_lets_all_pass() -> None:
    server = Server()
    for name in "abc":
        server.gate.enter(Request(name))
    assert [name for _, name in server.sent] == ["a", "b", "c"]


@virtual
async def test_pause_doubles_with_each_refusal_and_one_asks() -> None:
    server = Server()
    start_s = server.loop.time()
    first, second, third = Request("a"), Request("b"), Request("c")
    server.gate.enter(first)
    server.gate.refused(first)
    server.gate.enter(second)
    server.gate.enter(third)
    assert len(server.gate) == 2
    await asyncio.sleep(PAUSE_S + 0.001)
    assert [name for _, name in server.sent] == ["a", "b"]
    server.gate.refused(second)
    await asyncio.sleep(2 * PAUSE_S + 0.001)
    assert [name for _, name in server.sent] == ["a", "b", "c"]
    assert server.sent[2][0] - start_s >= 3 * PAUSE_S


@virtual
async def test_refusals_of_one_moment_are_one_refusal() -> None:
    server = Server()
    crowd = [Request(str(number)) for number in range(20)]
    for request in crowd:
        server.gate.enter(request)
    for request in crowd:
        server.gate.refused(request)
    late = Request("late")
    server.gate.enter(late)
    await asyncio.sleep(PAUSE_S + 0.001)
    assert server.sent[-1][1] == "late"


@virtual
async def test_one_that_is_taken_lets_the_others_in() -> None:
    server = Server()
    requests = [Request(name) for name in "abcd"]
    server.gate.enter(requests[0])
    server.gate.refused(requests[0])
    for request in requests[1:]:
        server.gate.enter(request)
    await asyncio.sleep(PAUSE_S + 0.001)
    server.gate.taken()
    assert [name for _, name in server.sent] == ["a", "b", "c", "d"]
    server.gate.enter(requests[0])
    assert server.sent[-1][1] == "a"


@virtual
async def test_one_that_leaves_while_it_asks_lets_the_next_ask() -> None:
    server = Server()
    requests = [Request(name) for name in "abc"]
    server.gate.enter(requests[0])
    server.gate.refused(requests[0])
    for request in requests[1:]:
        server.gate.enter(request)
    await asyncio.sleep(PAUSE_S + 0.001)
    server.gate.leave(requests[1])
    assert [name for _, name in server.sent] == ["a", "b", "c"]


@virtual
async def test_pause_has_an_end_and_an_empty_gate_opens() -> None:
    server = Server()
    for number in range(12):
        request = Request(str(number))
        server.gate.enter(request)
        await asyncio.sleep(PAUSE_MAX_S + 0.001)
        assert server.sent[-1][1] == request.id
        server.gate.refused(request)
    await asyncio.sleep(PAUSE_MAX_S + 0.001)
    server.gate.enter(Request("free"))
    assert server.sent[-1][1] == "free"
