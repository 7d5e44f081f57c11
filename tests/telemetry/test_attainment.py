"""Shares over windows are those of a list that forgets nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.telemetry.attainment import MARK_S, WINDOWS_S, Attainment

STEPS = st.lists(st.tuples(st.floats(0, 9000), st.booleans()), max_size=60)


@given(STEPS, st.floats(0, 30_000), st.sampled_from(sorted(WINDOWS_S.values())))
def test_share_is_that_of_a_window_that_begins_no_earlier_than_a_mark(
    steps: list[tuple[float, bool]], rest_s: float, window_s: float
) -> None:
    attainment, judged, now = Attainment(), list[tuple[float, bool]](), 0.0
    for pause_s, is_kept in steps:
        now += pause_s
        judged.append((now, is_kept))
        attainment.judge(is_kept, now)
    now += rest_s
    share = attainment.share(window_s, now)
    begins = [now - window_s - at_s for at_s in (0.0, MARK_S)]
    least, most = ([kept for at_s, kept in judged if at_s > begin] for begin in begins)
    if share is None:
        assert not least
    else:
        candidates = [[kept for _, kept in judged[first:]] for first in range(len(judged))]
        assert any(
            len(least) <= len(each) <= len(most) and share == pytest.approx(sum(each) / len(each))
            for each in candidates
        )


def test_old_marks_are_dropped() -> None:
    attainment = Attainment()
    for number in range(20_000):
        attainment.judge(number % 2 == 0, number * MARK_S)
    assert len(attainment._marks_s) < 5000
    assert attainment.share(WINDOWS_S["6h"], 20_000 * MARK_S) == pytest.approx(0.5, abs=0.001)


def test_nothing_judged_is_no_share() -> None:
    attainment = Attainment()
    attainment.judge(True, 0.0)
    assert attainment.share(60.0, 59.0) == 1.0
    assert attainment.share(60.0, 1000.0) is None
