"""Growth within a horizon against a slow reading of its definition, and the feedback on its quantile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.core.surge import PRIOR, SEEN_MIN, SMOOTHING, Certainty, Surge

needs = st.lists(st.floats(0, 100), min_size=1, max_size=120)


@given(needs=needs, horizon=st.integers(1, 20), memory=st.integers(5, 60), quantile=st.floats(0, 1))
def test_factor_is_the_quantile_of_what_was_seen(
    needs: list[float], horizon: int, memory: int, quantile: float
) -> None:
    surge, now = Surge(horizon, memory), len(needs) - 1
    for at, need in enumerate(needs):
        surge.observe(at, need, need / 2)
    grown = [
        (at + horizon, (max(needs[at + 1 : at + horizon + 1]) + SMOOTHING) / (needs[at] / 2 + SMOOTHING))
        for at in range(max(0, len(needs) - horizon))
    ]
    known = sorted(growth for seen_at, growth in grown if seen_at >= now - memory)
    expected = known[min(len(known) - 1, int(quantile * len(known)))] if len(known) >= SEEN_MIN else PRIOR
    assert surge.factor(quantile) == pytest.approx(expected)


@given(level=st.floats(0.1, 50))
def test_steady_demand_is_not_expected_to_grow(level: float) -> None:
    surge = Surge(3.0, 100.0)
    for tick in range(100):
        surge.observe(tick / 2, level, level)
    assert surge.most(level, 1.0) == pytest.approx(level)


def test_what_grew_long_ago_is_forgotten() -> None:
    surge = Surge(2.0, 30.0)
    for tick in range(60):
        surge.observe(tick, 10.0 if tick == 5 else 1.0, 1.0)
    assert surge.factor(1.0) == 1.0


@given(late=st.lists(st.floats(0, 1), min_size=1, max_size=200), share=st.floats(0.001, 0.2))
def test_certainty_stays_within_its_bounds(late: list[float], share: float) -> None:
    certainty = Certainty(share)
    for each in late:
        certainty.observe(10.0, 10.0 * each)
        assert 0.5 <= certainty.quantile <= 1.0


def test_certainty_grows_while_too_much_is_late_and_falls_while_little_is() -> None:
    certainty = Certainty(0.05)
    before = certainty.quantile
    certainty.observe(100, 20)
    risen = certainty.quantile
    certainty.observe(100, 0)
    assert before < risen
    assert certainty.quantile < risen


def test_nothing_placed_says_nothing() -> None:
    certainty = Certainty(0.05)
    before = certainty.quantile
    certainty.observe(0, 0)
    assert certainty.quantile == before
