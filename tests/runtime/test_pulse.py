"""Pulses: who answers lives, who is silent is given up once, and who was stopped oneself blames nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from hyperflexis.runtime.launchers import pulse as module
from hyperflexis.runtime.launchers.pulse import Pulse


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PULSE_S", 0.01)


async def asked(times: int, answer: Callable[[Pulse], None], *, unanswered_max: int = 5) -> list[str]:
    """Ask so often, or until it is given up; returns what was said of silence."""
    told: list[str] = []
    over = asyncio.Event()

    def ask() -> None:
        nonlocal times
        times -= 1
        if times:
            answer(pulse)
        else:
            over.set()

    def give_up(why: str) -> None:
        told.append(why)
        over.set()

    pulse = Pulse(unanswered_max * module.PULSE_S, ask, give_up)
    async with asyncio.timeout(30):
        await over.wait()
    pulse.end()
    return told


def test_instance_that_answers_lives() -> None:
    assert asyncio.run(asked(30, Pulse.heard)) == []


def test_silent_instance_is_given_up_once() -> None:
    assert len(asyncio.run(asked(30, lambda pulse: None))) == 1


def test_answer_in_time_is_enough() -> None:
    questions = iter(range(1000))
    assert asyncio.run(asked(30, lambda pulse: pulse.heard() if next(questions) % 4 == 3 else None)) == []


def test_nobody_is_blamed_for_what_the_watcher_missed() -> None:
    def sleep(pulse: Pulse) -> None:
        time.sleep(0.2)  # Longer than it waits for answers: this process stood still, and so did the questions.
        asyncio.get_running_loop().call_soon(pulse.heard)

    assert asyncio.run(asked(4, sleep)) == []


def test_end_is_the_end() -> None:
    async def main() -> list[str]:
        told: list[str] = []
        pulse = Pulse(2 * module.PULSE_S, lambda: None, told.append)
        pulse.end()
        await asyncio.sleep(5 * module.PULSE_S)
        return told

    assert asyncio.run(main()) == []
