"""Instances of each kind behind one face, so that one suite can be run on all, and a listener that remembers."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import uvloop

from helpers import virtual_loop
from helpers.builders import SIMPLE
from hyperflexis.adapters.contract import Adapter, Listener
from hyperflexis.adapters.modelled import ModelledAdapter
from hyperflexis.adapters.native.host import NativeAdapter
from hyperflexis.core.instance import Role
from hyperflexis.runtime.launchers.local import LocalLauncher, LocalSpec
from hyperflexis.wire.messages import FinishReason, News, Ready, Sampling, StepReport, Submit

DEMO_MODEL = Path(__file__).parents[2] / "src" / "hyperflexis" / "demo_model"
PATIENCE_S = 60.0
"""For what should take moments: the machine may be busy."""
GREEDY = Sampling(temperature=0.0)


class Heard:
    """A listener that remembers all it hears, and can be waited for."""

    def __init__(self) -> None:
        self.ready: Ready | None = None
        self.reports: list[StepReport] = []
        self.tokens: dict[int, list[int]] = {}
        self.finished: dict[int, FinishReason] = {}
        self.errors: dict[int, str] = {}
        self.lost: list[str] = []
        self.news: list[News] = []
        self._news = asyncio.Event()

    def on_ready(self, ready: Ready) -> None:
        assert self.ready is None
        assert not self.lost
        self.ready = ready
        self._news.set()

    def on_report(self, report: StepReport) -> None:
        assert self.ready is not None
        assert not self.lost, "a report after the loss"
        self.reports.append(report)
        for request, token in zip(report.requests, report.tokens, strict=True):
            assert request not in self.finished, "a token after the end"
            self.tokens.setdefault(request, []).append(token)
        for request, reason in zip(report.finished, report.reasons, strict=True):
            assert request not in self.finished, "it ended twice"
            self.finished[request] = FinishReason(reason)
        self.errors.update(report.errors)
        self._news.set()

    def on_news(self, news: News) -> None:
        assert not self.lost, "news after the loss"
        self.news.append(news)
        self._news.set()

    def on_lost(self, why: str) -> None:
        self.lost.append(why)
        self._news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def until_ready(self) -> Ready:
        await self.until(lambda: self.ready or self.lost)
        assert self.ready is not None, self.lost
        return self.ready

    async def until_finished(self, *requests: int) -> None:
        await self.until(lambda: self.lost or self.finished.keys() >= set(requests))
        assert not self.lost

    async def until_lost(self) -> str:
        await self.until(lambda: self.lost)
        (why,) = self.lost
        return why


def submission(request: int, prompt: list[int], max_tokens: int = 8, **fields: Any) -> Submit:
    values = {"emitted": [], "sampling": GREEDY, **fields}
    return Submit(request=request, prompt=prompt, max_tokens=max_tokens, **values)


BLACK_BOX = {
    "steps": "a server that tells tokens does not tell what its steps hold: prefills can be neither counted nor cut",
    "draws": "a generator cannot be put where another one stood: a sampled request goes on with other draws",
}
"""The clauses that instances cannot keep which are only spoken to from outside, and why not."""
LONG_TOKENS = 1000


class Fleet(Protocol):
    """Makes and kills instances of one kind."""

    lacks: Mapping[str, str]
    """Clauses of the contract that instances of this kind cannot keep, and why not."""
    death: str
    """Of what is said when one is killed."""
    long_tokens: int
    """An answer that takes long enough to be interrupted."""

    def play(self, test: Coroutine[Any, Any, None]) -> None:
        """Run a test on the loop that its instances live on."""

    def start(self, listener: Listener) -> Adapter: ...

    def kill(self, adapter: Adapter) -> None: ...

    async def gone(self, adapter: Adapter) -> None:
        """Wait until nothing is left of a closed or killed instance."""


def contract(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make an ordinary test of a coroutine function whose first argument is a fleet."""

    @functools.wraps(test)
    def played(fleet: Fleet, **kwargs: Any) -> None:
        fleet.play(test(fleet, **kwargs))

    return played


class ModelledFleet:
    """In this process, in virtual time."""

    lacks: Mapping[str, str] = {}
    death = "killed by SIGKILL"
    long_tokens = LONG_TOKENS

    def play(self, test: Coroutine[Any, Any, None]) -> None:
        virtual_loop.run(test)

    def start(self, listener: Listener) -> Adapter:
        ready = Ready(100, 16, 32, asdict(SIMPLE), [], "model")
        return ModelledAdapter(listener, ready, asyncio.get_running_loop(), startup_s=0.1)

    def kill(self, adapter: Adapter) -> None:
        assert isinstance(adapter, ModelledAdapter)
        adapter.lose("killed by SIGKILL")

    async def gone(self, adapter: Adapter) -> None:
        await asyncio.sleep(10.0)


class NativeFleet:
    """Processes with the demo model, forked from one zygote that lives as long as this does.

    They compute in float32: in shorter types a resumed sequence may round to other tokens than an unbroken one.
    """

    lacks: Mapping[str, str] = {}
    death = "killed by SIGKILL"
    long_tokens = LONG_TOKENS

    def __init__(self, **spec: Any) -> None:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._spec = LocalSpec(str(DEMO_MODEL), **{"device": "cpu", "dtype": "float32", "kv_bytes": 1 << 24, **spec})
        self._adapters: list[Adapter] = []
        started_s = time.monotonic()
        self.launcher = self._runner.run(LocalLauncher.start(self._spec))
        self.start_s = time.monotonic() - started_s

    def close(self) -> None:
        self._runner.run(self._close())
        self._runner.close()

    async def _close(self) -> None:
        for adapter in self._adapters:
            adapter.close()
        await self.launcher.close()

    @property
    def zygote_pid(self) -> int:
        return self.launcher._zygote._process.pid

    def play(self, test: Coroutine[Any, Any, None]) -> None:
        self._runner.run(test)

    def start(self, listener: Listener) -> Adapter:
        adapter = self.launcher.launch(len(self._adapters), Role.MIXED, listener)
        self._adapters.append(adapter)
        return adapter

    def pid(self, adapter: Adapter) -> int:
        """Known once it is ready, and remembered."""
        assert isinstance(adapter, NativeAdapter)
        assert adapter.pid
        return adapter.pid

    def kill(self, adapter: Adapter) -> None:
        os.kill(self.pid(adapter), signal.SIGKILL)

    async def gone(self, adapter: Adapter) -> None:
        await until_dead(self.pid(adapter))


def process_state(pid: int) -> str | None:
    """The kernel's letter for it; None when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat.rpartition(")")[2].split()[0]


async def until_state(pid: int, states: set[str | None]) -> None:
    """The kernel tells nobody but a parent of such changes, so this looks often."""
    async with asyncio.timeout(PATIENCE_S):
        while process_state(pid) not in states:  # noqa: ASYNC110 there is no event for it
            await asyncio.sleep(0.005)


async def until_dead(pid: int) -> None:
    """Gone entirely: a zombie is not."""
    await until_state(pid, {None})
