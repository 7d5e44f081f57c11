"""Attached servers that answer like vLLM, on the loop of the test, as a fleet."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any

import aiohttp
import uvloop

from adapters.fleets import BLACK_BOX, DEMO_MODEL, LONG_TOKENS, Heard
from hyperflexis.adapters.contract import Adapter, Listener
from hyperflexis.adapters.vllm.adapter import Manner, VllmAdapter
from hyperflexis.adapters.vllm.attaching import Complaints
from hyperflexis.adapters.vllm.endpoint import Endpoint, open_session
from hyperflexis.adapters.vllm.probe import Expected
from hyperflexis.adapters.vllm.standin.engine import Traits
from hyperflexis.adapters.vllm.standin.server import StandIn
from hyperflexis.adapters.vllm.watch import WatchRules

TRAITS = Traits(step_s=0.002)
QUICK = WatchRules(health_s=0.05, metrics_s=0.02, silence_s=1.0)
MANNER = Manner(Expected(), QUICK)
SPARE = 3
"""Servers that are up before a test begins: starting one takes turns of the loop, and `start` has none."""


class StandInFleet:
    """Each instance is a server of its own."""

    lacks: Mapping[str, str] = BLACK_BOX
    death = "cannot be reached"
    long_tokens = LONG_TOKENS

    def __init__(self, traits: Traits = TRAITS, manner: Manner = MANNER) -> None:
        self._traits = traits
        self._manner = manner
        self._servers: list[StandIn] = []
        self._of: dict[int, StandIn] = {}
        self._adapters: list[Adapter] = []
        self.session: aiohttp.ClientSession
        self.complaints: Complaints

    def play(self, test: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._play(test))

    async def _play(self, test: Coroutine[Any, Any, None]) -> None:
        self.session, self.complaints = open_session(), Complaints()
        self._servers = [StandIn(DEMO_MODEL, replace(self._traits)) for _ in range(SPARE)]
        servers = list(self._servers)
        try:
            for server in servers:
                await server.start()
            await test
        finally:
            for adapter in self._adapters:
                adapter.close()
            for server in servers:
                await server.stop()
            await self.session.close()

    def start(self, listener: Listener) -> VllmAdapter:
        server = self._servers.pop(0)
        adapter = VllmAdapter(listener, Endpoint(self.session, server.url), self._manner, self.complaints)
        self._of[id(adapter)] = server
        self._adapters.append(adapter)
        return adapter

    def server(self, adapter: Adapter) -> StandIn:
        return self._of[id(adapter)]

    def kill(self, adapter: Adapter) -> None:
        self._stopping = asyncio.ensure_future(self.server(adapter).stop())

    async def gone(self, adapter: Adapter) -> None:
        """Until the server has noticed that nobody listens."""
        async with asyncio.timeout(10.0):
            while self.server(adapter).live:  # noqa: ASYNC110 there is no event for it
                await asyncio.sleep(0.005)


async def attached(fleet: StandInFleet) -> tuple[VllmAdapter, Heard, StandIn]:
    """An instance that is ready, who hears of it, and its server."""
    heard = Heard()
    adapter = fleet.start(heard)
    await heard.until_ready()
    return adapter, heard, fleet.server(adapter)
