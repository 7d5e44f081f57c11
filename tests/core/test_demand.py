"""What requests ask for, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.builders import SIMPLE, cluster, instance, request, slo
from hyperflexis.core.cluster import UNKNOWN_MOMENTS, Cluster
from hyperflexis.core.demand import Demand, demand_of

MODEL = replace(SIMPLE, context_token_s=1e-6, prefill_pair_s=1e-6)


def test_request_asks_for_its_prefill_its_decode_and_its_blocks() -> None:
    """100 tokens, and answers of 8 and 12: ten steps on average, on 100 x 10 + 104 / 2 tokens."""
    asked = demand_of(100, (10.0, 104.0), 0.05, instance(model=MODEL))
    assert asked.prefill_s == pytest.approx(MODEL.chunk_s(100, 0))
    assert asked.decode_s == pytest.approx(10 * 0.001 + 1052 * 1e-6)
    assert asked.kv_token_s == pytest.approx(1052 * 0.05)
    assert asked.prompt_tokens == 100


def test_looser_paces_than_the_cap_count_as_it() -> None:
    loose, none = (demand_of(100, (10.0, 100.0), pace_s, instance()) for pace_s in (0.2, math.inf))
    assert none == loose


def test_rate_is_the_difference_over_the_time() -> None:
    assert Demand(6.0, 4.0, 2.0, 1.0).rate(Demand(2.0, 2.0, 2.0, 0.0), 2.0) == Demand(2.0, 1.0, 0.0, 0.5)


def test_most_is_by_term() -> None:
    assert Demand(1.0, 4.0, 0.0, 3.0).most(Demand(2.0, 3.0, 0.0, 5.0)) == Demand(2.0, 4.0, 0.0, 5.0)


@given(st.lists(st.tuples(*[st.floats(0, 1e6)] * 4), max_size=10))
def test_sums_are_by_term(parts: list[tuple[float, float, float, float]]) -> None:
    total = Demand()
    for part in parts:
        total = total.plus(Demand(*part))
    assert total == pytest.approx(tuple(sum(part[index] for part in parts) for index in range(4)))


def test_arrivals_count_while_an_instance_is_ready_with_what_is_known_of_their_class() -> None:
    nobody = Cluster()
    nobody.observe_arrival(request())
    assert nobody.demand == Demand()
    made = cluster(2)
    made.observe_arrival(request(prompt_tokens=30, slo=slo(tpot_s=0.1)))
    first = demand_of(30, UNKNOWN_MOMENTS, 0.1, made.ready[0])
    assert made.demand == first
    for emitted in (8, 12):
        made.observe_length(request(tokens_before=emitted))
    made.observe_arrival(request(prompt_tokens=20))
    assert made.demand == first.plus(demand_of(20, (10.0, 104.0), math.inf, made.ready[0]))
