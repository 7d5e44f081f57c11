"""Peers take turns, costs stay within the budget, nobody is starved."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.transfer.turns import Turns


def drained(turns: Turns[str], count: int) -> list[str]:
    found = []
    for _ in range(count):
        taken = turns.take()
        assert taken is not None
        found.append(taken[0])
        turns.done(taken[1])
    return found


def test_peers_take_turns_however_much_one_asks() -> None:
    turns: Turns[str] = Turns()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        turns.put(item[0], item)
    assert drained(turns, 6) == ["a1", "b1", "c1", "a2", "b2", "a3"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 30)), max_size=30))
def test_budget_holds_and_each_line_keeps_its_order(items: list[tuple[str, float]]) -> None:
    turns: Turns[tuple[str, int]] = Turns(10.0)
    for index, (peer, cost) in enumerate(items):
        turns.put(peer, (peer, index), cost)
    seen: dict[str, list[int]] = {}
    for _ in items:
        taken = turns.take()
        assert taken is not None
        (peer, index), cost = taken
        assert cost <= 10.0
        seen.setdefault(peer, []).append(index)
        turns.done(cost)
    assert all(line == sorted(line) for line in seen.values())


def test_large_item_is_not_overtaken() -> None:
    turns: Turns[str] = Turns(10.0)
    for item, cost in (("small", 4.0), ("large", 9.0), ("tiny", 1.0)):
        turns.put(item, item, cost)
    assert turns.take() == ("small", 4.0)
    taken: list[object] = []
    waiting = threading.Thread(target=lambda: taken.append(turns.take()))
    waiting.start()
    turns.done(4.0)
    waiting.join(10)
    assert taken == [("large", 9.0)]


def test_removed_item_is_not_served() -> None:
    turns: Turns[str] = Turns()
    turns.put("a", "a1")
    turns.put("a", "a2")
    assert turns.remove("a", "a1")
    assert not turns.remove("a", "a1")
    assert not turns.remove("b", "a1")
    assert drained(turns, 1) == ["a2"]


def test_closing_lets_everybody_go() -> None:
    turns: Turns[str] = Turns()
    taken: list[object] = []
    waiting = threading.Thread(target=lambda: taken.append(turns.take()))
    waiting.start()
    assert turns.close() == []
    waiting.join(10)
    assert taken == [None]
    assert not turns.put("a", "late")
    assert turns.take() is None


def test_closing_returns_what_waited() -> None:
    turns: Turns[str] = Turns()
    turns.put("a", "a1")
    turns.put("b", "b1")
    assert turns.close() == ["a1", "b1"]
