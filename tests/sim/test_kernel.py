"""The virtual clock: what happens when, in total order, and to the last bit."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.sim.kernel import HORIZON_S, TICK_S, Kernel, to_ticks_s

SECONDS = st.floats(0.0, 1000.0)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.5]), st.lists(st.sampled_from([0.0, 0.5, 1.5])))))
def test_actions_run_by_instant_and_then_in_the_order_in_which_they_were_put(
    plan: list[tuple[float, list[float]]],
) -> None:
    """Those put by other actions included, at the very instant too."""
    kernel = Kernel()
    put: list[tuple[float, int]] = []
    ran: list[tuple[float, int]] = []

    def add(instant_s: float, following: list[float]) -> None:
        key = (instant_s, len(put))
        put.append(key)

        def run() -> None:
            assert kernel.now == instant_s
            ran.append(key)
            for delay_s in following:
                add(instant_s + delay_s, [])

        kernel.at(instant_s, run)

    for instant_s, following in plan:
        add(instant_s, following)
    kernel.run()
    assert ran == sorted(put)


def test_past_cannot_be_changed() -> None:
    kernel = Kernel()
    kernel.at(1.0, lambda: None)
    kernel.run()
    with pytest.raises(AssertionError, match="before now"):
        kernel.at(0.5, lambda: None)


def test_clock_stops_where_it_is_told_and_goes_on() -> None:
    kernel, ran = Kernel(), []
    for instant_s in (1.0, 2.0, 3.0):
        kernel.at(instant_s, lambda instant_s=instant_s: ran.append(instant_s))
    kernel.run(until_s=2.0)
    assert (ran, kernel.now) == ([1.0, 2.0], 2.0)
    kernel.run()
    assert ran == [1.0, 2.0, 3.0]


@given(SECONDS)
def test_nearest_tick_is_whole_and_within_half_of_one(seconds: float) -> None:
    instant_s = to_ticks_s(seconds)
    assert (instant_s / TICK_S).is_integer()
    assert abs(Fraction(instant_s) - Fraction(seconds)) <= Fraction(TICK_S) / 2
    assert to_ticks_s(instant_s) == instant_s


@given(SECONDS, st.floats(0.0, 1.0), st.integers(0, 5000), st.integers(0, 64))
def test_sums_of_ticks_are_exact_in_any_order(start_s: float, step_s: float, steps: int, seqs: int) -> None:
    start_s, step_s, growth_s = to_ticks_s(start_s), to_ticks_s(step_s), to_ticks_s(1e-7) * seqs
    added = start_s
    for step in range(steps % 200):
        added += step_s + growth_s * step
    steps %= 200
    assert added == start_s + (steps * step_s + growth_s * (steps * (steps - 1) // 2))
    exact = Fraction(start_s) + steps * Fraction(step_s) + Fraction(growth_s) * (steps * (steps - 1) // 2)
    assert Fraction(added) == exact


def test_ticks_are_exact_up_to_the_horizon() -> None:
    assert HORIZON_S - TICK_S != HORIZON_S
    assert (HORIZON_S - TICK_S) / TICK_S == HORIZON_S / TICK_S - 1
