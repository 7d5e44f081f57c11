"""Chiron: back-pressure of what is interactive, and batch work that waits until it has to be done."""

from __future__ import annotations

import pytest

from helpers.builders import place, request, slo
from policies.sizes import Asked


def test_pressure_is_brought_to_its_aim() -> None:
    """One instance's worth of prefill, of three at a third; of two at a half."""
    for pressure, expected in ((1 / 3, 3), (0.5, 2)):
        asked = Asked(f"chiron:pressure={pressure}")
        asked.at(0.0)
        asked.cluster.due_work.add(2.0, 10.0)
        assert asked.at(10.0) == expected


def test_fewer_after_a_cool_down() -> None:
    asked = Asked("chiron:pressure=0.5,cool_down_s=20", instances=4)
    asked.at(0.0)
    asked.cluster.due_work.add(2.0, 20.0)
    assert asked.at(10.0) == 4
    assert asked.at(29.0) == 4
    assert asked.at(30.0) == 0


@pytest.mark.parametrize(("within_s", "expected"), [(10_000.0, 2), (100.0, 4)])
def test_batch_work_counts_when_it_would_be_late(within_s: float, expected: int) -> None:
    """Some 400 seconds of prefill on two instances."""
    asked = Asked("chiron")
    for number in range(400):
        place(request(number, 1000, slo=slo(e2e_s=within_s)), asked.cluster.ready[number % 2])
    assert asked.at(0.0) == expected
