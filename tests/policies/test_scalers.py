"""What holds for every scaler, ours and the rivals'."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.builders import SIMPLE, capacity, decode, place, request, slo
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Command
from hyperflexis.core.events import Event
from hyperflexis.core.fleet import FleetBounds, Range
from hyperflexis.core.instance import InstanceState, Role
from hyperflexis.core.sizing import AWAKE, Sizing
from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.policies import POLICIES, create
from hyperflexis.sim.job import Job
from hyperflexis.sim.outcome import Outcome
from hyperflexis.sim.simulation import FleetSpec, Simulation
from hyperflexis.sim.startup import StartupSpec
from policies.sizes import Asked
from sim.test_simulation import same

ELASTIC = ("hyperflexis", *(name for name in POLICIES if name != "hyperflexis" and create(name, 64).scaler is not None))
CLASSES = {"chat": ServiceClass("chat", Slo(1.0, 0.05)), "none": ServiceClass("none")}
JOBS = st.lists(
    st.builds(
        Job,
        st.floats(0.0, 20.0),
        st.integers(1, 400),
        st.integers(1, 60),
        st.sampled_from(sorted(CLASSES)),
        st.just(()),
        st.none(),
    ),
    min_size=1,
    max_size=40,
).map(lambda jobs: sorted(jobs, key=lambda job: job.at_s))


def run(
    jobs: Sequence[Job], name: str, least: int, most: int, *, checks: bool = True
) -> tuple[Outcome, list[tuple[float, int]]]:
    """Every invariant is checked after every event, or none. Also gives how many instances were awake when."""
    awake: list[tuple[float, int]] = []
    startup = StartupSpec.constant(1.0)
    bounds = FleetBounds({Role.MIXED: Range(least, most)}, startup_s=startup.seconds())
    fleet = FleetSpec(1, capacity(200, 4, 8), SIMPLE, max_tokens=64, startup=startup, bounds=bounds)

    def watch(now: float, event: Event, commands: Sequence[Command]) -> None:
        awake.append((now, simulation.control.sizing.count(AWAKE)))

    simulation = Simulation(jobs, CLASSES, create(name, 64), fleet, observe=watch, checks=checks)
    return simulation.run(), awake


def test_all_of_them_are_known() -> None:
    assert set(ELASTIC) >= {
        "hyperflexis", "hfx_reactive", "dynamo_planner", "blitzscale", "tokenscale_scaler", "chiron", "kpa",
        "llm_d_saturation",
    }  # fmt: skip


@pytest.mark.parametrize("name", ELASTIC)
@given(jobs=JOBS, least=st.integers(0, 2), more=st.integers(1, 3))
def test_bounds_hold_and_everything_ends(name: str, jobs: list[Job], least: int, more: int) -> None:
    outcome, awake = run(jobs, name, least, least + more)
    assert outcome.finished.all()
    assert all(count <= least + more for _, count in awake)
    assert all(count >= least for _, count in awake)


@pytest.mark.parametrize("name", ELASTIC)
def test_the_same_again_is_the_same(name: str) -> None:
    jobs = [Job(0.2 * number, 100 + 37 * number % 200, 20, "chat") for number in range(30)]
    (one, sizes), (other, sizes_again) = run(jobs, name, 1, 6), run(jobs, name, 1, 6)
    assert same(one, other)
    assert sizes == sizes_again


@pytest.mark.parametrize("name", ELASTIC)
def test_no_traffic_ends_in_the_fewest(name: str) -> None:
    """After a crowd, one request that takes no time, long after."""
    crowd = [Job(0.02 * number, 200, 20, "chat") for number in range(100)]
    quiet = [Job(30.0 * number, 1, 2, "none") for number in range(1, 30)]
    if name == "llm_d_saturation":  # One in two minutes.
        name += ":pace=12"
    _, awake = run([*crowd, *quiet], name, 1, 6, checks=False)
    assert max(count for _, count in awake) > 1
    assert awake[-1][1] == 1


@pytest.mark.parametrize("name", ELASTIC)
def test_nothing_is_wanted_without_anything_known(name: str) -> None:
    """Without a ready instance there is nothing to look at: as many as before; one where somebody waits."""
    scaler = create(name, 64).scaler
    assert scaler is not None
    among = Cluster()
    sizing = Sizing(FleetBounds({Role.MIXED: Range(0, 3)}), among)
    assert all(scaler.plan(among, sizing, now) is None for now in (0.0, 10.0, 1000.0))
    newcomer = request()
    among.requests[newcomer.id] = newcomer
    wanted = scaler.plan(among, sizing, 1000.2)
    assert wanted is not None
    assert wanted.counts == {Role.MIXED: 1}


@pytest.mark.parametrize("name", ELASTIC)
def test_asking_twice_changes_nothing(name: str) -> None:
    """Decisions are timed by the clock."""
    asked = Asked(name)
    for number, each in enumerate(asked.cluster.ready):
        for index in range(10):
            number_ = 100 * number + index
            decode(request(number_, 50, 50, slo=slo(0.3, 0.03)), each)
            place(request(50 + number_, 200, 50, slo=slo(0.3, 0.03)), each)
    for now in (0.0, 1.0, 5.0, 61.0, 190.0, 400.0):
        first = asked.at(now)
        assert asked.at(now, now, now) == first


def test_none_of_the_rivals_moves_what_runs() -> None:
    assert all(create(name, 64).relief is None for name in ELASTIC)


@pytest.mark.parametrize("name", ELASTIC)
def test_an_instance_that_is_lost_is_replaced(name: str) -> None:
    asked = Asked(name, instances=1, least=1)
    (only,) = asked.cluster.ready
    only.state = InstanceState.LOST
    del asked.cluster.instances[only.id]
    asked.cluster.note_ready()
    asked.at(0.0, 1.0)
    assert [type(command).__name__ for command in asked.sizing.grow(1.0)] == ["Launch"]
