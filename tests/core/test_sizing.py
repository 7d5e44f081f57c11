"""Who is started, from where, who is taken back, and who goes: one decision at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.builders import SIMPLE, capacity, request
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Command, Launch, Reason, Resize, Retain, Wake, Why
from hyperflexis.core.fleet import FleetBounds, Prices, Range
from hyperflexis.core.instance import Instance, InstanceState, InstanceStep, Role, StartSource
from hyperflexis.core.sizing import AVOIDED_S, SHRINK_S, Sizing, Wanted

M, P, D = Role.MIXED, Role.PREFILL, Role.DECODE
PEER, DISK, CACHE = StartSource.PEER, StartSource.DISK, StartSource.CACHE
WHY = Reason(Why.DEMAND)


class Fleet:
    """A cluster and its sizing."""

    def __init__(self, least: int = 0, most: int = 8, **bounds: Any) -> None:
        ranges = bounds.pop("ranges", {M: Range(least, most)})
        self.cluster = Cluster()
        self.sizing = Sizing(FleetBounds(ranges, **bounds), self.cluster)

    def want(self, count: int, *, asleep: int = 0, now: float = 0.0) -> list[Command]:
        said = self.sizing.want(Wanted({M: count}, WHY, asleep))
        self.sizing.note(now)
        return said

    def grow(self, now: float = 0.0) -> list[Command]:
        commands = self.sizing.grow(now)
        self.note(now)
        return commands

    def ready(self, instance_id: int, now: float = 0.0) -> Instance:
        instance = self.cluster.instances[instance_id]
        self.sizing.on_ready(instance, now)
        instance.become_ready(capacity(), SIMPLE, now)
        self.note(now)
        return instance

    def lose(self, instance_id: int, now: float = 0.0) -> None:
        instance = self.cluster.instances.pop(instance_id)
        self.sizing.on_lost(instance, now)
        self.note(now)

    def drain(self, instance: Instance, *, is_retainable: bool = True) -> None:
        instance.step(InstanceStep.DRAIN)
        instance.tenure.is_retainable = is_retainable
        self.note()

    def note(self, now: float = 0.0) -> None:
        self.cluster.note_ready()
        self.sizing.note(now)
        self.sizing.check()

    def grown(self, count: int, **bounds: Any) -> list[Instance]:
        """So many that are ready."""
        self.want(count)
        return [self.ready(each.instance_id) for each in self.grow() if isinstance(each, Launch)]


def launches(commands: list[Command]) -> list[tuple[int, StartSource, int | None]]:
    return [(each.instance_id, each.source, each.donor_id) for each in commands if isinstance(each, Launch)]


# More.


def test_the_fewest_are_launched_at_first_and_no_more_than_the_most_ever() -> None:
    fleet = Fleet(2, 3)
    assert launches(fleet.grow()) == [(0, DISK, None), (1, DISK, None)]
    fleet.want(99)
    assert len(fleet.grow()) == 1
    fleet.want(0)
    assert fleet.sizing.wanted == 2


def test_a_decision_is_told_once_and_with_its_reason() -> None:
    fleet = Fleet()
    assert fleet.want(3) == [Resize(M, 0, 3, WHY)]
    assert fleet.want(3) == []


def test_what_drains_is_taken_back_before_anything_starts() -> None:
    fleet = Fleet()
    first, second, third = fleet.grown(3)
    fleet.want(1)
    second.place(request(7), 100, 0.0)
    for each in (first, second):
        fleet.drain(each)
    fleet.want(2)
    assert fleet.grow() == [Retain(second.id, WHY)]  # It has most to do: the other one is nearly gone.
    assert (first.state, second.state, third.state) == (
        InstanceState.DRAINING,
        InstanceState.READY,
        InstanceState.READY,
    )


def test_what_an_operator_drained_is_not_taken_back() -> None:
    fleet = Fleet()
    first, *_ = fleet.grown(2)
    fleet.drain(first, is_retainable=False)
    assert launches(fleet.grow()) == [(2, DISK, None)]


def test_what_drains_takes_up_room() -> None:
    fleet = Fleet(0, 2)
    first, *_ = fleet.grown(2)
    fleet.drain(first, is_retainable=False)
    assert fleet.grow() == []


def test_a_sleeper_is_woken_before_anything_starts() -> None:
    fleet = Fleet(asleep_max=2)
    first, *_ = fleet.grown(2)
    fleet.want(1, asleep=1)
    fleet.drain(first)
    assert fleet.sizing.may_sleep()
    first.step(InstanceStep.SLEEP)
    fleet.note()
    assert not fleet.sizing.may_sleep()
    fleet.want(3)
    woken, started = fleet.grow()
    assert isinstance(woken, Wake)
    assert woken.instance_id == first.id
    assert isinstance(started, Launch)
    assert first.tenure.source is StartSource.SLEEPER


def test_sleepers_that_nobody_wants_are_named() -> None:
    fleet = Fleet(asleep_max=2)
    first, second, _ = fleet.grown(3)
    fleet.want(1, asleep=2)
    for each in (first, second):
        fleet.drain(each)
        each.step(InstanceStep.SLEEP)
        fleet.note()
    assert fleet.sizing.needless_sleepers() == []
    fleet.want(1, asleep=1)
    assert fleet.sizing.needless_sleepers() == [second]


# From where.


def test_weights_come_from_the_peer_that_they_disturb_least() -> None:
    fleet = Fleet(sources=(PEER, DISK))
    assert launches(fleet.grown(2) and fleet.want(3) and fleet.grow()) == [(2, PEER, 0)]
    fleet.cluster.instances[0].place(request(5, prompt_tokens=500), 600, 0.0)
    fleet.want(4)
    assert launches(fleet.grow()) == [(3, PEER, 1)]


def test_without_a_live_peer_the_next_source_is_taken() -> None:
    fleet = Fleet(sources=(PEER, CACHE, DISK))
    fleet.want(1)
    assert launches(fleet.grow()) == [(0, CACHE, None)]


def test_a_source_that_fails_is_passed_over_and_the_longer_the_oftener() -> None:
    fleet = Fleet(sources=(PEER, DISK))
    fleet.grown(1)
    now, number = 0.0, 0
    for times in range(3):
        fleet.want(2)
        ((number, source, _),) = launches(fleet.grow(now))
        assert source is PEER
        fleet.lose(number, now)
        ((number, source, _),) = launches(fleet.grow(now))  # At once, for there is another one.
        assert source is DISK
        fleet.want(1)
        del fleet.cluster.instances[number]
        fleet.note(now)
        now += AVOIDED_S * 2**times
    fleet.want(2)
    ((number, source, _),) = launches(fleet.grow(now))
    fleet.ready(number, now)
    fleet.want(3)
    assert launches(fleet.grow(now))[0][1] is PEER


def test_the_last_source_is_tried_again_after_a_growing_pause_and_then_given_up() -> None:
    fleet = Fleet(1, 4, launch_attempts_max=3)
    now = 0.0
    for pause_s in (1.0, 2.0, 4.0):
        ((number, _, _),) = launches(fleet.grow(now))
        fleet.lose(number, now)
        assert launches(fleet.grow(now)) == []
        now += pause_s
    assert not fleet.sizing.is_startable()
    assert fleet.grow(now + 100) == []
    assert fleet.sizing.next_wakeup() is None


def test_starts_that_hang_are_late_once_their_time_is_over() -> None:
    fleet = Fleet(1, 2, start_timeout_s=30.0)
    fleet.grow(5.0)
    assert fleet.sizing.next_wakeup() == 35.0
    assert fleet.sizing.late(34.9) == []
    assert [each.id for each in fleet.sizing.late(35.0)] == [0]


def test_starts_are_learned_by_source() -> None:
    fleet = Fleet(sources=(PEER, DISK), startup_s={PEER: 3.0, DISK: 40.0})
    assert fleet.sizing.start_s() == 40.0
    fleet.want(1)
    fleet.grow(1.0)
    fleet.ready(0, 21.0)
    assert fleet.sizing.startup.seconds(DISK) == 30.0
    assert fleet.sizing.start_s() == 3.0


# Fewer.


def test_one_goes_at_a_time_and_the_one_with_least_to_do() -> None:
    fleet = Fleet()
    first, second, third = fleet.grown(3)
    first.place(request(1), 500, 0.0)
    third.place(request(2), 50, 0.0)
    fleet.want(1)
    gone = fleet.sizing.surplus(10.0)
    assert gone is second
    fleet.drain(second)
    assert fleet.sizing.surplus(10.0 + SHRINK_S / 2) is None
    assert fleet.sizing.surplus(10.0 + SHRINK_S) is third


def test_what_has_not_started_goes_first() -> None:
    fleet = Fleet()
    fleet.grown(1)
    fleet.want(3)
    fleet.grow(1.0)
    fleet.want(2)
    gone = fleet.sizing.surplus(2.0)
    assert gone is not None
    assert (gone.id, gone.state) == (2, InstanceState.STARTING)


def test_nobody_goes_while_nobody_is_too_many() -> None:
    fleet = Fleet(1)
    fleet.grown(2)
    assert fleet.sizing.surplus(1.0) is None


# Budget, roles, dry runs.


def test_budget_bounds_what_is_started_and_what_may_sleep() -> None:
    fleet = Fleet(1, 9, prices=Prices(2.0, 1.5), cost_per_hour_max=7.0, asleep_max=5)
    fleet.grown(9)
    assert len(fleet.cluster.instances) == 3
    fleet.want(3, asleep=5)
    assert not fleet.sizing.may_sleep()
    fleet.want(2, asleep=5)  # What is left of 7 pays for two that sleep.
    for _ in range(2):
        assert fleet.sizing.may_sleep()
        sleeper = fleet.cluster.ready[0]
        fleet.drain(sleeper)
        sleeper.step(InstanceStep.SLEEP)
        fleet.note()
    assert not fleet.sizing.may_sleep()


def test_budget_takes_from_the_role_that_has_most_above_its_least() -> None:
    fleet = Fleet(ranges={P: Range(1, 9), D: Range(2, 9)}, cost_per_hour_max=6.0)
    fleet.sizing.want(Wanted({P: 5, D: 4}, WHY))
    fleet.sizing.note(0.0)
    assert fleet.sizing.wanted == 6
    roles = [each.role for each in fleet.grow() if isinstance(each, Launch)]
    assert (roles.count(P), roles.count(D)) == (2, 4)


def test_roles_that_change_change_nothing_of_how_many_there_should_be() -> None:
    fleet = Fleet(2, 4)
    fleet.grow()
    for number in (0, 1):
        fleet.ready(number)
    fleet.cluster.instances[0].role = P
    assert fleet.grow() == []
    fleet.want(3)
    assert [each.role for each in fleet.grow() if isinstance(each, Launch)] == [M]
    fleet.want(2)
    assert fleet.sizing.surplus(9.0) is fleet.cluster.instances[2]


def test_what_is_launched_has_the_role_that_lacks() -> None:
    fleet = Fleet(ranges={P: Range(1, 4), M: Range(2, 4)})
    assert [each.role for each in fleet.grow() if isinstance(each, Launch)] == [P, M, M]
    fleet.lose(0)
    assert [each.role for each in fleet.grow(5.0) if isinstance(each, Launch)] == [P]


def test_who_goes_has_a_role_of_which_there_are_too_many() -> None:
    fleet = Fleet(ranges={P: Range(1, 4), D: Range(1, 4)})
    fleet.sizing.want(Wanted({P: 2, D: 2}, WHY))
    for each in fleet.grow():
        assert isinstance(each, Launch)
        fleet.ready(each.instance_id)
    fleet.sizing.want(Wanted({P: 2, D: 1}, WHY))
    gone = fleet.sizing.surplus(1.0)
    assert gone is not None
    assert gone.role is D


def test_a_dry_run_proposes_once_and_changes_nothing() -> None:
    fleet = Fleet(1, 4, is_dry=True)
    fleet.grow()
    assert fleet.want(3) == [Resize(M, 1, 3, WHY, is_proposal=True)]
    assert fleet.want(3) == []
    assert fleet.grow() == []
    assert fleet.sizing.wanted == 1


@given(
    wanted=st.lists(st.tuples(st.integers(-3, 20), st.integers(0, 6), st.booleans()), min_size=1, max_size=30),
    least=st.integers(0, 3),
    budget=st.sampled_from([math.inf, 3.5, 5.0]),
)
def test_never_beyond_bounds_and_budget(wanted: list[tuple[int, int, bool]], least: int, budget: float) -> None:
    fleet = Fleet(least, 6, asleep_max=2, cost_per_hour_max=budget, sources=(PEER, DISK))
    for step, (count, asleep, fails) in enumerate(wanted):
        now = float(step)
        fleet.want(count, asleep=asleep, now=now)
        fleet.grow(now)
        for each in list(fleet.cluster.instances.values()):
            if each.state is InstanceState.STARTING:
                fleet.lose(each.id, now) if fails else fleet.ready(each.id, now)
        gone = fleet.sizing.surplus(now)
        if gone is not None:
            fleet.drain(gone)
            if fleet.sizing.may_sleep():
                gone.step(InstanceStep.SLEEP)
            else:
                gone.step(InstanceStep.STOP)
                del fleet.cluster.instances[gone.id]
            fleet.note(now)
        assert fleet.sizing.wanted <= min(6, budget)


@pytest.mark.parametrize("count", [1, 5])
def test_split_needs_one_pool(count: int) -> None:
    assert Fleet().sizing.split(count) == {M: count}
    with pytest.raises(ValueError, match="too many values"):
        Fleet(ranges={P: Range(0, 1), D: Range(0, 1)}).sizing.split(count)
