"""Plans are data: a seed gives one, and its repr makes it again."""

from __future__ import annotations

from collections import Counter

from faults.plan import KINDS, Ask, Fault, Plan, Setting, draw

NAMES = {"Plan": Plan, "Setting": Setting, "Ask": Ask, "Fault": Fault}


def test_seed_gives_the_same_plan_each_time() -> None:
    assert all(draw(seed) == draw(seed) for seed in range(50))


def test_repr_makes_it_again() -> None:
    for seed in range(50):
        assert eval(repr(draw(seed)), NAMES) == draw(seed)


def test_every_kind_is_drawn() -> None:
    drawn = Counter(fault.kind for seed in range(500) for fault in draw(seed).faults)
    assert drawn.keys() == set(KINDS)
    assert min(drawn.values()) > 10, drawn
