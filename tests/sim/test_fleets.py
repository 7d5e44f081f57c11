"""Small fleets with roles and moves: everyone ends, with the right answer, whatever dies, is slow, or is full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from helpers.builders import H100_8B, SIMPLE
from hyperflexis.core import recent
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Abandon, AssignRole, Command, Migrate, Reason, Stay, Why
from hyperflexis.core.control import STANDING_MAX_S, Policy
from hyperflexis.core.dispatch import Placement
from hyperflexis.core.events import Event, InstanceLost, InstanceReported
from hyperflexis.core.instance import Capacity, Instance, Role
from hyperflexis.core.request import Request
from hyperflexis.core.roles import GrowthPlanner, PlannerRules, RoleChange
from hyperflexis.policies import create
from hyperflexis.sim.fabric import FabricSpec
from hyperflexis.sim.job import Job
from hyperflexis.sim.outcome import Outcome
from hyperflexis.sim.simulation import FleetSpec, Simulation
from hyperflexis.sim.startup import StartupSpec
from sim.test_simulation import CLASSES, same

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED


@pytest.fixture(autouse=True, scope="module")
def _knows_soon() -> Iterator[None]:
    """What is asked for is known at once, so that roles are planned in tests as short as these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recent, "FIRST", 3.0)
        patch.setattr(recent, "ENOUGH", 6.0)
        patch.setattr(recent, "SHORTEST_S", 0.3)
        patch.setattr(recent, "SAMPLE_S", 0.2)
        yield


KV_TOKEN_BYTES = 131_072
Line = tuple[float, Event, list[Command]]


def run(
    jobs: Sequence[Job], fleet: FleetSpec, policy: Policy | None = None, seed: int = 0
) -> tuple[Outcome, list[Line]]:
    """Every invariant is checked after every event, and in the end nothing may be left anywhere."""
    lines: list[Line] = []
    policy = policy or create("hyperflexis:roles=fixed", 64)
    simulation = Simulation(
        jobs,
        CLASSES,
        policy,
        fleet,
        seed=seed,
        observe=lambda now, said, commands: lines.append((now, said, list(commands))),
        checks=True,
    )
    outcome = simulation.run()
    for instance in simulation._instances.values():
        scheduler = instance.scheduler
        scheduler.check()
        assert scheduler.is_idle(), f"i{instance.id} is left with {scheduler!r}"
        assert scheduler.pool.blocks_free + len(scheduler.pool._cached) >= scheduler.pool.blocks
        assert not scheduler.moves.expected
        assert not instance.moves._takings
    assert not simulation.control.migrations.under_way
    for known in simulation.control.cluster.instances.values():
        assert (known.requests, known.planned_blocks, len(known.standing)) == (0, 0, 0)
    return outcome, lines


def complete(outcome: Outcome, jobs: Sequence[Job]) -> bool:
    return bool(outcome.finished.all()) and outcome.output_tokens.tolist() == [job.output_tokens for job in jobs]


def commands(lines: list[Line], kind: type) -> list[Any]:
    return [command for _, _, said in lines for command in said if isinstance(command, kind)]


def events(lines: list[Line], kind: type) -> list[Any]:
    return [said for _, said, _ in lines if isinstance(said, kind)]


def traffic(seed: int, count: int, rate_s: float, prompts: tuple[int, int], answers: tuple[int, int]) -> list[Job]:
    random = np.random.default_rng(seed)
    at_s = np.cumsum(random.exponential(1 / rate_s, count))
    names = sorted(CLASSES)
    return [
        Job(
            float(at_s[number]),
            int(random.integers(*prompts)),
            int(random.integers(*answers)),
            names[int(random.integers(3))],
            tuple(b"%d/%d" % (number % 5, depth) for depth in range(int(random.integers(3)))),
        )
        for number in range(count)
    ]


def fleet(*roles: Role, blocks: int = 60, block_tokens: int = 4, seqs_max: int = 8, **fields: Any) -> FleetSpec:
    made = {"latency": SIMPLE, "roles": roles, "max_tokens": 40, **fields}
    return FleetSpec(len(roles), Capacity(blocks, block_tokens, seqs_max, KV_TOKEN_BYTES), **made)


@st.composite
def fleets(draw: st.DrawFn) -> FleetSpec:
    """Blocks for little more than one request, or for several; ways that are slower than decodes."""
    roles = [P, M, *draw(st.lists(st.sampled_from([P, P, D, M]), max_size=2))]
    return fleet(
        *roles,
        blocks=draw(st.sampled_from([24, 30, 80])),
        seqs_max=draw(st.sampled_from([2, 4, 16])),
        latency=draw(st.sampled_from([SIMPLE, H100_8B])),
        losses_s=tuple(draw(st.lists(st.floats(0.05, 4.0), max_size=4))),
        drains_s=tuple(draw(st.lists(st.floats(0.05, 4.0), max_size=2))),
        startup=StartupSpec.constant(draw(st.sampled_from([0.0, 0.3]))),
        fabric=FabricSpec(
            bytes_s=draw(st.sampled_from([1e7, 1e9, 40e9])),
            slow=tuple(draw(st.sets(st.integers(0, 3), max_size=2))),
            link_s=draw(st.sampled_from([0.0, 0.01, 0.5])),
        ),
    )


HASTY = PlannerRules(dwell_s=0.5, near=3.0, error=0.0)


def policy_of(roles: str) -> Policy:
    made = create(f"hyperflexis:roles={'fixed' if roles == 'fixed' else 'planned'}", 64)
    return replace(made, planner=GrowthPlanner(HASTY)) if roles == "hasty" else made


@settings(max_examples=25)
@given(fleets(), st.sampled_from(["fixed", "planned", "hasty"]), st.integers(0, 99), st.sampled_from([20.0, 60.0]))
def test_everyone_ends_with_the_right_answer(spec: FleetSpec, roles: str, seed: int, rate_s: float) -> None:
    jobs = traffic(seed, 60, rate_s, (1, 50), (1, 40))
    outcome, lines = run(jobs, spec, policy_of(roles), seed)
    lost_often = len(spec.losses_s) >= 4
    assert lost_often or complete(outcome, jobs)
    assert outcome.rejected.sum() + outcome.finished.sum() == len(jobs)
    for kind in (Migrate, Stay, Abandon, AssignRole):
        if commands(lines, kind):
            event(kind.__name__)


@settings(max_examples=15)
@given(fleets(), st.sampled_from(["fixed", "hasty"]), st.integers(0, 99))
def test_running_through_changes_nothing_where_requests_move(spec: FleetSpec, roles: str, seed: int) -> None:
    jobs = traffic(seed, 40, 30.0, (1, 50), (1, 40))
    at_once, heard = run(jobs, spec, policy_of(roles))
    one_by_one, heard_stepping = run(jobs, replace(spec, runs_through=False), policy_of(roles))
    assert same(at_once, one_by_one)
    assert heard == heard_stepping
    again, heard_again = run(jobs, spec, policy_of(roles))
    assert same(at_once, again)
    assert heard == heard_again


@pytest.mark.parametrize("bytes_s", [1e7, 40e9])
def test_load_that_fills_all_instances_ends(bytes_s: float) -> None:
    """Both ends of moves are full: nobody may wait for blocks that wait for it."""
    spec = fleet(P, M, blocks=24, seqs_max=4, fabric=FabricSpec(bytes_s=bytes_s))
    jobs = traffic(3, 150, 40.0, (10, 56), (1, 40))
    outcome, lines = run(jobs, spec)
    assert complete(outcome, jobs)
    assert len(commands(lines, Migrate)) > 10


def test_instance_behind_a_slow_way_is_chosen_less_and_everyone_ends() -> None:
    """Copies to one of two that decode take ten times as long, a second and a half, which nobody says beforehand."""
    spec = fleet(P, D, D, blocks=2000, seqs_max=32, fabric=FabricSpec(bytes_s=2e8))
    jobs = traffic(4, 150, 4.0, (150, 300), (10, 40))

    def taken(slow: tuple[int, ...]) -> list[int]:
        outcome, lines = run(jobs, replace(spec, fabric=replace(spec.fabric, slow=slow)))
        assert complete(outcome, jobs)
        targets = [each.target_id for each in commands(lines, Migrate)]
        return [targets.count(number) for number in (1, 2)]

    alike, slowed = taken(()), taken((1,))
    assert slowed[0] < 0.6 * alike[0]


def test_what_no_instance_takes_goes_on_where_it_stands() -> None:
    """The other instance is full for longer than anyone stands still, and prefills wait."""

    @dataclass
    class Never:
        def choose(self, request: Request, source: Instance, *rest: object) -> Placement | None:
            return None

    spec = fleet(P, M)
    made = replace(create("hyperflexis:roles=fixed", 64), binder=Never())
    outcome, lines = run([Job(0.0, 20, 10, "none")], spec, made)
    (stay,) = commands(lines, Stay)
    assert (stay.instance_id, stay.reason.why) == (0, Why.NO_DECODE)
    assert STANDING_MAX_S < outcome.e2e_s[0] < STANDING_MAX_S + 1.0
    assert outcome.output_tokens.tolist() == [10]


def first(lines: list[Line], kind: type, among: str) -> float:
    """The instant of the first event, or of the first command, of a kind."""
    for now, said, ordered in lines:
        if isinstance(said, kind) if among == "events" else any(isinstance(each, kind) for each in ordered):
            return now
    raise AssertionError(f"there is no {kind.__name__}")


def arrival_s(lines: list[Line]) -> float:
    return next(now for now, said, _ in lines if isinstance(said, InstanceReported) and said.arrived)


ONE = [Job(1.0, 40, 30, "none")]
"""Prefilled by i1 (the second one), decoded by i0, which dies first."""


def losing(at_s: float, *roles: Role, **fields: Any) -> tuple[Outcome, list[Line]]:
    return run(ONE, fleet(*roles, losses_s=(at_s,), **fields))


@pytest.mark.parametrize("roles", [(M, P), (P, M)])
@pytest.mark.parametrize("bytes_s", [2e8, 40e9])
def test_instance_that_dies_at_any_moment_of_a_move_loses_nothing(roles: tuple[Role, Role], bytes_s: float) -> None:
    """Target or source, before, between and after: adopted and not told yet, during the prefill, during the copies."""
    ways = FabricSpec(bytes_s=bytes_s)
    _, lines = run(ONE, fleet(*roles, fabric=ways))
    moved_s, arrived_s = first(lines, Migrate, "commands"), arrival_s(lines)
    instants = np.linspace(moved_s - 0.005, arrived_s + 0.03, 60)
    for at_s in instants:
        outcome, said = losing(float(at_s), *roles, fabric=ways)
        assert complete(outcome, ONE), at_s
        assert len(events(said, InstanceLost)) == 1


def test_target_that_dies_between_adopting_and_reporting_has_never_had_it() -> None:
    _, lines = run(ONE, fleet(M, P))
    arrived_s = arrival_s(lines)
    outcome, lines = losing(arrived_s - 0.001, M, P)
    assert not any(said.arrived for said in events(lines, InstanceReported) if said.instance_id == 0)
    assert outcome.output_tokens.tolist() == [30]
    lost_s = first(lines, InstanceLost, "events")
    assert outcome.ttft_s[0] < lost_s - 1.0
    assert outcome.e2e_s[0] + 1.0 > lost_s


def test_target_of_a_request_that_is_still_prefilled_may_die() -> None:
    """Bound early, and bound again or not when its first token is out."""
    jobs = [Job(1.0, 200, 10, "none")]
    spec = fleet(M, P)
    _, lines = run(jobs, spec)
    (early, *_) = commands(lines, Migrate)
    assert early.reason.why is Why.PREFILLING
    moved_s = first(lines, Migrate, "commands")
    outcome, lines = run(jobs, replace(spec, losses_s=(moved_s + 0.03,)))
    assert complete(outcome, jobs)
    assert outcome.ttft_s[0] + 1.0 > moved_s + 0.03, "it was prefilled all the time"


def test_role_that_changes_lets_what_stands_still_go_on() -> None:
    @dataclass
    class Once:
        """All instances are mixed at half past one."""

        def plan(self, cluster: Cluster, now: float) -> list[RoleChange]:
            if now < 1.5:
                return []
            return [RoleChange(each, M, Reason(Why.BALANCES)) for each in cluster.ready if each.role is not M]

    @dataclass
    class Never:
        def choose(self, request: Request, source: Instance, *rest: object) -> Placement | None:
            return None

    made = replace(create("hyperflexis:roles=fixed", 64), binder=Never(), planner=Once())
    outcome, lines = run(ONE, fleet(P, M), made)
    assert complete(outcome, ONE)
    assert outcome.role_changes == 1
    (stay,) = commands(lines, Stay)
    assert stay.reason.why is Why.BALANCES
    assert outcome.e2e_s[0] < STANDING_MAX_S
