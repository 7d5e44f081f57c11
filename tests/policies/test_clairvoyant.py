"""A schedule that is known beforehand."""

from __future__ import annotations

from helpers.builders import cluster
from hyperflexis.core.fleet import FleetBounds, Range
from hyperflexis.core.instance import Role, StartSource
from hyperflexis.core.sizing import Sizing
from hyperflexis.policies import clairvoyant

NEEDS = [(0.0, 1), (10.0, 4), (20.0, 2), (30.0, 0)]


def wanted(now: float, startup_s: float) -> int:
    among = cluster(1)
    bounds = FleetBounds({Role.MIXED: Range(0, 9)}, startup_s={StartSource.DISK: startup_s})
    scaler = clairvoyant.policy(512, NEEDS, spare_s=1.0).scaler
    assert scaler is not None
    found = scaler.plan(among, Sizing(bounds, among), now)
    assert found is not None
    return found.counts[Role.MIXED]


def test_help_is_there_when_it_is_needed() -> None:
    assert [wanted(now, 3.0) for now in (0.0, 5.9, 6.5, 15.0)] == [1, 1, 4, 4]
    assert [wanted(now, 30.0) for now in (0.0, 5.9)] == [4, 4]


def test_it_goes_when_it_is_needed_no_more() -> None:
    assert [wanted(now, 3.0) for now in (19.9, 20.5, 27.0, 40.0)] == [4, 2, 2, 0]
