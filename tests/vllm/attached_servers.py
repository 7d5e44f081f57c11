"""Real vLLM servers that tests attach: those that VLLM_TEST_URLS names, or those that the session starts.

    VLLM_TEST_URLS=http://127.0.0.1:8101,http://127.0.0.1:8102 pytest tests/vllm -k attached

Named servers have to take texts of 500 tokens and more, and to be started with float32 for answers to be equal. Two
servers are taken for a pair, of which the first prefills for the second, if VLLM_TEST_PAIR is set too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping
from typing import Any

import aiohttp
import pytest
import uvloop

from adapters.fleets import BLACK_BOX
from hyperflexis.adapters.contract import Adapter, Listener
from hyperflexis.adapters.vllm.adapter import Manner, VllmAdapter
from hyperflexis.adapters.vllm.attaching import Complaints
from hyperflexis.adapters.vllm.endpoint import Endpoint, open_session
from hyperflexis.adapters.vllm.probe import Expected

NONE = "no vLLM server: name some in VLLM_TEST_URLS, or `make test-vllm` starts them"
MANNER = Manner(Expected(), block_tokens=16)


def named_urls() -> list[str]:
    """The servers that whoever runs the tests has started."""
    return [url.strip() for url in os.environ.get("VLLM_TEST_URLS", "").split(",") if url.strip()]


def pair_urls(request: pytest.FixtureRequest) -> tuple[str, str]:
    """One that prefills and one that decodes; skips where there are none."""
    urls = named_urls()
    if len(urls) >= 2 and os.environ.get("VLLM_TEST_PAIR"):
        return urls[0], urls[1]
    try:
        first, second = request.getfixturevalue("pd_pair")
    except pytest.FixtureLookupError:
        pytest.skip(NONE)
    return first.url, second.url


def any_url(request: pytest.FixtureRequest) -> str:
    """A server that both prefills and decodes; skips where there is none."""
    return (named_urls() or pair_urls(request))[-1]


class RealFleet:
    """Instances that are all the same server, one after the other and side by side."""

    lacks: Mapping[str, str] = {**BLACK_BOX, "deaths": "servers that others have started are not killed"}
    death = ""
    long_tokens = 400

    def __init__(self, url: str) -> None:
        self._url = url
        self._adapters: list[VllmAdapter] = []
        self._session: aiohttp.ClientSession

    def play(self, test: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._play(test))

    async def _play(self, test: Coroutine[Any, Any, None]) -> None:
        self._session = open_session()
        try:
            await test
        finally:
            for adapter in self._adapters:
                adapter.close()
            await self._session.close()

    def start(self, listener: Listener) -> Adapter:
        adapter = VllmAdapter(listener, Endpoint(self._session, self._url), MANNER, Complaints())
        self._adapters.append(adapter)
        return adapter

    def kill(self, adapter: Adapter) -> None:
        raise AssertionError(self.lacks["deaths"])

    async def gone(self, adapter: Adapter) -> None:
        """Until the server has stopped computing for it."""
        async with asyncio.timeout(30.0):
            while await self._running():  # noqa: ASYNC110 metrics tell nobody
                await asyncio.sleep(0.1)

    async def _running(self) -> float:
        from hyperflexis.adapters.vllm.metrics import read

        answer = await Endpoint(self._session, self._url).get("/metrics", 10.0)
        return read(answer.body).running or 0.0
