"""Faults strike, and what must hold is really looked at: each planted defect is found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from faults.account import Account
from faults.coverage import ABOUT_REQUESTS, LINKS, MOVES, STARTS, Coverage
from faults.memory import Memory
from faults.plan import KINDS, Ask, Fault, Kind, Plan, Setting
from faults.world import ON_PROCESS, ON_WORLD, World, play
from helpers import virtual_loop
from hyperflexis.core.control import ControlPlane
from hyperflexis.core.handover import Taker
from hyperflexis.core.instance import Instance
from hyperflexis.core.links import Links
from hyperflexis.runtime.driver import Driver

TESTS = Path(__file__).parents[1]
APART = Setting(roles=("prefill", "decode"))
BUSY = tuple(Ask(at_s=0.1 * number, prompt_tokens=40, max_tokens=60) for number in range(8))


def after(plan: Plan) -> World:
    """The world in which a plan has happened."""
    worlds = []

    async def main() -> None:
        worlds.append(World(plan, Coverage()))
        await worlds[0].play()

    virtual_loop.run(main())
    return worlds[0]


def test_everything_that_can_be_planned_can_be_done() -> None:
    assert {*ON_PROCESS, *ON_WORLD, "leave"} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", [Setting(), APART], ids=["mixed", "apart"])
def test_one_fault_in_the_middle(kind: Kind, setting: Setting) -> None:
    play(Plan(setting=setting, asks=BUSY, faults=(Fault(0.45, kind, 1, 0.3),)))


def test_nothing_happens_where_nothing_goes_wrong() -> None:
    world = after(Plan(setting=APART, asks=BUSY))
    assert {client.end.reason for client in world.clients} == {"length"}
    assert not any(process.is_over for process in world.processes.values())


@pytest.mark.parametrize("kind", ["kill", "vanish", "cut", "lose", "repeat", "swap"])
def test_broken_streams_and_dead_processes_are_lost_and_replaced(kind: Kind) -> None:
    world = after(Plan(asks=BUSY, faults=(Fault(0.45, kind, 1),)))
    assert sum(process.is_over for process in world.processes.values()) == 1
    assert len(world.processes) == 3
    assert {client.end.reason for client in world.clients} == {"length"}


def test_fault_waits_for_its_command() -> None:
    world = after(Plan(setting=APART, asks=BUSY, faults=(Fault(0.0, "kill", 1, upon="Migrate"),)))
    assert world.processes[1].is_over
    assert not world.processes[0].is_over


def test_flood_is_answered_or_refused() -> None:
    world = after(Plan(setting=Setting(requests_max=12), asks=BUSY, faults=(Fault(0.3, "flood", amount=30),)))
    assert len(world.clients) == 38
    assert {client.end.reason for client in world.clients} == {"length", "rejected"}


def test_coverage_is_counted_by_worlds() -> None:
    coverage = Coverage()
    for _ in range(2):
        play(Plan(setting=APART, asks=BUSY), coverage)
    assert coverage.worlds[ABOUT_REQUESTS.title, "standing", "arrived"] == 2
    assert coverage.worlds[LINKS.title, "pending", "up"] == 2
    assert coverage.worlds[STARTS.title, "disk", "ready"] == 2
    assert ("standing", "done") not in coverage.never(MOVES)
    assert ("standing", "failed") in coverage.never(MOVES)
    assert "| standing | 2 | never |" in coverage.markdown()


def test_same_plan_same_world() -> None:
    """Also where strings and bytes are hashed otherwise."""
    program = (
        "from faults.plan import draw; from faults.world import WatchedControlPlane as W, play\n"
        "told, handle = [], W.handle\n"
        "def hear(self, event, now): commands = handle(self, event, now); told.append((event, now, commands));"
        " return commands\n"
        "W.handle = hear\n"
        "for seed in range(3): play(draw(seed))\n"
        "import hashlib; print(hashlib.sha256(repr(told).encode()).hexdigest())"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(told) == 1


# Defects, planted.


@contextmanager
def planted(owner: Any, name: str, defect: Callable[..., Any]) -> Iterator[None]:
    """Let a method do something else; `defect` gets what it was first."""
    with patch.object(owner, name, defect(getattr(owner, name))):
        yield


def _loses_token(hand_out: Callable[..., None]) -> Callable[..., None]:
    def loses(self: Driver, report: Any) -> None:
        if len(report.tokens) == 1 and report.context_tokens == 50:
            report.tokens.clear()
            report.requests.clear()
        hand_out(self, report)

    return loses


def _forgets(lose: Callable[..., Any]) -> Callable[..., Any]:
    """What an instance had when it died is put nowhere."""

    def forgets(self: ControlPlane, instance: Instance, now: float) -> Any:
        held = [*instance.waiting, *instance.decoding]
        return [command for command in lose(self, instance, now) if getattr(command, "request_id", None) not in held]

    return forgets


DEFECTS: dict[str, tuple[Any, str, Callable[..., Any], Plan]] = {
    "a token is lost on its way": (Driver, "_hand_out", _loses_token, Plan(asks=BUSY[:1])),
    "a request is lost with its instance": (
        ControlPlane,
        "_lose",
        _forgets,
        Plan(asks=BUSY, faults=(Fault(0.45, "kill", 0),)),
    ),
    "a failed copy is taken for a good one": (
        Memory,
        "copy",
        lambda _: lambda self, source, source_blocks, target_blocks: self.spoil(target_blocks),
        Plan(setting=APART, asks=BUSY),
    ),
    "a taker keeps its blocks": (
        Taker,
        "fail",
        lambda fail: lambda self, number, why: None,
        Plan(setting=APART, asks=BUSY, faults=(Fault(0.0, "corrupt", 1, 2.0),)),
    ),
    "a link that is down counts as up": (
        Links,
        "version",
        lambda _: lambda self, source, target: link.version if (link := self._links.get((source, target))) else None,
        Plan(setting=APART, asks=BUSY, faults=(Fault(0.0, "linkless", 1, 9.0),)),
    ),
    "nobody is told of an end": (Driver, "_end", lambda _: lambda self, number, end: None, Plan(asks=BUSY[:1])),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_planted_defect_is_found(name: str) -> None:
    owner, method, defect, plan = DEFECTS[name]
    play(plan)
    with planted(owner, method, defect), pytest.raises(AssertionError):
        play(plan)


def test_account_is_kept_at_all_events() -> None:
    seen = []
    with planted(Account, "after", lambda old: lambda self, *words: (seen.append(words[0]), old(self, *words))):
        play(Plan(asks=BUSY))
    assert len(seen) > 20
