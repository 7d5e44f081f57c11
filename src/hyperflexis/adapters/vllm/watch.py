"""Whether a vLLM server is still there, and still the one that was attached.

`/health` is asked once in a while, and at once when a stream breaks; `/metrics` oftener while there is work. A server
that refuses connections or says that its engine is dead is lost. One that is silent, on its streams and to questions,
for as long as that is allowed has hung and is lost too. Metrics that fail mean nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from hyperflexis.adapters.vllm import metrics
from hyperflexis.adapters.vllm.endpoint import Endpoint, UnreachableError
from hyperflexis.adapters.vllm.metrics import Gauges

SHORTEST_S = 0.5
"""A question for its health gets at least so long."""
IDLE_FACTOR = 10
"""So much seldomer metrics are read while there is no work."""


class WatchRules(NamedTuple):
    """How closely to look."""

    health_s: float = 1.0
    """Between two questions for its health."""
    metrics_s: float = 0.1
    """Between two looks at its metrics while it has work."""
    silence_s: float = 10.0
    """Silent for so long, it is lost."""
    stalled_s: float = 30.0
    """A request that had tokens, and had none for so long while its server answers, goes on elsewhere."""


class Watched(Protocol):
    """Hears what is seen."""

    def is_busy(self) -> bool: ...

    def on_gauges(self, gauges: Gauges) -> None: ...

    def on_alive(self) -> None:
        """It has answered."""

    def on_gone(self, why: str) -> None:
        """Nothing follows."""


class Watch:
    """Begins to look when it is made."""

    def __init__(
        self,
        endpoint: Endpoint,
        watched: Watched,
        rules: WatchRules,
        first: Gauges | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint = endpoint
        self._watched = watched
        self._rules = rules
        self._clock = clock
        self._heard_s = clock()
        """When something came from there for the last time."""
        self._doubt = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._watch_health())]
        if first is not None:
            self._tasks.append(loop.create_task(self._watch_metrics(first)))

    def heard(self) -> None:
        """Something has come on a stream."""
        self._heard_s = self._clock()

    def doubt(self) -> None:
        """A stream has broken: ask at once."""
        self._doubt.set()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _watch_health(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._rules.health_s):
                    await self._doubt.wait()
            except TimeoutError:
                pass
            self._doubt.clear()
            why = await self._ill()
            if why:
                self._watched.on_gone(why)
                return

    async def _ill(self) -> str:
        """Why it is lost; empty if it is not."""
        why = await self._ask(self._heard_s + self._rules.silence_s - self._clock())
        if why or self._clock() - self._heard_s < self._rules.silence_s:
            return why
        # It may have been this process that stood still, and what came from there lies unread.
        why = await self._ask(0.0)
        silent_s = self._clock() - self._heard_s
        is_silent = not why and silent_s >= self._rules.silence_s
        return f"it hangs: nothing came from {self._endpoint.url} for {silent_s:.1f} s" if is_silent else why

    async def _ask(self, timeout_s: float) -> str:
        """Why it is lost, if that is certain; silence is for the caller to judge."""
        try:
            answer = await self._endpoint.get("/health", max(SHORTEST_S, timeout_s))
        except UnreachableError as error:
            return "" if error.is_late else str(error)
        if not answer.is_ok:
            return f"it says that it is not healthy (HTTP {answer.status})"
        self.heard()
        self._watched.on_alive()
        return ""

    async def _watch_metrics(self, seen: Gauges) -> None:
        while True:
            pause_s = self._rules.metrics_s * (1 if self._watched.is_busy() else IDLE_FACTOR)
            await asyncio.sleep(pause_s)
            try:
                answer = await self._endpoint.get("/metrics", self._rules.silence_s)
            except UnreachableError:
                continue
            if not answer.is_ok or b"vllm:" not in answer.body:
                continue
            gauges = metrics.read(answer.body)
            if gauges.is_younger_than(seen):
                self._watched.on_gone(f"it was restarted behind {self._endpoint.url}, and knows nothing of what it had")
                return
            seen = gauges
            self._watched.on_gauges(gauges)
