"""Worlds full of faults: a hundred in the suite, thousands when it soaks; and those that once broke something."""

from __future__ import annotations

from dataclasses import replace

import pytest

from faults.__main__ import explain, failure
from faults.coverage import INSTANCES, LINKS, REQUESTS, STARTS, Coverage, Table
from faults.plan import Ask, Fault, Plan, Setting, draw
from faults.world import play
from helpers import soak

WORLDS, CHUNK = 100, 20


def _upon_migrate(setting: Setting, asks: tuple[Ask, ...], *faults: Fault) -> Plan:
    """The first fault comes with the first move, and so do others that wait for nothing else."""
    return Plan(setting=setting, asks=asks, faults=tuple(replace(each, upon=each.upon or "Migrate") for each in faults))


@pytest.mark.soak
@pytest.mark.parametrize("chunk", range(soak.examples(WORLDS // CHUNK)))
def test_nothing_is_lost_whatever_fails(chunk: int) -> None:
    begin = soak.FIRST_SEED + chunk * CHUNK
    for seed in range(begin, begin + CHUNK):
        error = failure(draw(seed))
        if error is not None:
            pytest.fail(explain(seed, error), pytrace=False)


# What hardly any seed meets, brought about.

BUSY = tuple(Ask(at_s=number / 10, prompt_tokens=40, max_tokens=60) for number in range(8))
LONG = tuple(Ask(at_s=number / 10, prompt_tokens=40, max_tokens=150) for number in range(4))
LONG_PROMPTS = tuple(Ask(at_s=number / 10, prompt_tokens=600, max_tokens=20, text=number) for number in range(4))
CROWD = tuple(Ask(at_s=0.1, prompt_tokens=600, max_tokens=20, text=number) for number in range(3))
URGENT = Ask(at_s=0.11, priority=1)
APART = Setting(roles=("prefill", "decode"), copy_s=0.3)
MOVED = Setting(restlessness=1.0, message_s=0.02, copy_s=0.0)
SIZED = Setting(restlessness=1.0, spare=2, least=0, asleep_max=2)
THREE = Setting(roles=("mixed", "mixed", "mixed"))
STARVED = Plan(
    seed=31,
    setting=Setting(restlessness=1.0, chunk_tokens=16, blocks=12, copy_s=0.0),
    asks=(
        Ask(at_s=0.169, prompt_tokens=60, max_tokens=30),
        Ask(at_s=0.3, prompt_tokens=80, max_tokens=30, text=1),
        Ask(at_s=0.5, prompt_tokens=60, text=3),
        Ask(at_s=0.221, prompt_tokens=60, max_tokens=30, text=1),
        Ask(at_s=1.0),
        Ask(at_s=0.291, prompt_tokens=80, max_tokens=20, text=7),
    ),
)
RARE: list[tuple[Table, str, str, Plan]] = [
    (
        *(REQUESTS, "waiting", "finish"),
        Plan(setting=Setting(seqs_max=1), asks=BUSY, faults=(Fault(0.25, "fail", upon="Dispatch", after_s=0.002),)),
    ),
    (REQUESTS, "waiting", "lose", _upon_migrate(replace(MOVED, seqs_max=1), LONG, Fault(0.0, "kill"))),
    (REQUESTS, "prefilling", "finish", Plan(asks=LONG_PROMPTS[:1], faults=(Fault(0.4, "fail"),))),
    (REQUESTS, "prefilling", "cancel", Plan(asks=LONG_PROMPTS[:1], faults=(Fault(0.4, "leave"),))),
    (REQUESTS, "prefilling", "requeue", Plan(asks=LONG_PROMPTS[:1], faults=(Fault(0.4, "kill"),))),
    (REQUESTS, "prefilling", "lose", _upon_migrate(MOVED, LONG_PROMPTS, Fault(0.0, "kill"))),
    (REQUESTS, "prefilling", "go on", STARVED),
    (
        *(REQUESTS, "standing", "requeue"),
        Plan(setting=replace(APART, blocks=12, message_s=0.02, copy_s=0.005), asks=BUSY, faults=(Fault(0.2, "kill"),)),
    ),
    (REQUESTS, "standing", "lose", _upon_migrate(APART, BUSY, Fault(0.0, "kill", after_s=0.1))),
    (
        *(REQUESTS, "in transit", "go on"),
        _upon_migrate(
            replace(APART, message_s=0.1, copy_s=0.0), (Ask(1.0, 40, 30),), Fault(1.0, "kill", after_s=0.105)
        ),
    ),
    (
        *(REQUESTS, "in transit", "move"),
        _upon_migrate(
            replace(MOVED, message_s=0.1, kv_token_bytes=10**9), LONG_PROMPTS, Fault(0.0, "kill", after_s=0.4)
        ),
    ),
    (
        *(REQUESTS, "in transit", "cancel"),
        _upon_migrate(
            replace(MOVED, message_s=0.1),
            LONG,
            Fault(0.0, "kill", after_s=0.1),
            Fault(0.0, "leave", upon="Abandon", after_s=0.05),
        ),
    ),
    (
        *(INSTANCES, "draining", "lose"),
        Plan(setting=Setting(policy="hyperflexis"), asks=BUSY, faults=(Fault(0.4, "drain", 1), Fault(0.5, "kill", 1))),
    ),
    (
        *(INSTANCES, "asleep", "lose"),
        Plan(setting=SIZED, asks=BUSY, faults=(Fault(0.0, "kill", upon="Sleep", after_s=0.05),)),
    ),
    (
        *(STARTS, "sleeper", "lost"),
        Plan(setting=SIZED, asks=BUSY, faults=(Fault(0.0, "insomnia", amount=9.0, upon="Sleep"),)),
    ),
    (REQUESTS, "waiting", "reject", Plan(setting=Setting(roles=("mixed",), requests_max=3), asks=(*CROWD, URGENT))),
    (LINKS, "pending", "silent", Plan(setting=THREE, asks=BUSY, faults=(Fault(0.0, "hang", 1, 7.0, "Link"),))),
    (LINKS, "replaced", "up", Plan(setting=THREE, asks=BUSY, faults=(Fault(0.0, "hang", 1, 7.0, "Link"),))),
]


@pytest.mark.parametrize(
    ("table", "state", "event", "plan"), RARE, ids=[f"{state}, {event}" for _, state, event, _ in RARE]
)
def test_rare_step_is_taken(table: Table, state: str, event: str, plan: Plan) -> None:
    coverage = Coverage()
    play(plan, coverage)
    assert coverage.worlds[table.title, state, event]


@pytest.mark.soak
def test_every_step_of_every_life_is_taken() -> None:
    """Nothing that the core's tables have is there on paper only; and what cannot be was not."""
    coverage = Coverage()
    for plan in [*map(draw, range(soak.examples(25))), *(plan for _, _, _, plan in RARE)]:
        play(plan, coverage)
    assert not coverage.never(REQUESTS)
    assert not coverage.never(INSTANCES)
    assert not coverage.unforeseen()


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
