"""Bytes per second, counted on a clock that only tests move."""

from __future__ import annotations

import pytest

from hyperflexis.transfer.pace import SAVED_S, Pace


class Clock:
    def __init__(self, late_s: float = 0.0) -> None:
        self.now_s = 100.0
        self.late_s = late_s

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds + self.late_s


@pytest.mark.parametrize("late_s", [0.0, 0.005])
def test_pieces_keep_the_pace_even_where_sleeps_last_too_long(late_s: float) -> None:
    clock = Clock(late_s)
    pace = Pace(1000.0, clock, clock.sleep)
    for _ in range(101):
        pace.wait(10)
    assert clock.now_s - 100.0 == pytest.approx(1.0, abs=SAVED_S + late_s)


def test_time_that_was_not_used_is_not_saved_up() -> None:
    clock = Clock()
    pace = Pace(1000.0, clock, clock.sleep)
    clock.now_s += 1000.0
    began_s = clock.now_s
    for _ in range(11):
        pace.wait(100)
    assert clock.now_s - began_s >= 1.0 - SAVED_S - 1e-9


def test_without_a_limit_nobody_waits() -> None:
    clock = Clock()
    pace = Pace(float("inf"), clock, clock.sleep)
    for _ in range(10):
        pace.wait(1 << 40)
    assert clock.now_s == 100.0


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_pace_that_is_none(wrong: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Pace(wrong)
