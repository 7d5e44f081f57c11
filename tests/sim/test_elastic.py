"""Fleets that change their size while requests run: everyone ends, nothing is beyond bounds, and the bill is right."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from helpers.builders import SIMPLE
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Command, Drain, Launch, Reason, Resize, Retain, Sleep, Stop, Wake, Why
from hyperflexis.core.control import Policy
from hyperflexis.core.fleet import FleetBounds, Prices, Range
from hyperflexis.core.instance import Capacity, Role, StartSource
from hyperflexis.core.sizing import Sizing, Wanted
from hyperflexis.policies import create
from hyperflexis.sim.job import Job
from hyperflexis.sim.outcome import Outcome
from hyperflexis.sim.simulation import FleetSpec
from hyperflexis.sim.startup import StartPhases, StartupSpec
from sim.test_fleets import KV_TOKEN_BYTES, Line, commands, complete, run

M = Role.MIXED
PEER, DISK, SLEEPER = StartSource.PEER, StartSource.DISK, StartSource.SLEEPER


@dataclass
class Scripted:
    """Wants what it was told to want from each instant on."""

    script: Sequence[tuple[float, int, int]]

    def plan(self, cluster: Cluster, sizing: Sizing, now: float) -> Wanted | None:
        if not cluster.ready and cluster.requests and not sizing.wanted:
            return Wanted({M: 1}, Reason(Why.FIRST))
        begun = [each for each in self.script if each[0] <= now]
        if not begun:
            return None
        _, count, asleep = begun[-1]
        return Wanted({M: max(count, 1 if cluster.requests else 0)}, Reason(Why.DEMAND), asleep)


def policy(*script: tuple[float, int, int], moves: bool = True) -> Policy:
    made = create("hyperflexis:roles=fixed", 64)
    return replace(made, scaler=Scripted(script), relief=made.relief if moves else None)


def spec(least: int = 1, most: int = 6, startup: StartupSpec | None = None, **changed: Any) -> FleetSpec:
    startup = startup or StartupSpec.constant(0.5)
    bounds = FleetBounds(
        {M: Range(least, most)},
        sources=changed.pop("sources", (DISK,)),
        startup_s=startup.seconds(),
        asleep_max=changed.pop("asleep_max", 0),
        prices=changed.pop("prices", Prices()),
        start_timeout_s=changed.pop("start_timeout_s", 600.0),
        is_dry=changed.pop("is_dry", False),
    )
    return FleetSpec(least, Capacity(400, 16, 32, KV_TOKEN_BYTES), SIMPLE, bounds=bounds, startup=startup, **changed)


def jobs(count: int, every_s: float = 0.1, answer: int = 40) -> list[Job]:
    return [Job(each * every_s, 20, answer, "loose") for each in range(count)]


def kinds(lines: list[Line], *wanted: type[Command]) -> list[tuple[float, str, int]]:
    return [
        (round(now, 1), type(each).__name__, each.instance_id)
        for now, _, said in lines
        for each in said
        if isinstance(each, wanted)
    ]


def integral_s(lines: list[Line], outcome: Outcome) -> float:
    """Instance-seconds from the first arrival to the last end, by a slow reading of the commands."""
    begin_s, end_s = float(outcome.arrived_s[0]), float(outcome.arrived_s[0]) + outcome.sim_seconds
    since: dict[int, float] = {}
    total_s = 0.0
    for now, said, told in lines:
        gone = [each.instance_id for each in told if isinstance(each, Stop | Sleep)]
        gone += [said.instance_id] if type(said).__name__ == "InstanceLost" else []
        for number in gone:
            total_s += max(0.0, min(now, end_s) - max(since.pop(number, now), begin_s))
        for each in told:
            if isinstance(each, Launch | Wake):
                since[each.instance_id] = now
    return total_s + sum(max(0.0, end_s - max(now, begin_s)) for now in since.values())


def most_wanted(lines: list[Line], role: Role, since_s: float, until_s: float) -> int:
    """Of the sizes that were decided on within a time; 1 if none was."""
    wants = [
        each.want
        for now, _, said in lines
        for each in said
        if isinstance(each, Resize) and each.role is role and since_s <= now < until_s
    ]
    return max(wants, default=1)


def test_a_fleet_grows_and_shrinks_as_it_is_told() -> None:
    asked = jobs(60)
    outcome, lines = run(asked, spec(), policy((1.0, 4, 0), (4.0, 2, 0)))
    assert complete(outcome, asked)
    assert [each.want for each in commands(lines, Resize)] == [4, 2]
    assert [number for _, kind, number in kinds(lines, Launch) if kind == "Launch"] == [0, 1, 2, 3]
    drained = kinds(lines, Drain)
    assert len(drained) == 2
    assert drained[1][0] - drained[0][0] >= 0.5
    assert outcome.usage.awake_s == pytest.approx(integral_s(lines, outcome))


def test_a_decision_that_is_taken_back_takes_back_who_drains() -> None:
    asked = jobs(40, answer=200)
    outcome, lines = run(asked, spec(), policy((0.0, 2, 0), (2.0, 1, 0), (2.5, 2, 0), moves=False))
    assert complete(outcome, asked)
    assert [kind for _, kind, _ in kinds(lines, Drain, Retain, Launch, Stop)][-2:] == ["Drain", "Retain"]


def test_who_leaves_gives_its_requests_away() -> None:
    asked = jobs(20, answer=300)
    fleet = spec(max_tokens=300)  # Else so much is planned for each that they fit nowhere together.
    stays, _ = run(asked, fleet, policy((0.0, 3, 0), (3.0, 1, 0), moves=False))
    moves, _ = run(asked, fleet, policy((0.0, 3, 0), (3.0, 1, 0)))
    assert complete(stays, asked)
    assert complete(moves, asked)
    assert stays.migrations == 0 < moves.migrations
    assert moves.usage.awake_s < stays.usage.awake_s


def test_none_is_there_until_somebody_asks() -> None:
    asked = [Job(3.0, 20, 30, "loose"), Job(20.0, 20, 30, "loose")]
    outcome, lines = run(asked, spec(0), policy((0.0, 0, 0)))
    assert complete(outcome, asked)
    assert kinds(lines, Launch) == [(3.0, "Launch", 0), (20.0, "Launch", 1)]
    assert outcome.ttft_s.min() > 0.5
    assert outcome.usage.awake_s < 5


def test_our_own_scaler_holds_the_first_request_and_starts_at_once() -> None:
    asked = [Job(3.0, 20, 30, "loose")]
    outcome, lines = run(asked, spec(0), create("hyperflexis:roles=fixed", 64))
    assert complete(outcome, asked)
    assert kinds(lines, Launch) == [(3.0, "Launch", 0)]


def test_prefilling_and_decoding_instances_are_sized_apart() -> None:
    """First long prompts with short answers, then short prompts with long answers."""
    asked = [Job(at / 8, 900, 8, "loose") for at in range(80)]
    asked += [Job(20 + at / 16, 20, 150, "loose") for at in range(320)]
    apart = {Role.PREFILL: Range(1, 8), Role.DECODE: Range(1, 8)}
    fleet = spec()
    assert fleet.bounds is not None
    fleet = replace(fleet, bounds=replace(fleet.bounds, ranges=apart))
    outcome, lines = run(asked, fleet, create("hyperflexis:roles=fixed", 64))
    assert complete(outcome, asked)
    assert most_wanted(lines, Role.PREFILL, 0, 12) > 1 == most_wanted(lines, Role.PREFILL, 25, 60)
    assert most_wanted(lines, Role.DECODE, 20, 60) > most_wanted(lines, Role.DECODE, 0, 12)


def test_a_sleeper_wakes_sooner_than_another_starts() -> None:
    startup = StartupSpec({SLEEPER: StartPhases(post_s=0.05), DISK: StartPhases(boot_s=2.0)})
    fleet = spec(startup=startup, asleep_max=2, prices=Prices(1.0, 0.5))
    asked = jobs(120)
    outcome, lines = run(asked, fleet, policy((0.0, 2, 0), (4.0, 1, 1), (8.0, 2, 0)))
    assert complete(outcome, asked)
    told = kinds(lines, Launch, Sleep, Wake)
    assert [kind for _, kind, _ in told] == ["Launch", "Launch", "Sleep", "Wake"]
    assert outcome.usage.asleep_s == pytest.approx(told[3][0] - told[2][0], abs=0.3)
    cost = (outcome.usage.awake_s + 0.5 * outcome.usage.asleep_s) / 3600
    assert outcome.usage.cost == pytest.approx(cost)


def test_a_start_that_hangs_is_given_up_and_another_source_tried() -> None:
    startup = StartupSpec({PEER: StartPhases(boot_s=0.2), DISK: StartPhases(boot_s=1.0)})
    fleet = spec(startup=startup, sources=(PEER, DISK), start_timeout_s=2.0, hanging_starts=frozenset({1}))
    asked = jobs(80)
    outcome, lines = run(asked, fleet, policy((1.5, 2, 0)))
    assert complete(outcome, asked)
    assert [each.source for each in commands(lines, Launch)] == [DISK, PEER, DISK]
    stopped = commands(lines, Stop)[0]
    assert (stopped.instance_id, stopped.reason.why) == (1, Why.START_LATE)


def test_a_dry_run_says_what_it_would_do_and_does_nothing() -> None:
    asked = jobs(30)
    outcome, lines = run(asked, spec(is_dry=True), policy((1.0, 4, 0), (2.0, 3, 0)))
    assert complete(outcome, asked)
    assert [(each.want, each.is_proposal) for each in commands(lines, Resize)] == [(4, True), (3, True)]
    assert len(commands(lines, Launch)) == 1
    assert outcome.scale_events == 0


def test_what_is_lent_for_less_dies_and_is_replaced() -> None:
    asked = jobs(200)
    outcome, lines = run(asked, spec(loss_per_hour=1200.0), policy((0.0, 3, 0)))
    assert complete(outcome, asked)
    assert len(commands(lines, Launch)) > 3


@st.composite
def scripts(draw: st.DrawFn) -> list[tuple[float, int, int]]:
    instants = sorted(draw(st.lists(st.integers(0, 160), max_size=12, unique=True)))
    return [(at / 16, draw(st.integers(0, 7)), draw(st.integers(0, 3))) for at in instants]


@given(
    script=scripts(),
    shape=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 200), st.integers(1, 150)), min_size=1, max_size=40),
    least=st.integers(0, 2),
    losses=st.lists(st.integers(0, 160), max_size=3),
    drains=st.lists(st.integers(0, 160), max_size=3),
    hanging=st.frozensets(st.integers(0, 6), max_size=2),
    moves=st.booleans(),
    is_chained=st.booleans(),
    seed=st.integers(0, 3),
)
@settings(deadline=None)
def test_any_change_of_size(
    *,
    script: list[tuple[float, int, int]],
    shape: list[tuple[int, int, int]],
    least: int,
    losses: list[int],
    drains: list[int],
    hanging: frozenset[int],
    moves: bool,
    is_chained: bool,
    seed: int,
) -> None:
    """Starts that hang, instances that die or are drained by hand, decisions that are taken back."""
    instants = itertools.accumulate(pause / 32 for pause, _, _ in shape)
    asked = [Job(at_s, prompt, answer, "loose") for at_s, (_, prompt, answer) in zip(instants, shape, strict=True)]
    phases = {PEER: StartPhases(0.05, 0.1, 0.3, 0.05), DISK: StartPhases(0.1, 0.2, 0.6, 0.1), SLEEPER: StartPhases()}
    fleet = spec(
        least,
        5,
        StartupSpec(phases, is_chained=is_chained),
        sources=(PEER, DISK),
        asleep_max=2,
        start_timeout_s=6.0,
        losses_s=tuple(at / 16 for at in losses),
        drains_s=tuple(at / 16 for at in drains),
        hanging_starts=hanging,
    )
    outcome, lines = run(asked, fleet, policy(*script, moves=moves), seed)
    assert complete(outcome, asked)
    assert outcome.usage.awake_s == pytest.approx(integral_s(lines, outcome), abs=1e-6)
    for kind in (Retain, Wake, Sleep, Drain):
        if commands(lines, kind):
            event(kind.__name__)
