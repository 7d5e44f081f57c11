"""Capacities and means of the scheduling comparison."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import scheduling_search as search

STEPS = st.integers(search.STEP_MIN, search.STEP_MAX)
KEEPS_90 = search.Criterion("90", 0.9)


def point(seed: int, **attainment: float | None) -> dict[str, Any]:
    classes = {name: {"attainment": share, "worst_minute": None} for name, share in attainment.items()}
    return {"seed": seed, "classes": classes}


@given(limit=STEPS, start=STEPS)
def test_the_highest_step_that_is_kept_is_found_from_anywhere(limit: int, start: int) -> None:
    assert search.highest(lambda step: step <= limit, start) == limit


@given(start=STEPS)
def test_none_where_nothing_is_kept_and_the_last_where_everything_is(start: int) -> None:
    assert search.highest(lambda step: False, start) is None
    assert search.highest(lambda step: True, start) == search.STEP_MAX


@given(limit=STEPS, start=STEPS)
def test_no_step_is_tried_outside_of_the_grid(limit: int, start: int) -> None:
    tried: list[int] = []
    search.highest(lambda step: tried.append(step) or step <= limit, start)
    assert all(search.STEP_MIN <= step <= search.STEP_MAX for step in tried)
    assert len(tried) <= 2 + (search.STEP_MAX - search.STEP_MIN) / search.STRIDE + math.log2(search.STRIDE)


def test_a_search_that_starts_near_takes_few_simulations() -> None:
    tried: list[int] = []
    search.highest(lambda step: tried.append(step) or step <= 7, 5)
    assert len(tried) <= 4


@given(limits=st.lists(STEPS, min_size=1, max_size=6), start=STEPS)
def test_the_best_name_is_the_first_with_the_highest_step(limits: list[int], start: int) -> None:
    names = [str(index) for index in range(len(limits))]
    best, steps = search.best_of(names, lambda name, step: step <= limits[int(name)], start)
    assert best == names[limits.index(max(limits))]
    assert steps[best] == max(limits)


def test_rates_and_steps_belong_together() -> None:
    assert search.rate_of(0) == 1.0
    assert [search.step_of(search.rate_of(step)) for step in range(-80, 81)] == list(range(-80, 81))
    assert search.rate_of(1) / search.rate_of(0) <= 1.04


def test_a_load_holds_if_every_class_keeps_its_share_in_the_mean() -> None:
    assert search.holds(KEEPS_90, [point(1, code=0.85, chat=1.0), point(2, code=0.95, chat=1.0)])
    assert not search.holds(KEEPS_90, [point(1, code=0.85, chat=1.0), point(2, code=0.94, chat=1.0)])


def test_a_class_without_requests_does_not_count() -> None:
    assert search.holds(KEEPS_90, [point(1, code=None, chat=1.0), point(2, code=0.95, chat=1.0)])
    assert search.class_means("attainment", [point(1, code=None), point(2, code=0.5)]) == {"code": 0.5}
    assert search.worst([point(1, code=None)]) == 1.0


@given(shares=st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=3, max_size=3), known=st.integers(1, 3))
def test_no_seed_is_left_out_that_could_change_the_answer(shares: list[float | None], known: int) -> None:
    points = [point(seed, code=share) for seed, share in enumerate(shares)]
    if not search.can_hold(KEEPS_90, points[:known], 3):
        present = [share for share in shares if share is not None]
        assert len(present) < 3 or not search.holds(KEEPS_90, points)


def test_a_hopeless_seed_settles_it() -> None:
    assert search.can_hold(KEEPS_90, [point(1, code=0.71)], 3)
    assert not search.can_hold(KEEPS_90, [point(1, code=0.69)], 3)


def test_figures_are_rounded_wherever_they_lie() -> None:
    assert search.rounded({"a": [0.123456, 7], "b": None, "c": math.nan}) == {"a": [0.1235, 7], "b": None, "c": None}


@pytest.mark.parametrize(("seeds", "is_complete"), [([1, 2], True), ([2, 1], True), ([1], False)])
def test_a_load_is_complete_with_every_seed(seeds: list[int], is_complete: bool) -> None:
    assert search.seeds_complete([point(seed) for seed in seeds], [1, 2]) is is_complete
