"""Since when demand is what it is."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from helpers.builders import instance, request
from hyperflexis.core.demand import Asked, Demand, arrived
from hyperflexis.core.recent import ENOUGH, FIRST, LONGEST_S, SAMPLE_S, SHORTEST_S, Known, Lately, Recent

ON = instance()


class Load:
    """Requests that come as evenly as they can; what is found every time it is looked at."""

    def __init__(self) -> None:
        self.recent, self.ledger, self.now = Recent(), {"": Asked()}, 0.0

    def comes(self, seconds: float, per_look: int, prompt_tokens: int = 100) -> list[Known | None]:
        found = []
        for _ in range(round(seconds / SAMPLE_S)):
            found.append(self.recent.look(self.ledger, [], ON, self.now))
            for _ in range(per_look):
                self.ledger = {"": self.ledger[""].plus(arrived(request(prompt_tokens=prompt_tokens), ON))}
            self.now += SAMPLE_S
        return found


def known(found: Known | None) -> Known:
    assert found is not None
    return found


def test_nothing_is_known_of_few_requests() -> None:
    found = Load().comes(5.0, per_look=10)
    assert found[: round(FIRST / 10)] == [None] * round(FIRST / 10)
    assert known(found[round(FIRST / 10)]).requests == pytest.approx(FIRST)


def test_load_that_stays_is_known_better_and_better() -> None:
    found = [each for each in Load().comes(2 * LONGEST_S, per_look=10) if each is not None]
    assert all(each.demand.prefill_s == pytest.approx(20 * 0.1) for each in found)
    assert all(one.requests <= two.requests + 1e-6 for one, two in itertools.pairwise(found))
    assert found[-1].requests == pytest.approx(20 * LONGEST_S)


@pytest.mark.parametrize(("per_look", "prompt_tokens"), [(5, 100), (20, 100), (10, 40), (10, 200)])
def test_shift_is_seen_as_soon_as_enough_has_come(per_look: int, prompt_tokens: int) -> None:
    load = Load()
    load.comes(50.0, per_look=10)
    found = load.comes(20.0, per_look=per_look, prompt_tokens=prompt_tokens)
    after = known(found[round(max(SHORTEST_S, 1.5 * ENOUGH / (2 * per_look)) / SAMPLE_S) + 1])
    assert after.requests < 3 * ENOUGH, "what was before is forgotten"
    asked_s = 2 * per_look * prompt_tokens * 0.001
    assert known(found[-1]).demand.prefill_s == pytest.approx(asked_s, rel=0.15)
    assert known(found[-1]).lately.prefill_s == pytest.approx(asked_s)


def test_large_requests_say_less() -> None:
    load, dice = Load(), random.Random(1)
    for _ in range(100):
        load.comes(SAMPLE_S, per_look=10, prompt_tokens=10)
        load.comes(SAMPLE_S, per_look=1, prompt_tokens=dice.choice([10, 1000]))
    last = known(load.comes(SAMPLE_S, per_look=0)[0])
    assert last.requests < 200


def test_it_is_due_every_so_often() -> None:
    recent = Recent()
    assert recent.is_due(0.0)
    recent.look({}, [], ON, 0.0)
    assert not recent.is_due(0.9 * SAMPLE_S)
    assert recent.is_due(SAMPLE_S)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 500), st.floats(SAMPLE_S, 40.0)), max_size=30))
def test_what_is_known_is_of_what_has_come(looks: list[tuple[int, int, float]]) -> None:
    """Whatever comes, and however seldom it is looked at."""
    load = Load()
    highest_s = 0.0
    for count, prompt_tokens, later_s in looks:
        for _ in range(count):
            load.ledger = {"": load.ledger[""].plus(arrived(request(prompt_tokens=prompt_tokens), ON))}
        load.now += later_s
        highest_s = max(highest_s, count * prompt_tokens * 0.001 / later_s)
        found = load.recent.look(load.ledger, [], ON, load.now)
        event("known" if found else "unknown")
        if found is not None:
            assert found.requests >= FIRST - 1e-6
            assert Demand() <= found.demand
            assert max(found.demand.prefill_s, found.lately.prefill_s) <= highest_s + 1e-6


def test_demand_of_a_window_is_spread_over_all_of_it() -> None:
    window, ledger, found = Lately(20.0), {"": Asked()}, []
    for look in range(80):
        found.append(window.look(ledger, [], ON, look * SAMPLE_S).prefill_s)
        if look < 40:
            ledger = {"": ledger[""].plus(arrived(request(prompt_tokens=100), ON))}
    assert found[20] == pytest.approx(20 * 0.1 / 20.0), "as if nothing had come before"
    assert found[40] == pytest.approx(40 * 0.1 / 20.0)
    assert found[60] == pytest.approx(20 * 0.1 / 20.0)
    assert found[79] == pytest.approx(1 * 0.1 / 20.0)
