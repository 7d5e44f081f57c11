"""Whole simulations: nobody is lost or served twice whatever dies, and what runs fast is what runs step by step."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.builders import H100_8B, SIMPLE, capacity
from helpers.world import relabelled
from hyperflexis.core.commands import Command, Conclude, Dispatch, Launch, Reject, Why
from hyperflexis.core.control import TRIES_MAX, ControlPlane, Policy
from hyperflexis.core.dispatch import SloDispatcher
from hyperflexis.core.events import Event, InstanceReady, RequestArrived
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.prefix import block_hashes
from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.core.step import StepRules
from hyperflexis.policies import create
from hyperflexis.sim.errors import InputError
from hyperflexis.sim.job import Job
from hyperflexis.sim.kernel import HORIZON_S
from hyperflexis.sim.outcome import Outcome
from hyperflexis.sim.simulation import FleetSpec, Simulation, simulate
from hyperflexis.sim.startup import StartupSpec

CLASSES = {
    "strict": ServiceClass("strict", Slo(0.1, 0.03), priority=1),
    "loose": ServiceClass("loose", Slo(5.0, 0.2)),
    "none": ServiceClass("none"),
}
Line = tuple[float, Event, list[Command]]


def spec(instances: int = 1, **fields: object) -> FleetSpec:
    return FleetSpec(instances, **{"capacity": capacity(), "latency": SIMPLE, **fields})


def run(
    jobs: list[Job], fleet: FleetSpec, policy: str = "hyperflexis", **options: object
) -> tuple[Outcome, list[Line]]:
    """The outcome, and all that was said."""
    lines: list[Line] = []
    outcome = simulate(
        jobs,
        CLASSES,
        create(policy, 64),
        fleet,
        observe=lambda now, event, commands: lines.append((now, event, list(commands))),
        checks=True,
        **options,
    )
    return outcome, lines


def same(one: Outcome, other: Outcome) -> bool:
    """To the last bit; times that there are none of are alike."""
    pairs = [(getattr(one, each.name), getattr(other, each.name)) for each in dataclasses.fields(Outcome)]
    return all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") if isinstance(a, np.ndarray) else a == b for a, b in pairs
    )


@st.composite
def workloads(draw: st.DrawFn) -> list[Job]:
    jobs = []
    instants = draw(st.lists(st.floats(0.0, 2.0) | st.just(0.0), min_size=1, max_size=10))
    for number, at_s in enumerate(sorted(instants)):
        prompt, shared = draw(st.integers(1, 60)), draw(st.integers(0, 60))
        text = [*range(min(shared, prompt)), *(1000 * (number + 1) + i for i in range(prompt - shared))]
        hashes = tuple(block_hashes(text, 4)) if shared else ()
        answer, name = draw(st.integers(1, 100)), draw(st.sampled_from(sorted(CLASSES)))
        jobs.append(Job(at_s, prompt, answer, name, hashes))
    return jobs


FLEETS = st.builds(
    spec,
    instances=st.integers(1, 3),
    capacity=st.builds(capacity, st.integers(40, 80), st.just(4), st.integers(1, 6)),
    truth=st.none() | st.just(H100_8B),
    noise=st.sampled_from([0.0, 0.0, 0.2]),
    losses_s=st.lists(st.floats(0.0, 3.0), max_size=6).map(tuple),
    startup=st.sampled_from([0.0, 0.3]).map(StartupSpec.constant),
    max_tokens=st.sampled_from([100, 2000]),
)
POLICIES = st.sampled_from(["hyperflexis", "round_robin"])


@settings(max_examples=80)
@given(workloads(), FLEETS, POLICIES)
def test_nobody_is_lost_or_served_twice(jobs: list[Job], fleet: FleetSpec, policy: str) -> None:
    outcome, lines = run(jobs, fleet, policy)
    arrived = [event.request_id for _, event, _ in lines if isinstance(event, RequestArrived)]
    assert arrived == list(range(len(jobs)))
    ends = [command for _, _, commands in lines for command in commands if isinstance(command, Conclude | Reject)]
    assert sorted(end.request_id for end in ends) == arrived
    for end in ends:
        row = end.request_id
        if isinstance(end, Reject):
            assert (outcome.rejected[row], outcome.finished[row], outcome.attained[row]) == (True, False, False)
            assert end.reason.why in {Why.LOST_TOO_OFTEN, Why.START_FAILS}
            assert len(fleet.losses_s) >= TRIES_MAX
        else:
            assert (outcome.rejected[row], outcome.finished[row]) == (False, True)
            assert outcome.output_tokens[row] == jobs[row].output_tokens
            assert outcome.ttft_s[row] <= outcome.e2e_s[row]
            assert math.isnan(outcome.tpot_s[row]) == (jobs[row].output_tokens == 1)


@settings(max_examples=60)
@given(workloads(), FLEETS, POLICIES)
def test_running_through_changes_nothing(jobs: list[Job], fleet: FleetSpec, policy: str) -> None:
    at_once, heard = run(jobs, replace(fleet, noise=0.0), policy)
    one_by_one, heard_stepping = run(jobs, replace(fleet, noise=0.0, runs_through=False), policy)
    assert heard == heard_stepping
    assert same(at_once, one_by_one)


@settings(max_examples=40)
@given(workloads(), FLEETS, POLICIES, st.integers(0, 5))
def test_equal_seeds_give_equal_outcomes(jobs: list[Job], fleet: FleetSpec, policy: str, seed: int) -> None:
    (one, heard), (other, heard_again) = run(jobs, fleet, policy, seed=seed), run(jobs, fleet, policy, seed=seed)
    assert heard == heard_again
    assert same(one, other)


@settings(max_examples=40)
@given(workloads(), FLEETS, POLICIES, st.integers(2, 9))
def test_ids_are_only_labels(jobs: list[Job], fleet: FleetSpec, policy: str, stretch: int) -> None:
    """The control plane that hears the same of requests with other numbers says the same of them."""
    _, lines = run(jobs, fleet, policy)
    twin = ControlPlane(create(policy, 64), FleetBounds.fixed(fleet.instances), requests_max=10_000_000)
    for now, event, commands in lines:
        renamed = [relabelled(command, stretch) for command in commands]
        assert twin.handle(relabelled(event, stretch), now) == renamed


@settings(max_examples=40)
@given(workloads(), FLEETS)
def test_held_requests_run_as_soon_as_an_instance_appears(jobs: list[Job], fleet: FleetSpec) -> None:
    held: set[int] = set()
    for _, event, commands in run(jobs, fleet)[1]:
        dispatched = {command.request_id for command in commands if isinstance(command, Dispatch)}
        if isinstance(event, InstanceReady):
            assert held <= dispatched
        held -= dispatched | {command.request_id for command in commands if isinstance(command, Reject)}
        held |= {command.request_id for command in commands if type(command).__name__ == "Hold"} - dispatched


def test_one_request_takes_what_the_model_says() -> None:
    outcome, _ = run([Job(5.0, 20, 4, "loose")], spec())
    assert outcome.ttft_s[0] == pytest.approx(0.030)
    assert outcome.tpot_s[0] == pytest.approx(0.011)
    assert outcome.e2e_s[0] == pytest.approx(0.063)
    assert outcome.sim_seconds == pytest.approx(0.063)
    assert (outcome.attained.tolist(), outcome.output_tokens.tolist()) == ([True], [4])


def test_truth_may_differ_from_what_is_predicted() -> None:
    outcome, lines = run([Job(0.0, 20, 1, "loose")], spec(truth=replace(SIMPLE, prefill_base_s=0.02)))
    assert outcome.ttft_s[0] == pytest.approx(0.040)
    (end,) = [command for _, _, commands in lines for command in commands if isinstance(command, Conclude)]
    assert end.verdict is not None
    assert end.verdict.timeline.predicted_ttft_s == pytest.approx(0.030)


def test_requests_wait_for_an_instance_to_start() -> None:
    outcome, _ = run([Job(1.0, 20, 1, "loose")], spec(startup=StartupSpec.constant(3.0)))
    assert outcome.ttft_s[0] == pytest.approx(2.030)


def test_lost_instance_costs_time_and_no_token() -> None:
    outcome, lines = run([Job(1.0, 20, 30, "none")], spec(startup=StartupSpec.constant(1.0), losses_s=(1.1,)))
    assert (outcome.output_tokens.tolist(), outcome.finished.tolist(), outcome.migrations) == ([30], [True], 1)
    launched = [c.instance_id for _, _, commands in lines for c in commands if isinstance(c, Launch)]
    assert launched == [0, 1]
    assert outcome.ttft_s[0] == pytest.approx(0.030), "its client had the first token already"
    assert outcome.e2e_s[0] > 1.1


def test_loss_without_an_instance_is_no_loss() -> None:
    outcome, _ = run([Job(1.0, 20, 3, "none")], spec(losses_s=(0.1, 0.1, 0.1)))
    assert outcome.finished.tolist() == [True]


def test_follow_up_comes_after_the_answer_before_it() -> None:
    def think(ended_s: float) -> Job:
        return Job(ended_s + 2.0, 40, 5, "loose")

    outcome, _ = run([Job(0.0, 20, 4, "loose", follow_up=think), Job(1.0, 20, 4, "strict")], spec())
    assert outcome.arrived_s.tolist() == pytest.approx([0.0, 1.0, 2.063])
    assert outcome.finished.all()
    assert outcome.output_tokens.tolist() == [4, 4, 5]


def test_seed_is_of_the_noise_alone() -> None:
    jobs = [Job(0.1 * number, 20, 10, "loose") for number in range(5)]
    assert same(run(jobs, spec(2), seed=1)[0], run(jobs, spec(2), seed=2)[0])
    noisy = [run(jobs, spec(2, noise=0.1), seed=seed)[0] for seed in (1, 2)]
    assert not same(*noisy)


def test_unknown_class_is_the_callers_error() -> None:
    with pytest.raises(InputError, match="no service class 'vip'"):
        run([Job(0.0, 20, 1, "vip")], spec())


def test_request_that_no_instance_could_hold_is_the_callers_error() -> None:
    fleet = spec(capacity=capacity(blocks=5, block_tokens=4))
    assert run([Job(0.0, 15, 5, "none")], fleet)[0].finished.all()
    with pytest.raises(InputError, match="21 tokens cannot be held by an instance of 20"):
        run([Job(0.0, 15, 6, "none")], fleet)


@pytest.mark.parametrize("at_s", [HORIZON_S + 1, HORIZON_S - 0.01])
def test_what_would_happen_beyond_the_horizon_is_refused_not_left_out(at_s: float) -> None:
    with pytest.raises(InputError, match="a simulation reaches 262144 s"):
        run([Job(0.0, 20, 1, "none"), Job(at_s, 20, 10, "none")], spec())


def test_lost_request_goes_on_after_the_tokens_that_its_client_has() -> None:
    """Steps that had ended count, though nobody had heard of them yet; the one that ran does not."""
    fleet = spec(losses_s=(1.0 + 0.030 + 7.5 * 0.011,))
    outcome, _ = run([Job(1.0, 20, 40, "none")], fleet)
    assert outcome.output_tokens.tolist() == [40]
    restarted_s = 1.0 + 0.030 + 7.5 * 0.011
    prefill_s = 0.010 + (20 + 8) * 0.001
    assert outcome.e2e_s[0] == pytest.approx(restarted_s - 1.0 + prefill_s + (40 - 9) * 0.011)


def test_request_that_rather_hears_no_is_refused() -> None:
    picky = {"picky": ServiceClass("picky", Slo(ttft_s=0.04), refuses_late=True)}
    jobs = [Job(0.0, 20, 5, "picky"), Job(0.001, 20, 5, "picky"), Job(1.0, 20, 5, "picky")]
    outcome = simulate(jobs, picky, create("hyperflexis", 64), spec(), checks=True)
    assert outcome.rejected.tolist() == [False, True, False]
    assert outcome.finished.tolist() == [True, False, True]


def test_flood_of_important_work_cannot_starve_the_rest_for_longer_than_stated() -> None:
    """The flood takes nearly all that there is, and could all be in time; what cannot is late, but not for ever."""
    rules = StepRules(prefill_tokens_max=64, prefill_tokens_floor=8, starvation_s=5.0)
    classes = {
        "flood": ServiceClass("flood", Slo(ttft_s=0.5), priority=1),
        "poor": ServiceClass("poor", Slo(ttft_s=1.0)),
    }
    flood = [Job(0.0705 * number, 60, 1, "flood") for number in range(400)]
    jobs = sorted([*flood, Job(1.0, 1500, 1, "poor")], key=lambda job: job.at_s)
    fleet = spec(capacity=capacity(blocks=1000))
    outcome = simulate(jobs, classes, Policy("ours", SloDispatcher(), rules), fleet, checks=True)
    (poor_s,) = outcome.ttft_s[outcome.service_class == 1]
    longest_step_s = 0.010 + 0.064
    steps = math.ceil(1500 / rules.floor) + 1
    assert 1.0 + rules.starvation_s < poor_s <= 1.0 + rules.starvation_s + steps * longest_step_s


def test_strict_and_loose_work_come_apart_again() -> None:
    """However they began: where it helps, strict work keeps to fewer instances than there are after a while."""
    classes = {
        "strict": ServiceClass("strict", Slo(ttft_s=0.5, tpot_s=0.02)),
        "loose": ServiceClass("loose", Slo(ttft_s=0.2, tpot_s=0.2)),
    }
    random = np.random.default_rng(1)
    mixed = [Job(0.0, 300, 200, name) for name in ("strict", "loose") for _ in range(12)]
    arrivals = np.cumsum(random.exponential(1 / 60, 2400))
    jobs = mixed + [
        Job(float(at_s), *((200, 100) if number % 4 == 0 else (2000, 60)), ("strict" if number % 4 == 0 else "loose"))
        for number, at_s in enumerate(arrivals)
    ]
    bound: list[tuple[float, int]] = []

    def look(now: float, event: Event, commands: list[Command]) -> None:
        ready = simulation.control.cluster.ready
        bound.append((now, sum(each.strictest_pace_s() <= 0.02 for each in ready)))

    fleet = FleetSpec(4, capacity(20_000, 16, 256), H100_8B)
    simulation = Simulation(jobs, classes, create("hyperflexis", 2048), fleet, observe=look)
    simulation.run()
    assert max(count for now, count in bound if now < 1.0) == 4
    later = [count for now, count in bound if 20.0 < now < 35.0]
    assert np.mean(later) < 3.0
