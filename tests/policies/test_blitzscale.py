"""BlitzScale's bounds: up to the middle at once, down one by one, between them nothing."""

from __future__ import annotations

from policies.sizes import Asked


def test_up_to_the_middle_of_the_bounds() -> None:
    """Four seconds of prefill within one: 5 at .8 and 8 at .5."""
    asked = Asked("blitzscale")
    assert asked.at(0.0) == 2
    asked.cluster.due_work.add(2.0, 4.0)
    assert asked.at(1.0) == 7


def test_between_the_bounds_nothing_happens() -> None:
    asked = Asked("blitzscale", instances=6)
    asked.at(0.0)
    asked.cluster.due_work.add(2.0, 4.0)
    assert asked.at(1.0, 1.2) == 6


def test_down_one_by_one_after_some_time_without_load() -> None:
    asked = Asked("blitzscale:idle_s=10", instances=2)
    asked.at(0.0)
    asked.cluster.due_work.add(2.0, 4.0)
    assert asked.at(1.0) == 7
    assert asked.at(5.0, 10.9) == 7
    assert asked.at(11.0) == 6
    assert asked.at(20.9) == 6
    assert asked.at(21.0) == 5


def test_a_scale_moves_all_bounds() -> None:
    asked = Asked("blitzscale:scale=0.5")
    asked.at(0.0)
    asked.cluster.due_work.add(2.0, 4.0)
    assert asked.at(1.0) == 13
