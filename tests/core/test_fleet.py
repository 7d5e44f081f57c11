"""What a fleet may be, what its starts are believed to take, and what it has cost."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.core.fleet import Bill, FleetBounds, Prices, Range, StartupTimes
from hyperflexis.core.instance import Role, StartSource

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED


def test_fixed_fleet_has_its_roles_and_mixed_instances_for_the_rest() -> None:
    fleet = FleetBounds.fixed(5, (P, D, D))
    assert dict(fleet.ranges) == {P: Range(1, 1), D: Range(2, 2), M: Range(2, 2)}
    assert (fleet.instances_min, fleet.instances_max, fleet.is_elastic) == (5, 5, False)
    assert dict(FleetBounds.fixed(2, (P, D)).ranges) == {P: Range(1, 1), D: Range(1, 1)}


def test_fleet_is_elastic_if_any_role_is() -> None:
    fleet = FleetBounds({P: Range(1, 1), M: Range(0, 3)})
    assert (fleet.instances_min, fleet.instances_max, fleet.is_elastic) == (1, 4, True)


@pytest.mark.parametrize(("least", "most"), [(-1, 2), (3, 2)])
def test_range_that_is_none_is_refused(least: int, most: int) -> None:
    with pytest.raises(ValueError, match="0 <= min <= max"):
        Range(least, most)


@pytest.mark.parametrize("price", [-0.1, math.nan, math.inf])
def test_price_that_is_none_is_refused(price: float) -> None:
    with pytest.raises(ValueError, match="active_per_hour must be a price from 0"):
        Prices(active_per_hour=price)


def test_budget_has_to_pay_for_the_fewest() -> None:
    with pytest.raises(ValueError, match="3 instances cost 6 per hour, and 5 are allowed"):
        FleetBounds({M: Range(3, 9)}, prices=Prices(2.0), cost_per_hour_max=5.0)
    assert FleetBounds({M: Range(2, 9)}, prices=Prices(2.0), cost_per_hour_max=5.0).affordable == 2
    assert FleetBounds({M: Range(2, 9)}, prices=Prices(0.0), cost_per_hour_max=5.0).affordable == 9


def test_what_sleeps_is_paid_from_what_is_left() -> None:
    fleet = FleetBounds({M: Range(0, 9)}, prices=Prices(2.0, 0.5), cost_per_hour_max=7.2, asleep_max=4)
    assert [fleet.affordable_asleep(awake) for awake in (0, 2, 3)] == [4, 4, 2]
    assert FleetBounds({M: Range(0, 9)}, asleep_max=4).affordable_asleep(9) == 4


@pytest.mark.parametrize("budget", [-1.0, -math.inf, math.nan])
def test_budget_is_a_cost(budget: float) -> None:
    with pytest.raises(ValueError, match="cost_per_hour_max must be a cost from 0"):
        FleetBounds({M: Range(0, 2)}, cost_per_hour_max=budget)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, math.nan])
def test_some_of_a_class_may_be_late_and_not_all(share: float) -> None:
    with pytest.raises(ValueError, match="class chat that may be late must be between 0 and 1, not"):
        FleetBounds({M: Range(0, 2)}, late_shares={"chat": share})


def test_fleet_without_instances_or_sources_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one instance"):
        FleetBounds({M: Range(0, 0)})
    with pytest.raises(ValueError, match="needs a source"):
        FleetBounds({M: Range(0, 1)}, sources=())


def test_starts_are_believed_until_they_are_seen() -> None:
    times = StartupTimes({StartSource.DISK: 40.0})
    times.observe(StartSource.DISK, 20.0)
    times.observe(StartSource.PEER, 3.0)
    assert times.seconds(StartSource.DISK) == 30.0
    assert times.seconds(StartSource.PEER) == 3.0
    assert times.seconds(StartSource.CACHE) == math.inf


@given(
    sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 4096)), min_size=1),
    prices=st.builds(Prices, st.floats(0, 100), st.floats(0, 100)),
)
def test_bill_is_the_sum_of_all_stays(sizes: list[tuple[int, int, int]], prices: Prices) -> None:
    bill, now, awake_s, asleep_s = Bill(prices), 7.0, 0.0, 0.0
    for awake, asleep, stay in sizes:
        bill.count(awake, asleep, now)
        now += stay / 64
        awake_s, asleep_s = awake_s + awake * stay / 64, asleep_s + asleep * stay / 64
        assert bill.seconds(now) == (awake_s, asleep_s)
        assert bill.cost_per_hour() == awake * prices.active_per_hour + asleep * prices.asleep_per_hour
    cost = (awake_s * prices.active_per_hour + asleep_s * prices.asleep_per_hour) / 3600
    assert bill.cost(now) == pytest.approx(cost)
