"""What counts within which term, and how fast it came."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.core.due_work import DEFERRABLE_S, TERMS_S, DueWork, WorkHistory


def test_work_counts_in_every_term_that_is_as_long() -> None:
    work = DueWork()
    work.add(2.0, 0.5)
    work.add(2.1, 2.0)
    assert work.by_term == tuple(0 if term_s < 2 else 0.5 if term_s < 2.1 else 2.5 for term_s in TERMS_S)


def test_one_request_asks_for_no_more_than_one_instance() -> None:
    """A prompt of six seconds that has to begin within half a second: only one instance can compute it."""
    history, work = WorkHistory(), DueWork()
    for tick in range(121):
        if tick == 120:
            work.add(0.5, 6.0)
        history.observe(work.by_term, tick / 2)
    assert work.by_term[-1] == 6.0
    assert history.due_rate(60.0) == 1.0
    assert history.hindsight_rate(60.0) <= 1.5  # And what queues lose.


@pytest.mark.parametrize("term_s", [DEFERRABLE_S + 1, math.inf])
def test_what_can_wait_asks_for_nothing_now(term_s: float) -> None:
    work = DueWork()
    work.add(term_s, 5.0)
    assert work.by_term == (0.0,) * len(TERMS_S)


def test_a_burst_of_strict_work_counts_over_its_own_term() -> None:
    """Six seconds of prefill that come at once and are due within two need three instances, whatever the mean is."""
    history, work = WorkHistory(), DueWork()
    for tick in range(121):
        if tick == 120:
            for _ in range(6):
                work.add(2.0, 1.0)
        history.observe(work.by_term, tick / 2)
    assert history.due_rate(60.0) == 3.0
    assert history.rate(30.0, 60.0) == pytest.approx(6.0 / 30)


def test_a_margin_counts_the_last_half_of_short_terms_for_more() -> None:
    for term_s in (2.0, 8.0):
        history, work = WorkHistory(), DueWork()
        history.observe(work.by_term, 0.0)
        for tick in range(1, 121):
            work.add(term_s, 0.5)
            history.observe(work.by_term, tick / 2)
        assert history.due_rate(60.0) == pytest.approx(1.0)
        assert history.due_rate(60.0, margin_s=5.0) == pytest.approx(max(1.0, 0.5 + 5.0 / term_s))


def test_in_hindsight_a_burst_could_have_been_spread_over_its_term() -> None:
    """Twelve seconds of prefill within three, each due within four: two are done in time by so many instances."""
    history, work = WorkHistory(), DueWork()
    for tick in range(121):
        if tick > 114:
            work.add(4.0, 2.0)
        history.observe(work.by_term, tick / 2)
    assert history.due_rate(60.0) == 3.0
    assert history.hindsight_rate(60.0) == pytest.approx(12.0 / (4.0 + 3.0))


def test_what_has_been_done_is_not_asked_for_again() -> None:
    """Work that had to be done within two seconds asks for nothing ten seconds later."""
    history, work = WorkHistory(), DueWork()
    for tick in range(41):
        if tick == 20:
            work.add(2.0, 6.0)
        history.observe(work.by_term, tick / 2)
    assert history.due_rate(20.0) == 0.0


def test_nothing_is_known_at_first() -> None:
    history = WorkHistory()
    history.observe(DueWork().by_term, 5.0)
    assert history.due_rate(5.0) == history.rate(10.0, 5.0) == 0.0


@given(rate=st.floats(0.01, 5.0), term_s=st.sampled_from(TERMS_S), seconds=st.integers(1, 200))
def test_steady_work_has_its_rate_in_every_window(rate: float, term_s: float, seconds: int) -> None:
    history, work = WorkHistory(), DueWork()
    history.observe(work.by_term, 0.0)
    for tick in range(1, 2 * seconds + 1):
        work.add(term_s, rate / 2)
        history.observe(work.by_term, tick / 2)
    assert history.due_rate(seconds) == pytest.approx(rate)
    assert history.rate(10.0, seconds) == pytest.approx(rate)
    assert rate / 6 < history.hindsight_rate(seconds) < rate
