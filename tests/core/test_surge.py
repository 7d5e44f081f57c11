"""Growth within a horizon against a slow reading of its definition, and the feedback on how cautious to be."""

from __future__ import annotations

import math
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.core.surge import (
    LEVEL_HORIZONS,
    LEVEL_MIN_S,
    PRIOR,
    SEEN_MIN,
    SMOOTHING,
    STATES,
    UNSEEN_MAX,
    Caution,
    Dial,
    Surge,
)

needs = st.lists(st.floats(0, 100), min_size=1, max_size=120)


def levels_of(needs: list[float], horizon_s: float) -> list[float]:
    """The decaying means, of needs a second apart."""
    kept = math.exp(-1 / max(LEVEL_MIN_S, LEVEL_HORIZONS * horizon_s))
    found = [needs[0]]
    for need in needs[1:]:
        found.append(need + (found[-1] - need) * kept)
    return found


@given(needs=needs, horizon=st.integers(1, 20), memory=st.integers(5, 60), quantile=st.floats(0, 1))
def test_factor_is_the_quantile_of_what_was_seen_in_the_same_state(
    needs: list[float], horizon: int, memory: int, quantile: float
) -> None:
    surge, now = Surge(horizon, memory), len(needs) - 1
    for at, need in enumerate(needs):
        surge.observe(at, need, need)
    levels = levels_of(needs, horizon)
    ratios = [(need + SMOOTHING) / (level + SMOOTHING) for need, level in zip(needs, levels, strict=True)]
    grown = [
        ((max(needs[at + 1 : at + horizon + 1]) + SMOOTHING) / (levels[at] + SMOOTHING), ratios[at])
        for at in range(max(0, len(needs) - horizon))
        if at + horizon >= now - memory
    ]
    everything = sorted(growth for growth, _ in grown)
    state = bisect_left(STATES, ratios[-1])
    alike = sorted(growth for growth, ratio in grown if bisect_left(STATES, ratio) == state)
    known = alike if len(alike) >= SEEN_MIN else everything
    expected = PRIOR
    if len(known) >= SEEN_MIN:
        expected = known[min(len(known) - 1, int(quantile * len(known)))]
    if len(alike) < SEEN_MIN:
        expected = max(expected, ratios[-1])
    assert surge.factor(quantile) == pytest.approx(expected)


@given(level=st.floats(0.1, 50))
def test_steady_demand_is_not_expected_to_grow(level: float) -> None:
    surge = Surge(3.0, 100.0)
    for tick in range(100):
        surge.observe(tick / 2, level, level)
    assert surge.most(1.0, Caution.HEADROOM_BEGINS) == pytest.approx(level)
    assert surge.most_ahead(1.0, Caution.HEADROOM_BEGINS, 0.0, late_share=0.5) == pytest.approx(level)


@given(
    seen=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1)), min_size=SEEN_MIN + 3, max_size=120),
    quantile=st.floats(0, 1),
    headroom=st.floats(1, 4),
    held=st.floats(0, 100),
    late_share=st.floats(1e-4, 0.5),
)
def test_little_more_is_expected_than_would_have_been_enough(
    seen: list[tuple[float, float]], quantile: float, headroom: float, held: float, late_share: float
) -> None:
    """And where starts are quick, no less than is needed; where they are slow, no more than that and what is held."""
    surge = Surge(2.0, 60.0)
    for at, (need, share) in enumerate(seen):
        surge.observe(at, need, share * need)
    need, enough = seen[-1][0], max(need * share for need, share in seen[-61:])
    assert need <= surge.most(quantile, headroom) <= max(need, headroom * enough) + 1e-9
    ahead = surge.most_ahead(quantile, headroom, held, late_share)
    assert min(need, held) <= ahead <= max(held, max(headroom, surge.unseen(late_share)) * enough) + 1e-9


@given(horizon_s=st.floats(5, 120), late_share=st.floats(1e-4, 0.2), needs=st.lists(st.floats(0.1, 100), min_size=2))
def test_less_is_unseen_the_longer_one_has_looked(horizon_s: float, late_share: float, needs: list[float]) -> None:
    """And the more has come of it; a surge for another horizon begins no second time."""
    surge, before = Surge(horizon_s, 900.0), math.inf
    for at, need in enumerate(needs):
        surge.observe(at, need, need)
        assert 1.0 <= surge.unseen(late_share) <= min(before, UNSEEN_MAX)
        before = surge.unseen(late_share)
        assert surge.unseen(late_share / 2) >= before
    late = Surge(horizon_s, 900.0, begun_s=0.0)
    late.observe(len(needs) - 1, 1.0, 1.0)
    chance = horizon_s / (len(needs) - 1 + horizon_s)
    assert late.unseen(late_share) == pytest.approx(max(1.0, min(UNSEEN_MAX, (chance / (4 * late_share)) ** (1 / 3))))


def test_what_has_come_of_the_unseen_is_not_expected_again() -> None:
    surge = Surge(10.0, 900.0)
    for at in range(60):
        surge.observe(at, 1.0, 1.0)
    quiet = surge.unseen(1e-4)
    surge.observe(60, 3.0, 3.0)
    assert surge.unseen(1e-4) == pytest.approx(quiet / 3, rel=0.05)


@given(seen=st.lists(st.floats(0, 100), min_size=1, max_size=120))
def test_enough_is_what_was_always_enough_lately(seen: list[float]) -> None:
    surge, memory_s, horizon_s = Surge(2.0, 60.0), 60, 2
    for at, enough in enumerate(seen):
        surge.observe(at, 1.0, enough)
    is_known = min(len(seen) - horizon_s, memory_s + 1) >= SEEN_MIN
    assert surge.enough() == (max(seen[-memory_s - 1 :]) if is_known else math.inf)


def test_what_grew_long_ago_is_forgotten() -> None:
    surge = Surge(2.0, 30.0)
    for tick in range(160):
        need = 10.0 if tick == 5 else 1.0
        surge.observe(tick, need, need)
    assert surge.factor(1.0) == pytest.approx(1.0, abs=1e-4)


def test_bursts_are_expected_to_go_on_and_lulls_to_end_only_if_one_is_sure() -> None:
    """Ten seconds of ten, fifty of one, over and over."""
    surge = Surge(2.0, 600.0)
    for tick in range(660):
        need = 10.0 if tick % 60 < 10 else 1.0
        surge.observe(tick, need, need)
        if tick > 300 and tick % 60 == 8:
            assert surge.most(0.5, 1.0) == pytest.approx(10.0, rel=0.1)
        if tick > 300 and tick % 60 == 40:
            assert surge.most(0.5, 1.0) < 2.0
            assert surge.most(1.0, 1.0) == pytest.approx(10.0, rel=0.1)


counts = st.tuples(st.integers(0, 50), st.floats(0, 1), st.booleans(), st.booleans())


@given(seen=st.lists(counts, min_size=1, max_size=200), share=st.floats(0.001, 0.2))
def test_caution_stays_within_its_bounds(seen: list[tuple[int, float, bool, bool]], share: float) -> None:
    caution, placed, late = Caution(share), 0, 0
    for new, late_part, was_short, is_quick in seen:
        placed, late = placed + new, late + round(late_part * new)
        caution.observe(placed, late, was_short=was_short, is_quick=is_quick)
        assert caution.QUANTILE_BOUNDS[0] <= caution.quantile <= caution.QUANTILE_BOUNDS[1]
        assert 0.0 <= caution.margin_s <= caution.MARGIN_BOUNDS_S[1]
        assert 0.0 <= caution.goes_on <= 1.0
        assert caution.goes_on == 1.0 or caution.margin_s == 0.0
        assert caution.HEADROOM_BOUNDS[0] <= caution.headroom <= caution.HEADROOM_BOUNDS[1]


def test_what_was_not_foreseen_raises_the_quantile_and_what_was_not_enough_the_margin() -> None:
    caution = Caution(0.05)
    quantile, margin_s = caution.quantile, caution.margin_s
    caution.observe(100, 20, was_short=True, is_quick=False)
    assert caution.quantile > quantile
    assert caution.margin_s < margin_s
    quantile, margin_s = caution.quantile, caution.margin_s
    caution.observe(200, 40, was_short=False, is_quick=False)
    assert caution.quantile < quantile
    assert caution.margin_s > margin_s


def test_where_starts_are_quick_less_is_held_ready() -> None:
    quick, slow = Caution(0.05), Caution(0.05)
    for looks in range(1, 101):
        quick.observe(2 * looks, looks, was_short=True, is_quick=True)
        slow.observe(2 * looks, looks, was_short=True, is_quick=False)
    assert quick.quantile == Caution.QUICK_QUANTILE < slow.quantile


def test_what_was_not_foreseen_raises_the_headroom_where_starts_are_slow() -> None:
    quick, slow = Caution(0.05), Caution(0.05)
    for caution, is_quick in ((quick, True), (slow, False)):
        caution.observe(100, 50, was_short=True, is_quick=is_quick)
    assert quick.headroom == Caution.HEADROOM_BEGINS < slow.headroom


def test_headroom_falls_by_as_much_as_has_come() -> None:
    """What the most is believed to be stays where it is while less comes, and is never less than came."""
    caution = Caution(0.05)
    caution.observe(100, 50, was_short=True, is_quick=False)
    before = caution.headroom
    caution.has_come(1.2)
    assert caution.headroom * 1.2 == pytest.approx(before)
    caution.has_come(100.0)
    assert caution.headroom == 1.0


def test_a_rise_is_told_once() -> None:
    surge = Surge(2.0, 60.0)
    for at in range(40):
        surge.observe(at, 1.0, 1.0)
        assert surge.risen == 1.0
    surge.observe(40.0, 3.0, 2.5)
    assert surge.risen == 2.5
    surge.observe(41.0, 3.0, 2.5)
    assert surge.risen == 1.0


def test_while_nothing_is_late_less_is_taken_to_go_on() -> None:
    caution = Caution(0.05)
    for looks in range(1, 101):
        caution.observe(10 * looks, 0, was_short=False, is_quick=True)
    assert caution.margin_s == 0.0
    assert caution.goes_on < 1.0
    caution.observe(1100, 100, was_short=False, is_quick=True)
    assert caution.goes_on == 1.0


def test_what_is_overlooked_teaches_nothing() -> None:
    caution, fresh = Caution(0.05), Caution(0.05)
    caution.overlook(100, 100)
    caution.observe(100, 100, was_short=True, is_quick=False)
    assert (caution.quantile, caution.margin_s) == (fresh.quantile, fresh.margin_s)
    assert caution.headroom == fresh.headroom


@given(share=st.floats(0.01, 0.2))
def test_dial_rests_where_just_so_much_is_late(share: float) -> None:
    dial = Dial(share, 0.05, (0.0, 1.0), 0.5)
    for _ in range(50):
        dial.observe(1000, round(1000 * share))
    assert dial.value == pytest.approx(0.5, abs=0.01)


def test_nothing_placed_says_nothing() -> None:
    caution = Caution(0.05)
    before = caution.quantile, caution.margin_s
    caution.observe(0, 0, was_short=True, is_quick=True)
    assert (caution.quantile, caution.margin_s) == before
