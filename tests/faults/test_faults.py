"""Worlds full of faults: a hundred in the suite, thousands when it soaks; and those that once broke something."""

from __future__ import annotations

import time

import pytest

from faults.__main__ import explain, failure
from faults.coverage import INSTANCES, REQUESTS, Coverage
from faults.plan import Ask, Fault, Plan, Setting, draw
from faults.world import play
from helpers import soak

WORLDS, CHUNK = 100, 20
SOAKED_WORLDS = 1000
"""So many have met every step of every life that can be met: see docs/faults.md."""
RARE = {
    ("waiting", "go on"),
    ("waiting", "finish"),
    ("prefilling", "go on"),
    ("prefilling", "finish"),
    ("in transit", "cancel"),
}
"""Steps of requests that fewer than one world in a hundred meets: not all of them have to be met in the suite."""


def first_seed() -> int:
    """The same ones each run, other ones when it soaks."""
    return 0 if soak.FACTOR == 1 else time.time_ns() % 1_000_000_000


@pytest.fixture(scope="module")
def coverage() -> Coverage:
    """Of all worlds that are played here."""
    return Coverage()


@pytest.mark.soak
@pytest.mark.parametrize("chunk", range(soak.examples(WORLDS // CHUNK)))
def test_nothing_is_lost_whatever_fails(chunk: int, coverage: Coverage) -> None:
    begin = first_seed() + chunk * CHUNK
    for seed in range(begin, begin + CHUNK):
        error = failure(draw(seed), coverage)
        if error is not None:
            pytest.fail(explain(seed, error), pytrace=False)


@pytest.mark.soak
def test_every_step_of_every_life_is_met(coverage: Coverage) -> None:
    """Nothing that the core's tables have is only there on paper."""
    for seed in range(200 if soak.FACTOR == 1 else SOAKED_WORLDS):
        play(draw(seed), coverage)
    assert set(coverage.never(REQUESTS)) <= (RARE if soak.FACTOR == 1 else set())
    assert not coverage.never(INSTANCES)


# What once broke something.

FOUND = {
    "an instance that could not be launched is given up before that is told": Plan(
        seed=121,
        setting=Setting(roles=("mixed",), restlessness=0.5, spare=1, startup_s=0.0, message_s=0.02),
        asks=(
            Ask(at_s=0.0),
            Ask(at_s=0.027),
            Ask(at_s=0.226, prompt_tokens=43, max_tokens=52, tpot_s=0.02, ttft_s=0.1),
            Ask(at_s=0.6, ttft_s=0.1),
        ),
        faults=(
            Fault(at_s=0.792, kind="unlaunchable", amount=0.5),
            Fault(at_s=3.5, kind="resize", amount=3),
        ),
    ),
    "the only decode loses its blocks to one that is on its way, and nobody is told": Plan(
        seed=3505,
        setting=Setting(
            roles=("prefill", "decode", "decode"),
            policy="hyperflexis:roles=planned",
            restlessness=1.0,
            spare=1,
            blocks=12,
            startup_s=0.0,
            copy_s=0.3,
        ),
        asks=(
            Ask(at_s=0.016, prompt_tokens=15, max_tokens=16),
            Ask(at_s=0.132, prompt_tokens=84, text=1),
            Ask(at_s=0.2),
            Ask(at_s=0.244, prompt_tokens=15),
            Ask(at_s=0.252, text=1),
            Ask(at_s=0.0),
            Ask(at_s=0.291, prompt_tokens=40),
            Ask(at_s=0.3, prompt_tokens=85, max_tokens=13),
        ),
        faults=(Fault(at_s=0.249, kind="hang", amount=2.0),),
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_it_does_so_no_more(name: str) -> None:
    play(FOUND[name])
