"""Instances that go from one gateway to the next: the same processes, no trace of what they did before.

All gateways are in this process, one after another; each test's first one takes over what the test before it left.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from adapters.fleets import DEMO_MODEL, PATIENCE_S, Heard, process_state, submission, until_dead
from adapters.test_process_moves import DECODE, MIXED, PREFILL, Fleet, unbroken, workload
from hyperflexis.adapters.contract import Adapter
from hyperflexis.adapters.native import inheritance
from hyperflexis.adapters.native.host import ZygoteHost
from hyperflexis.adapters.native.keep import Keep, KeepError
from hyperflexis.adapters.native.messages import Orphan
from hyperflexis.core.instance import Role
from hyperflexis.runtime.launchers.local import LocalLauncher, LocalSpec, _order
from hyperflexis.wire.messages import Asleep, Sleep

pytestmark = pytest.mark.slow

PROMPT = list(range(11, 91))
LONG_S = 600.0


class Place:
    """A keep, and the loop on which gateways come and go."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._adapters: list[Adapter] = []
        self.pids: set[int] = set()
        """Every process there was."""

    @asynccontextmanager
    async def gateway(self, *, ends: bool = False, timeout_s: float = LONG_S, **spec: Any) -> AsyncIterator[Gateway]:
        """One that leaves everything when it goes, unless it `ends` all."""
        how = LocalSpec(str(DEMO_MODEL), **{"device": "cpu", "dtype": "float32", "kv_bytes": 1 << 24, **spec})
        keep = Keep(self.directory, timeout_s)
        try:
            async with asyncio.timeout(PATIENCE_S):
                launcher = await LocalLauncher.start(how, keep=keep)
            launcher.is_left = False
            gateway = Gateway(launcher)
            try:
                yield gateway
            finally:
                launcher.is_left = not ends
                self.pids |= {launcher._zygote._process.pid, *launcher.pids.values()}
                for adapter in gateway.adapters:
                    adapter.close()
                await launcher.close()
                gateway.let_child_end_alone()
        finally:
            keep.close()


class Gateway:
    def __init__(self, launcher: LocalLauncher) -> None:
        self.launcher = launcher
        self.adapters: list[Adapter] = []

    async def start(self, count: int = 1) -> list[Heard]:
        """Instances, ready."""
        heard = [Heard() for _ in range(count)]
        for each in heard:
            self.adapters.append(self.launcher.launch(len(self.adapters), Role.MIXED, each))
        for each in heard:
            await each.until_ready()
        async with asyncio.timeout(PATIENCE_S):
            while len(self.launcher.pids) < len(self.adapters):  # noqa: ASYNC110  # that comes by another socket
                await asyncio.sleep(0.001)
        return heard

    async def answer(self, heard: Heard, request: int = 1, prompt: list[int] = PROMPT) -> list[int]:
        self.adapters[0].submit(submission(request, prompt, 24))
        await heard.until_finished(request)
        return heard.tokens[request]

    def let_child_end_alone(self) -> None:
        """It may be a child of this process, which would warn that nobody waited for it."""
        if hasattr(self.launcher._zygote._process, "returncode"):
            self.launcher._zygote._process.returncode = 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if sys.platform != "linux":
        pytest.skip("instances as processes need Linux")
    made = Place(tmp_path_factory.mktemp("kept") / "keep")
    yield made
    made.runner.run(end(made))
    made.runner.close()


async def end(place: Place) -> None:
    async with place.gateway(ends=True):
        pass
    for pid in place.pids:
        await until_ended(pid)
    assert os.listdir(place.directory) == []


async def until_ended(pid: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while process_state(pid) not in {None, "Z"}:  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.005)


def played(test: Callable[[Place], Coroutine[Any, Any, None]]) -> Callable[[Place], None]:
    def play(place: Place) -> None:
        place.runner.run(test(place))

    play.__name__ = test.__name__
    return play


@played
async def test_next_gateway_has_the_same_processes_and_answers(place: Place) -> None:
    async with place.gateway(instances=2) as first:
        heard = await first.start(2)
        expected = await first.answer(heard[0])
        pids, loaded = first.launcher.pids, first.launcher.loaded
    async with place.gateway(instances=2) as second:
        assert second.launcher.loaded == loaded
        assert sorted(second.launcher.inherited) == sorted(pids.values())
        again = await second.start(2)
        assert second.launcher.pids == pids
        assert await second.answer(again[0]) == expected
        (started,) = [report for report in again[0].reports if 1 in report.started]
        assert started.cached_tokens == [0], "a request of the gateway before was remembered"
        for before, after in zip(heard, again, strict=True):
            assert before.ready is not None
            assert after.ready is not None
            assert (after.ready.blocks, after.ready.samples) == (before.ready.blocks, before.ready.samples)
            assert after.ready.startup_s.keys() == {"adoption"}


@played
async def test_work_of_the_gateway_before_is_dropped(place: Place) -> None:
    """Decodes, prefills that have begun, and what waits."""
    async with place.gateway() as first:
        (heard,) = await first.start()
        for number in range(2, 40):
            first.adapters[0].submit(submission(number, [number] * 300, 500))
        await heard.until(lambda: len(heard.tokens) > 5)
    async with place.gateway() as second:
        (again,) = await second.start()
        expected = await second.answer(again, 2)
        assert again.tokens.keys() == {2}
        assert again.ready is not None
        last = again.reports[-1]
        assert (last.blocks_free, last.running_seqs, last.waiting_seqs) == (again.ready.blocks, 0, 0)
        assert await second.answer(again, 3) == expected


@pytest.mark.parametrize("how", ["close", "lose"])
def test_instance_that_is_let_go_of_ends_however_busy_it_is(place: Place, how: str) -> None:
    """What it notices, the end of its stream, is what it would notice of its gateway's end."""

    async def play() -> None:
        async with place.gateway(instances=2) as first:
            heard, _ = await first.start(2)
            pid = first.launcher.pids[0]
            first.adapters[0].submit(submission(1, PROMPT, 900))
            await heard.until(lambda: heard.tokens)
            if how == "close":
                first.adapters[0].close()
            else:
                first.adapters[0].data_received(bytes(7) + b"garbage")  # type: ignore[attr-defined]
                assert "garbage" in await heard.until_lost()
            await until_ended(pid)
            async with asyncio.timeout(PATIENCE_S):
                while 0 in first.launcher.pids:  # noqa: ASYNC110  # no event tells
                    await asyncio.sleep(0.005)

    place.runner.run(play())


@pytest.mark.parametrize("level", [1, 2])
def test_sleeper_is_awake_for_the_next_gateway(place: Place, level: int) -> None:
    async def play() -> None:
        async with place.gateway() as first:
            (heard,) = await first.start()
            expected = await first.answer(heard)
            first.adapters[0].order(Sleep(level))
            await heard.until(lambda: heard.news)
            assert isinstance(heard.news[0], Asleep)
        async with place.gateway() as second:
            (again,) = await second.start()
            assert await second.answer(again) == expected

    place.runner.run(play())


@played
async def test_other_threads_other_times(place: Place) -> None:
    async with place.gateway(seqs_max=8) as first:
        (heard,) = await first.start()
    async with place.gateway(threads=2, seqs_max=4) as second:
        (again,) = await second.start()
        assert heard.ready is not None
        assert again.ready is not None
        assert again.ready.samples != heard.ready.samples
        assert again.ready.seqs_max == 4


@played
async def test_requests_move_between_adopted_instances_as_between_new_ones(place: Place) -> None:
    """The gateway before went while they moved; roles and links are others now."""
    asks = workload(random.Random(7), 16)
    found = []
    async with place.gateway(instances=3) as first, Fleet(first, PREFILL, DECODE, DECODE) as fleet:  # type: ignore[arg-type]
        for ask in asks:
            fleet.submit(*ask)
        async with asyncio.timeout(PATIENCE_S):
            while not any(each.standing for each in fleet.control.cluster.ready):  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0)
        first.launcher.is_left = True
    for roles in ((DECODE, PREFILL, DECODE), (MIXED, MIXED, MIXED)):
        async with place.gateway(instances=3) as second, Fleet(second, *roles) as fleet:  # type: ignore[arg-type]
            clients = [fleet.submit(*ask) for ask in asks]
            for _ in range(10):
                fleet.move(clients[3])
                await asyncio.sleep(0.01)
            for client in clients:
                await client.ended()
            assert [client.tokens for client in clients] == await unbroken(fleet, asks)
            found.append([client.tokens for client in clients])
            second.launcher.is_left = True
    assert found[0] == found[1]


@played
async def test_orphan_that_was_killed_is_not_adopted(place: Place) -> None:
    async with place.gateway(instances=2) as first:
        await first.start(2)
        pids = first.launcher.pids
    os.kill(pids[0], signal.SIGKILL)
    await until_dead(pids[0])
    async with place.gateway(instances=2) as second:
        assert pids[0] not in second.launcher.inherited
        # And one that dies when it has been seen already.
        os.kill(pids[1], signal.SIGKILL)
        await until_ended(pids[1])
        (heard, _) = await second.start(2)
        assert not {*pids.values()} & {*second.launcher.pids.values()}
        assert len(await second.answer(heard)) == 24


@played
async def test_more_than_are_wanted_end(place: Place) -> None:
    async with place.gateway(instances=3) as first:
        await first.start(3)
        pids = set(first.launcher.pids.values())
    async with place.gateway(instances=2, timeout_s=0.2) as second:
        await second.start(1)
        (kept,) = second.launcher.pids.values()
        assert kept in pids
        for pid in pids - {kept}:  # One beyond the most, and one that nobody wanted in time.
            await until_ended(pid)


@played
async def test_something_else_is_refused_and_costs_nothing(place: Place) -> None:
    async with place.gateway() as first:
        await first.start()
        pids = first.launcher.pids
    with pytest.raises(KeepError, match="dtype float32, not bfloat16"):
        async with place.gateway(dtype="bfloat16"):
            pass
    async with place.gateway() as second:
        await second.start()
        assert second.launcher.pids == pids


@played
async def test_nothing_is_left_when_nobody_came_in_time(place: Place) -> None:
    shared_before = sorted(os.listdir("/dev/shm"))
    async with place.gateway(timeout_s=0.3, instances=2) as first:
        await first.start(2)
        pids = [first.launcher._zygote._process.pid, *first.launcher.pids.values()]
    for pid in pids:
        await until_ended(pid)
    assert sorted(os.listdir("/dev/shm")) == shared_before
    keep = Keep(place.directory, LONG_S)
    assert await inheritance.find(keep, _order(LocalSpec(str(DEMO_MODEL)), is_kept=True)) is None
    keep.close()


def test_orphan_stays_on_its_device() -> None:
    host = ZygoteHost.__new__(ZygoteHost)
    host.orphans = [Orphan(1, "cuda:1"), Orphan(2, "cuda:0"), Orphan(3, "cuda:1")]
    assert [host._take_orphan(f"cuda:{number % 2}") for number in range(4)] == [2, 1, 0, 3]
    assert not host.orphans
