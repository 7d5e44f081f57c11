"""The virtual loop: time passes only while everybody waits, in order, and waiting for nothing is an error."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from helpers.virtual_loop import DeadlockError, VirtualLoop, run, virtual

DAY_S = 86_400.0


def test_a_day_of_sleeps_takes_moments() -> None:
    async def main() -> float:
        for _ in range(1440):
            await asyncio.sleep(60.0)
        return asyncio.get_running_loop().time()

    started_s = time.monotonic()
    assert run(main()) == pytest.approx(DAY_S)
    assert time.monotonic() - started_s < 30.0


def test_time_stands_still_while_work_is_ready() -> None:
    async def main() -> float:
        for _ in range(1000):
            await asyncio.sleep(0)
        return asyncio.get_running_loop().time()

    assert run(main()) == 0.0


def test_timers_fire_at_their_instants() -> None:
    """In order of time; asyncio leaves open which of two equal ones is first."""

    async def main() -> list[tuple[float, str]]:
        loop = asyncio.get_running_loop()
        fired: list[tuple[float, str]] = []
        for delay_s, name in ((2.0, "late"), (0.5, "early"), (0.0, "now"), (0.75, "later")):
            loop.call_later(delay_s, lambda name=name: fired.append((loop.time(), name)))
        loop.call_later(1.0, fired.append, (1.0, "cancelled")).cancel()
        await asyncio.sleep(3.0)
        return fired

    assert run(main()) == [(0.0, "now"), (0.5, "early"), (0.75, "later"), (2.0, "late")]


def test_waits_longer_than_the_loop_polls_at_once() -> None:
    """asyncio never asks its selector for more than a day at a time."""

    async def main() -> float:
        await asyncio.sleep(30 * DAY_S)
        return asyncio.get_running_loop().time()

    assert run(main()) == pytest.approx(30 * DAY_S)


def test_time_out_comes_at_its_virtual_instant() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(7.0):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run(main()) == 7.0


def test_deadlock_raises_and_says_when() -> None:
    async def main() -> None:
        await asyncio.sleep(2.5)
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError, match=r"after 2\.5 s"):
        run(main())


def test_tasks_are_cancelled_after_a_deadlock() -> None:
    ended = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def main() -> None:
        await asyncio.gather(wait(), wait())

    with pytest.raises(DeadlockError):
        run(main())
    assert ended == [True, True]


def test_input_that_is_there_comes_before_time() -> None:
    async def main() -> tuple[bytes, float]:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.send(b"news")
            async with asyncio.timeout(1.0):
                data = await loop.sock_recv(ours, 10)
        return data, loop.time()

    assert run(main()) == (b"news", 0.0)


def test_loop_closes_its_selector() -> None:
    loop = VirtualLoop()
    loop.close()
    assert loop.is_closed()


@pytest.mark.parametrize("delay_s", [1.0, 3.0])
@virtual
async def test_decorated_coroutine_runs_in_virtual_time(delay_s: float) -> None:
    await asyncio.sleep(delay_s)
    assert asyncio.get_running_loop().time() == delay_s
