"""The search finds what trying everything would, with few trials."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.cli.fleet_search import Fleet, Search, Trial, can_keep, frontier

MAX = 256


def row(share: float, instances: float, latency_s: float = 1.0) -> dict[str, Any]:
    return {
        "attainment_by_class": {"chat": share, "idle": None},
        "requests_by_class": {"chat": 1000, "idle": 0},
        "instance_seconds": instances * 100,
        "asleep_seconds": 0.0,
        "cost": instances * 100 / 3600,
        "sim_seconds": 100.0,
        "e2e_s": {"p50": latency_s},
    }


def world(share: Callable[[Fleet], float], mean: Callable[[Fleet], float] | None = None) -> Search:
    def attempt(fleet: Fleet) -> Trial:
        count = fleet.mixed + fleet.prefill + fleet.decode
        return Trial(fleet, [row(share(fleet), mean(fleet) if mean else count, 100 / (count or 0.5))])

    return Search(attempt, 0.99, MAX)


@given(need=st.integers(1, MAX), start=st.integers(1, 2 * MAX))
def test_fewest_of_one_kind(need: int, start: int) -> None:
    search = world(lambda fleet: 1.0 if fleet.mixed >= need else fleet.mixed / (2 * need))
    assert search.mixed(start) == need
    assert len(search.trials) <= 2 * math.log2(MAX) + 2
    best = search.best()
    assert best is not None
    assert best.fleet == Fleet(mixed=need)


def test_no_number_is_enough() -> None:
    search = world(lambda fleet: min(0.9, fleet.mixed / 64))
    assert search.mixed(1) is None
    assert search.best() is None


def test_search_ends_where_more_instances_gain_nothing() -> None:
    search = Search(lambda fleet: Trial(fleet, [row(0.9, fleet.mixed)]), 0.99, 10_000)
    assert search.mixed(1) is None
    assert len(search.trials) == 2


@given(prefill=st.integers(1, 20), decode=st.integers(1, 20), share=st.floats(0.1, 0.9), fewer=st.integers(0, 10))
def test_division_is_climbed_to(prefill: int, decode: int, share: float, fewer: int) -> None:
    """Each side is enough from a number on, and short of it the share falls."""

    def kept(fleet: Fleet) -> float:
        if not fleet.prefill:
            return 1.0 if fleet.mixed >= prefill + decode + fewer else 0.5
        return min(1.0, fleet.prefill / prefill, fleet.decode / decode)

    search = world(kept)
    count = prefill + decode + fewer
    assert search.apart(count, share, 1) == prefill + decode
    best = search.best()
    assert best is not None
    assert best.fleet == Fleet(prefill=prefill, decode=decode)


def test_division_that_costs_more_is_not_looked_for() -> None:
    search = world(lambda fleet: 0.0 if fleet.prefill else 1.0)
    assert search.apart(4, 0.5, 1) is None
    assert sum(fleet.prefill + fleet.decode for fleet in search.trials) == 4 * len(search.trials)
    assert search.apart(1, 0.5, 1) is None


@given(st.lists(st.integers(1, 10), min_size=3, max_size=3).map(sorted))
def test_bounds_of_an_elastic_fleet(numbers: list[int]) -> None:
    low, high, fixed = numbers

    def kept(fleet: Fleet) -> float:
        most = fleet.mixed if fleet.mixed_max is None else fleet.mixed_max
        return 1.0 if fleet.mixed >= low and most >= high else 0.5

    found = world(kept).elastic(fixed)
    assert found is not None
    assert found.mixed == low
    assert found.mixed_max == (max(high, low + 1) if low < fixed else max(fixed + 1, math.ceil(1.5 * fixed)))


def test_elastic_fleet_that_never_keeps_is_none() -> None:
    search = world(lambda fleet: 0.5)
    assert search.elastic(4) is None
    assert len(search.trials) == 1


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 50)), min_size=1, max_size=20))
def test_frontier_has_what_nothing_beats(points: list[tuple[float, int]]) -> None:
    trials = [Trial(Fleet(mixed=index + 1), [row(share, count)]) for index, (share, count) in enumerate(points)]
    found = frontier(trials)
    for trial in trials:
        is_beaten = any(
            other.cost_per_hour <= trial.cost_per_hour
            and other.worst >= trial.worst
            and (other.cost_per_hour, other.worst) != (trial.cost_per_hour, trial.worst)
            for other in trials
        )
        assert is_beaten or (trial.cost_per_hour, trial.worst) in {(each.cost_per_hour, each.worst) for each in found}


def test_seeds_that_cannot_save_a_fleet_are_not_asked_for() -> None:
    assert can_keep([row(0.98, 1)], 0.99, 3)
    assert not can_keep([row(0.9, 1)], 0.99, 3)
    assert not can_keep([row(0.98, 1)], 0.99, 1)
