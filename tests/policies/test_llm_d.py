"""llm-d's predicted headroom."""

from __future__ import annotations

from collections import Counter

from helpers.builders import cluster, place, request, slo
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Why
from policies.choosing import chosen, placement


def queues(*prompts: int) -> Cluster:
    fleet = cluster(len(prompts))
    for number, tokens in enumerate(prompts):
        if tokens:
            place(request(number, prompt_tokens=tokens), fleet.ready[number])
    return fleet


def test_least_positive_headroom_is_likeliest() -> None:
    fleet = queues(800, 400, 3000)
    newcomers = [request(number, slo=slo(1.0, 0.1)) for number in range(400)]
    counts = Counter(chosen("llm_d", newcomer, fleet) for newcomer in newcomers)
    assert counts[2] == 0  # Negative.
    assert counts[0] > 4 * counts[1] > 0
    assert {chosen("llm_d:draws=off", newcomer, fleet) for newcomer in newcomers} == {0}


def test_strategy_most_spreads() -> None:
    fleet = queues(800, 400, 3000)
    assert chosen("llm_d:strategy=most,draws=off", request(9, slo=slo(1.0, 0.1)), fleet) == 1


def test_ttft_outweighs_tpot() -> None:
    """By .8 to .2: of two with room, the one whose first token is closer to late is the fuller one."""
    fleet = queues(600, 0)
    for number in range(20, 25):
        place(request(number, prompt_tokens=1), fleet.ready[1])  # A slower step, a sooner first token.
    newcomer = request(9, slo=slo(2.0, 0.1))
    assert chosen("llm_d:draws=off", newcomer, fleet) == 0
    assert chosen("llm_d:draws=off,ttft_weight=0", newcomer, fleet) == 1


def test_negative_headroom_prefers_an_idle_instance_then_the_least_shortfall() -> None:
    newcomer = request(9, prompt_tokens=500, slo=slo(0.1, 0.1))
    placed = placement("llm_d", newcomer, queues(900, 0, 700))
    assert placed.instance.id == 1
    assert placed.reason.why is Why.LEAST_HARM
    fleet = queues(900, 800, 100)
    assert chosen("llm_d:draws=off", newcomer, fleet) == 2
    counts = Counter(chosen("llm_d", request(number, slo=slo(0.01, 0.1)), fleet) for number in range(400))
    assert counts[2] > counts[1] > counts[0] > 0


def test_exploration_now_and_then_takes_what_has_no_headroom() -> None:
    fleet = queues(800, 3000)
    newcomers = [request(number, slo=slo(1.0, 0.1)) for number in range(1000)]
    assert Counter(chosen("llm_d", newcomer, fleet) for newcomer in newcomers)[1] == 0
    explored = Counter(chosen("llm_d:explore=0.01", newcomer, fleet) for newcomer in newcomers)[1]
    assert 2 <= explored <= 25
