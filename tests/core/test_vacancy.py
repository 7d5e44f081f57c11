"""When somebody will have ended: as it comes about, remembered for a moment, and nothing where nobody is there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.builders import cluster, request
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.vacancy import REMEMBERED_S, Vacancy

PROMPT_TOKENS = 10


def place(fleet: Cluster, number: int, instance_id: int, answer_tokens: int, *, decodes: bool = True) -> None:
    one = request(number, prompt_tokens=PROMPT_TOKENS, max_tokens=answer_tokens)
    instance = fleet.instances[instance_id]
    instance.place(one, PROMPT_TOKENS + answer_tokens, 0.0)
    if decodes:
        instance.begin_decoding(one)


def test_nobody_there() -> None:
    assert Vacancy(cluster(2)).wait_s(5.0) == 0.0


def test_the_shortest_rest_counts() -> None:
    fleet = cluster(2)
    for number, (instance_id, answer_tokens) in enumerate([(0, 100), (0, 40), (1, 60)]):
        place(fleet, number, instance_id, answer_tokens)
    steps_s = [fleet.instances[i].latency.decode_step_s(n, n * (PROMPT_TOKENS + 1)) for i, n in ((0, 2), (1, 1))]
    assert Vacancy(fleet).wait_s(0.0) == pytest.approx(min(39 * steps_s[0], 59 * steps_s[1]), abs=steps_s[0])


def test_what_waits_is_computed_before() -> None:
    fleet = cluster()
    place(fleet, 0, 0, 10)
    alone_s = Vacancy(fleet).wait_s(0.0)
    place(fleet, 1, 0, 500, decodes=False)
    assert Vacancy(fleet).wait_s(0.0) >= alone_s + fleet.instances[0].waiting_s() > alone_s


def test_nothing_decodes_yet() -> None:
    fleet = cluster()
    place(fleet, 0, 0, 20, decodes=False)
    assert Vacancy(fleet).wait_s(0.0) > fleet.instances[0].waiting_s()


@given(st.floats(0.0, 0.9 * REMEMBERED_S))
def test_answer_is_remembered_as_an_instant(later_s: float) -> None:
    fleet = cluster()
    place(fleet, 0, 0, 100)
    vacancy = Vacancy(fleet)
    wait_s = vacancy.wait_s(7.0)
    place(fleet, 1, 0, 2)
    assert vacancy.wait_s(7.0 + later_s) == pytest.approx(wait_s - later_s)
    assert vacancy.wait_s(7.0 + REMEMBERED_S) < wait_s - REMEMBERED_S
