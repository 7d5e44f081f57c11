"""How many instances are wanted: by what is asked for, by what waits, and by how long a start takes."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.builders import H100_8B, capacity, request, slo
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Why
from hyperflexis.core.fleet import FleetBounds, Range
from hyperflexis.core.instance import Role, StartSource
from hyperflexis.core.request import Request
from hyperflexis.core.scaling import PLAN_S, ProactiveScaler, ScalerRules
from hyperflexis.core.sizing import Sizing, Wanted

M = Role.MIXED
PREFILL_S = H100_8B.chunk_s(4000, 0)


class Demand:
    """A fleet of ready instances to which requests come, and its scaler, asked every half second."""

    def __init__(self, instances: int, *, least: int = 0, start_s: float = 3.0, **bounds: Any) -> None:
        self.cluster = Cluster()
        fleet = FleetBounds({M: Range(least, 40)}, startup_s={StartSource.DISK: start_s}, **bounds)
        self.sizing = Sizing(fleet, self.cluster)
        self.scaler = ProactiveScaler(ScalerRules())
        for number in range(instances):
            self.cluster.launch(number, M).become_ready(capacity(blocks=200_000, block_tokens=16), H100_8B, 0.0)
        self.cluster.note_ready()
        self.now, self._owed, self._number = 0.0, 0.0, 0
        self.is_late = False
        """What is said of all that is placed."""

    def arrive(self) -> Request:
        self._number += 1
        made = request(self._number, prompt_tokens=4000, slo=slo(1.0, 0.05), arrived_s=self.now)
        self.cluster.requests[made.id] = made
        self.cluster.observe_arrival(made)
        if self.cluster.ready:
            self.cluster.observe_placement(made, self.cluster.ready[0], is_late=self.is_late)
        return made

    def last(self, seconds: float, load: float = 0.0) -> Wanted:
        """So many instances' worth of prefill, which all is done at once; what is wanted in the end."""
        wanted = None
        for _ in range(round(seconds / PLAN_S)):
            self.now += PLAN_S
            self._owed += load * PLAN_S
            while self._owed >= PREFILL_S:
                self._owed -= PREFILL_S
                del self.cluster.requests[self.arrive().id]
            wanted = self.scaler.plan(self.cluster, self.sizing, self.now) or wanted
        assert wanted is not None
        return wanted


def count(wanted: Wanted) -> int:
    return wanted.counts[M]


@pytest.mark.parametrize("load", [2.0, 6.0, 14.0])
def test_steady_demand_gets_what_it_needs_and_little_more(load: float) -> None:
    wanted = Demand(4).last(240, load)
    assert load <= count(wanted) <= 1.25 * load + 1
    assert wanted.reason.why is Why.DEMAND


def test_more_demand_never_wants_fewer() -> None:
    counts = [count(Demand(4).last(60, load)) for load in (0.5, 1.0, 2.0, 4.0, 8.0)]
    assert counts == sorted(counts)


def test_demand_that_grew_before_is_expected_to_grow_again() -> None:
    smooth, bursty = Demand(8, start_s=15.0), Demand(8, start_s=15.0)
    for _ in range(12):
        calm = count(smooth.last(30, 2.0))
        bursty.last(10, 6.0)
        waiting = count(bursty.last(20, 0.01))
    assert waiting > calm


def test_slow_starts_want_more_held_ready() -> None:
    held = []
    for start_s in (1.0, 30.0):
        demand = Demand(8, start_s=start_s)
        for _ in range(12):
            demand.last(10, 6.0)
            held.append(count(demand.last(12, 1.0)))
            demand.last(8, 1.0)
    quick, slow = held[11], held[23]
    assert slow > quick


def test_a_young_fleet_is_larger_the_less_may_be_late_where_starts_are_slow() -> None:
    """By the class of which least may be late, if it is asked for. Another time of a start makes no fleet young."""
    shares: list[dict[str, float]] = [{}, {request(1).service_class: 0.0005}, {"another": 0.0005}]
    counts = [count(Demand(4, start_s=30.0, late_shares=share).last(60, 2.0)) for share in shares]
    assert counts[0] == counts[2] < counts[1]
    old = Demand(4, start_s=30.0, late_shares=shares[1])
    old.last(1200, 2.0)
    settled = count(old.last(1, 2.0))
    assert settled < counts[1]
    slower = FleetBounds(old.sizing.fleet.ranges, startup_s={StartSource.DISK: 45.0}, late_shares=shares[1])
    old.sizing = Sizing(slower, old.cluster)
    assert count(old.last(1, 2.0)) < counts[1]


def test_quick_starts_hold_nothing_for_what_was_never_seen() -> None:
    shares = {request(1).service_class: 0.0005}
    quick, slow = (Demand(4, start_s=start_s, late_shares=shares).last(60, 2.0) for start_s in (1.0, 30.0))
    assert count(quick) < count(slow)
    assert "unseen" not in dict(quick.reason.numbers)
    assert dict(slow.reason.numbers)["unseen"] > 1.0


def test_what_waits_wants_as_many_as_would_do_it_in_time() -> None:
    demand = Demand(1, start_s=2.0)
    instance = demand.cluster.ready[0]
    demand.last(5)
    for _ in range(200):  # Some 18 seconds of prefill, due in 12.
        made = request(demand._number + 1, prompt_tokens=4000, slo=slo(12.0), arrived_s=demand.now)
        demand._number += 1
        instance.place(made, 4001, demand.now)
    wanted = demand.last(PLAN_S)
    assert wanted.reason.why is Why.BACKLOG
    assert 2 <= count(wanted) <= 4


def test_work_without_a_near_deadline_wants_nothing() -> None:
    demand = Demand(1)
    demand.last(5)
    before = count(demand.last(PLAN_S))
    for _ in range(100):
        demand.arrive()
        demand.cluster.requests.popitem()
    late = [request(1000 + n, prompt_tokens=4000, slo=slo(e2e_s=86_400.0), arrived_s=demand.now) for n in range(100)]
    other = Demand(1)
    other.last(5)
    for each in late:
        other.cluster.observe_arrival(each)
        other.cluster.ready[0].place(each, 4100, other.now)
    assert count(other.last(10)) <= max(before, 1)
    assert count(demand.last(PLAN_S)) > before


@pytest.mark.parametrize("start_s", [3.0, 30.0])
def test_more_requests_than_there_are_seats_want_more_instances(start_s: float) -> None:
    """Their work alone would not."""
    demand = Demand(1, start_s=start_s)
    demand.cluster.instances[0].capacity = capacity(blocks=200_000, block_tokens=16, seqs_max=8)
    for _ in range(20):
        demand.cluster.ready[0].place(demand.arrive(), 4001, demand.now)
    needed = 20 / 8 / ScalerRules().room_share
    wanted = demand.last(PLAN_S)
    assert dict(wanted.reason.numbers)["need"] == pytest.approx(needed)
    assert count(wanted) >= math.ceil(needed)
    assert count(demand.last(60)) >= math.ceil(needed)


def test_fewer_are_wanted_only_after_a_while() -> None:
    demand = Demand(8)
    high = count(demand.last(60, 6.0))
    assert count(demand.last(PLAN_S, 0.0)) == high
    assert count(demand.last(40, 0.0)) < high


def test_work_that_is_placed_late_although_enough_were_there_needs_more() -> None:
    counts = []
    for is_late in (False, True):
        demand = Demand(20)
        demand.is_late = is_late
        counts.append(count(demand.last(60, 4.0)))
    assert counts[1] > counts[0]


def test_none_is_wanted_after_a_minute_without_requests() -> None:
    demand = Demand(1)
    demand.last(10, 0.5)
    assert count(demand.last(45)) >= 1 or count(demand.last(1)) == 0
    wanted = demand.last(40)
    assert (count(wanted), wanted.reason.why) == (0, Why.IDLE)


def test_the_first_request_wants_one_at_once() -> None:
    demand = Demand(0)
    assert demand.scaler.plan(demand.cluster, demand.sizing, 0.0) is None
    demand.cluster.requests[1] = request(1)
    wanted = demand.scaler.plan(demand.cluster, demand.sizing, 0.1)
    assert wanted is not None
    assert (count(wanted), wanted.reason.why) == (1, Why.FIRST)
    demand.sizing.want(wanted)
    assert demand.scaler.plan(demand.cluster, demand.sizing, 0.2) is None


def test_it_is_asked_often_and_thinks_at_its_own_pace() -> None:
    demand = Demand(1)
    assert demand.scaler.plan(demand.cluster, demand.sizing, 0.0) is not None
    assert demand.scaler.plan(demand.cluster, demand.sizing, PLAN_S / 2) is None


def test_what_may_be_needed_before_a_start_could_help_sleeps() -> None:
    demand = Demand(8, start_s=30.0, asleep_max=9)
    demand.sizing.startup.observe(StartSource.SLEEPER, 0.2)
    for _ in range(20):
        demand.last(10, 6.0)
        wanted = demand.last(30, 1.0)
    assert count(wanted) + wanted.asleep >= 6


@given(loads=st.lists(st.floats(0, 20), min_size=1, max_size=12), start_s=st.sampled_from([0.5, 3.0, 30.0]))
def test_any_demand_gets_an_answer_within_reason(loads: list[float], start_s: float) -> None:
    demand = Demand(3, start_s=start_s)
    most = 0.0
    for load in loads:
        wanted = demand.last(5, load)
        most = max(most, load)
        assert 0 <= count(wanted) <= 3 + 3 * (most + 1) / 0.05
        assert wanted.asleep == 0
