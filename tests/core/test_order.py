"""Moore and Hodgson's rule by weight and priority: what is kept is in time, and nothing more could have been."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.builders import sequence
from hyperflexis.core.order import back_key, fewest_late
from hyperflexis.core.step import Sequence


class Spec(NamedTuple):
    """Whole numbers, so that sums are exact."""

    work: int
    arrived: int
    promised: int
    priority: int = 0
    has_begun: bool = False


WORKS = st.integers(0, 20)
SPECS = st.builds(Spec, WORKS, st.integers(-20, 20), st.integers(1, 60), st.integers(0, 2), st.booleans())
EQUAL = st.builds(lambda work, arrived: Spec(work, arrived, 30), WORKS, st.integers(-20, 20))
"""Of one priority and with equally long promises: what is given up is the longest work, as in the original rule."""


def waiting(specs: Iterable[Spec], *, begun: bool = True) -> tuple[list[Sequence], Callable[[Sequence], float]]:
    """Those that wait, in order of deadlines, and their works."""
    made, works = [], {}
    for number, spec in enumerate(specs):
        each = sequence(number, arrived_s=float(spec.arrived), priority=spec.priority)
        each.deadline_s = float(spec.arrived + spec.promised)
        each.first_token_s = 0.0 if begun and spec.has_begun else None
        works[number] = float(spec.work)
        made.append(each)
    made.sort(key=lambda each: (each.deadline_s, each.arrived_s, each.id))
    return made, lambda each: works[each.id]


def is_in_time(each: Sequence, end_s: float) -> bool:
    return end_s <= each.deadline_s


def late(order: Iterable[Sequence], start_s: float, work_s: Callable[[Sequence], float]) -> list[Sequence]:
    """Those that miss their deadlines if all are computed in this order."""
    found = []
    for each in order:
        start_s += work_s(each)
        if not is_in_time(each, start_s):
            found.append(each)
    return found


@given(st.lists(SPECS, min_size=1, max_size=20), st.integers(0, 20), st.sampled_from([1.0, 2.0]))
def test_everyone_is_kept_or_given_up_and_nobody_twice(specs: list[Spec], start: int, stretch: float) -> None:
    those, work_s = waiting(specs)
    first, behind = fewest_late(those, start, stretch, work_s)
    assert sorted(each.id for each in [*first, *behind]) == sorted(each.id for each in those)
    assert first == [each for each in those if each in first], "in order of deadlines"
    assert behind == sorted(behind, key=back_key), "by priority and arrival"
    assert all(each.first_token_s is None for each in behind), "a client that reads already is never given up"


@given(st.lists(SPECS, min_size=1, max_size=20), st.integers(0, 20), st.sampled_from([1.0, 2.0]))
def test_all_that_are_kept_are_in_time(specs: list[Spec], start: int, stretch: float) -> None:
    those, work_s = waiting(specs, begun=False)
    first, _ = fewest_late(those, start, stretch, work_s)
    assert late(first, start, lambda each: stretch * work_s(each)) == []


@given(st.lists(SPECS, min_size=1, max_size=20), st.integers(0, 20))
def test_what_has_begun_takes_its_time_and_the_others_are_in_time_beside_it(specs: list[Spec], start: int) -> None:
    those, work_s = waiting(spec._replace(priority=0) for spec in specs)
    first, _ = fewest_late(those, start, 1.0, work_s)
    assert all(each.first_token_s is not None for each in late(first, start, work_s))


@given(st.lists(SPECS, min_size=1, max_size=20), st.integers(0, 20))
def test_nobody_is_given_up_where_all_can_be_in_time(specs: list[Spec], start: int) -> None:
    those, work_s = waiting(specs, begun=False)
    _, behind = fewest_late(those, start, 1.0, work_s)
    if not late(those, start, work_s):
        assert behind == []


@settings(max_examples=300)
@given(st.lists(EQUAL, min_size=1, max_size=7), st.integers(0, 20))
def test_as_many_are_kept_as_can_be(specs: list[Spec], start: int) -> None:
    those, work_s = waiting(specs)
    first, _ = fewest_late(those, start, 1.0, work_s)
    most = max(
        size
        for size in range(len(those) + 1)
        for some in itertools.combinations(those, size)
        if not late(some, start, work_s)
    )
    assert len(first) == most


GREEDY: list[Callable[[list[Sequence], Callable[[Sequence], float]], Sequence]] = [
    lambda kept, work_s: kept[-1],
    lambda kept, work_s: kept[0],
    lambda kept, work_s: min(kept, key=work_s),
    lambda kept, work_s: max(kept, key=work_s),
]


@given(st.lists(EQUAL, min_size=1, max_size=15), st.integers(0, 20), st.sampled_from(GREEDY))
def test_no_other_choice_of_whom_to_give_up_keeps_more(
    specs: list[Spec], start: int, choose: Callable[[list[Sequence], Callable[[Sequence], float]], Sequence]
) -> None:
    """One is given up wherever a deadline would be missed: the last, the first, the shortest, the longest."""
    those, work_s = waiting(specs)
    first, _ = fewest_late(those, start, 1.0, work_s)
    kept: list[Sequence] = []
    for each in those:
        kept.append(each)
        while late(kept, start, work_s):
            kept.remove(choose(kept, work_s))
    assert len(first) >= len(kept)


@given(st.lists(SPECS, min_size=1, max_size=20), st.integers(0, 20))
def test_lower_priorities_take_nobodys_place(specs: list[Spec], start: int) -> None:
    those, work_s = waiting(specs)
    first, _ = fewest_late(those, start, 1.0, work_s)
    for level in {each.priority for each in those}:
        above = [each for each in those if each.priority >= level]
        alone, _ = fewest_late(above, start, 1.0, work_s)
        assert [each for each in first if each.priority >= level] == alone


@given(st.lists(SPECS, min_size=1, max_size=20), st.integers(0, 20))
def test_what_is_late_whatever_is_done_goes_back_and_costs_nobody_else(specs: list[Spec], start: int) -> None:
    those, work_s = waiting(specs, begun=False)
    hopeless = [each for each in those if not is_in_time(each, start + work_s(each))]
    first, behind = fewest_late(those, start, 1.0, work_s)
    assert all(each in behind for each in hopeless)
    others = [each for each in those if each not in hopeless]
    if others:
        assert fewest_late(others, start, 1.0, work_s)[0] == first


def test_longest_work_per_promised_second_is_given_up() -> None:
    """Ten of 20 s promised weigh more than twelve of 60 s."""
    those, work_s = waiting([Spec(10, 0, 20), Spec(12, -39, 60)])
    first, behind = fewest_late(those, 0.0, 1.0, work_s)
    assert ([each.id for each in first], [each.id for each in behind]) == ([1], [0])


def test_urgent_work_of_low_priority_goes_first_where_there_is_time_for_both() -> None:
    those, work_s = waiting([Spec(10, 0, 12), Spec(10, 0, 60, priority=2)])
    first, behind = fewest_late(those, 0.0, 1.0, work_s)
    assert ([each.id for each in first], behind) == ([0, 1], [])
