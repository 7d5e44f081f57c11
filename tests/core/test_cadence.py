"""Which steps are told: every one with news, and no more than `STEPS_MAX` go untold; none is told twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.core.cadence import STEPS_MAX, Cadence


@given(st.lists(st.tuples(st.integers(1, STEPS_MAX), st.sampled_from([False, False, False, True])), max_size=40))
def test_steps_told_and_untold_are_all_that_there_were(runs: list[tuple[int, bool]]) -> None:
    cadence, untold = Cadence(), 0
    for longest, has_news in runs:
        assert 1 <= cadence.steps_left == STEPS_MAX - untold
        steps = min(longest, cadence.steps_left)
        told = cadence.count(steps, has_news)
        untold += steps
        assert told == (untold if has_news or untold == STEPS_MAX else 0)
        untold -= told


@given(st.lists(st.tuples(st.integers(1, 3 * STEPS_MAX), st.booleans()), max_size=10))
def test_run_cut_at_what_is_left_is_told_as_its_steps_one_by_one_would_be(runs: list[tuple[int, bool]]) -> None:
    """What lets a simulated instance run through many steps at once."""
    one_by_one, at_once = Cadence(), Cadence()
    for steps, has_news in runs:
        single = [one_by_one.count(1, has_news and step == steps - 1) for step in range(steps)]
        left, at = steps, 0
        while left:
            run = min(left, at_once.steps_left)
            told = at_once.count(run, has_news and run == left)
            assert single[at : at + run] == [0] * (run - 1) + [told]
            left, at = left - run, at + run


def test_news_is_told_at_once() -> None:
    cadence = Cadence()
    assert [cadence.count(1, False), cadence.count(1, False), cadence.count(1, True)] == [0, 0, 3]
    assert cadence.count(1, True) == 1
