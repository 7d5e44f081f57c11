"""When a server counts as lost, by questions whose answers a test decides, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from helpers.virtual_loop import virtual
from hyperflexis.adapters.vllm.endpoint import Answer, UnreachableError
from hyperflexis.adapters.vllm.metrics import Gauges
from hyperflexis.adapters.vllm.watch import IDLE_FACTOR, SHORTEST_S, Watch, WatchRules

RULES = WatchRules(health_s=1.0, metrics_s=0.1, silence_s=10.0)
GAUGES = Gauges(5.0, 0.0, 0.0, 0.0, 0.0)
PAGE = b"process_start_time_seconds 5.0\nvllm:num_requests_running 2.0\n"


class Server:
    """Answers as it is told to; also hears what the watch sees."""

    url = "http://server"

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.health: Callable[[], Answer] = lambda: Answer(200, b"")
        self.metrics: Callable[[], Answer] = lambda: Answer(200, PAGE)
        self.asked: list[tuple[float, str]] = []
        self.gone: list[tuple[float, str]] = []
        self.gauges: list[Gauges] = []
        self.busy = True
        self.alive = 0
        self.hangs = False

    def watch(self) -> Watch:
        endpoint: Any = self
        return Watch(endpoint, self, RULES, GAUGES, self.loop.time)

    async def get(self, path: str, timeout_s: float) -> Answer:
        self.asked.append((self.loop.time(), path))
        if self.hangs:
            await asyncio.sleep(timeout_s)
            raise UnreachableError("no answer", is_late=True)
        return self.health() if path == "/health" else self.metrics()

    def is_busy(self) -> bool:
        return self.busy

    def on_gauges(self, gauges: Gauges) -> None:
        self.gauges.append(gauges)

    def on_alive(self) -> None:
        self.alive += 1

    def on_gone(self, why: str) -> None:
        self.gone.append((self.loop.time(), why))


def raising() -> Answer:
    raise UnreachableError("http://server cannot be reached: refused")


@virtual
async def test_server_that_answers_is_never_lost() -> None:
    server = Server()
    watch = server.watch()
    await asyncio.sleep(1000.0)
    assert server.gone == []
    assert server.alive >= 999
    watch.close()


@virtual
async def test_refused_connection_is_a_loss_at_once() -> None:
    server = Server()
    watch = server.watch()
    await asyncio.sleep(5.5)
    server.health = raising
    await asyncio.sleep(1.0)
    assert [why for _, why in server.gone] == ["http://server cannot be reached: refused"]
    watch.close()


@virtual
async def test_doubt_asks_at_once() -> None:
    server = Server()
    watch = server.watch()
    await asyncio.sleep(5.5)
    server.health = lambda: Answer(503, b"")
    watch.doubt()
    await asyncio.sleep(0.0)
    await asyncio.sleep(0.001)
    assert [why for _, why in server.gone] == ["it says that it is not healthy (HTTP 503)"]
    watch.close()


@virtual
async def test_silent_server_is_lost_after_its_time_and_not_before() -> None:
    server = Server()
    watch = server.watch()
    await asyncio.sleep(5.5)
    server.hangs, began_s = True, server.loop.time()
    await asyncio.sleep(30.0)
    ((gone_s, why),) = server.gone
    assert why.startswith("it hangs: nothing came from http://server for 10.5")
    assert RULES.silence_s - RULES.health_s <= gone_s - began_s <= RULES.silence_s + SHORTEST_S + 0.001
    watch.close()


@virtual
async def test_streams_that_bring_tokens_outweigh_questions_without_an_answer() -> None:
    server = Server()
    watch = server.watch()
    server.hangs = True
    for _ in range(100):
        watch.heard()
        await asyncio.sleep(1.0)
    assert server.gone == []
    watch.close()


@virtual
async def test_process_that_stood_still_itself_blames_nobody() -> None:
    """After a minute's sleep of ours, the first question is late; the next one is answered."""
    server = Server()
    watch = server.watch()
    await asyncio.sleep(5.5)
    late = iter([True])

    def health() -> Answer:
        if next(late, False):
            watch._heard_s -= 60.0
            raise UnreachableError("no answer", is_late=True)
        return Answer(200, b"")

    server.health = health
    await asyncio.sleep(5.0)
    assert server.gone == []
    watch.close()


@virtual
async def test_metrics_are_read_often_only_while_there_is_work() -> None:
    server = Server()
    watch = server.watch()
    await asyncio.sleep(10.05)
    busy = sum(path == "/metrics" for _, path in server.asked)
    assert 95 <= busy <= 101
    server.busy = False
    await asyncio.sleep(10.0)
    idle = sum(path == "/metrics" for _, path in server.asked) - busy
    assert idle <= 100 // IDLE_FACTOR + 2
    assert server.gauges[-1].running == 2.0
    watch.close()


@virtual
async def test_metrics_that_fail_or_are_others_say_nothing() -> None:
    server = Server()
    watch = server.watch()
    for failing in (raising, lambda: Answer(500, PAGE), lambda: Answer(200, b"<html>")):
        server.metrics = failing
        await asyncio.sleep(2.0)
    assert server.gone == []
    assert server.gauges == []
    watch.close()


@virtual
async def test_other_start_time_is_a_loss() -> None:
    server = Server()
    watch = server.watch()
    server.metrics = lambda: Answer(200, PAGE.replace(b"5.0", b"6.0"))
    await asyncio.sleep(1.0)
    assert [why for _, why in server.gone] == [
        "it was restarted behind http://server, and knows nothing of what it had"
    ]
    watch.close()
