"""Our reading of the HFX abstract: budgets for new and running requests, priority, then least slack."""

from __future__ import annotations

import pytest

from helpers.builders import cluster, decode, place, request, scheduler, sequence, slo
from hyperflexis.core.commands import Why
from hyperflexis.policies import create
from hyperflexis.policies.hfx_faithful import CHOICES, MostBudget
from policies.choosing import chosen, placement


def test_budgets_of_a_newcomer() -> None:
    fleet = cluster(1)
    place(request(1, prompt_tokens=300, slo=slo(0.5)), fleet.ready[0])
    place(request(2, prompt_tokens=500, slo=slo(9.0)), fleet.ready[0])
    made = MostBudget(512, CHOICES["budget"])
    budget = made.budget(request(9, prompt_tokens=100, slo=slo(1.0, 0.05)), fleet.ready[0], 10, 0.25)
    # Work of 300 ms is ahead and 500 ms behind; its own is 100 ms and a step 10 ms; at the peak three decode.
    assert budget.ttft_s == pytest.approx(1.0 - 0.25 - 0.3 - 0.1 - 0.01 - fleet.ready[0].residual_s(0.25))
    assert budget.decode_s == pytest.approx(0.05 - 0.013)


def test_most_ttft_budget_wins() -> None:
    fleet = cluster(2)
    place(request(1, prompt_tokens=300, slo=slo(0.5)), fleet.ready[0])
    assert chosen("hfx_faithful", request(9, slo=slo(1.0, 0.05)), fleet) == 1


def test_work_of_higher_priority_is_ahead() -> None:
    fleet = cluster(2)
    place(request(1, prompt_tokens=300, slo=slo(5.0)), fleet.ready[0])
    place(request(2, prompt_tokens=200, slo=slo(9.0), priority=1), fleet.ready[1])
    assert chosen("hfx_faithful", request(9, slo=slo(1.0, 0.05)), fleet) == 0


def test_instance_without_decode_budget_is_avoided() -> None:
    fleet = cluster(2)
    for number in range(45):
        decode(request(number), fleet.ready[0])  # A step with one more takes 56 ms.
    place(request(80, prompt_tokens=500, slo=slo(0.6)), fleet.ready[1])
    assert chosen("hfx_faithful", request(90, slo=slo(5.0, 0.05)), fleet) == 1
    nowhere = placement("hfx_faithful", request(91, slo=slo(0.001, 0.05)), fleet)
    assert nowhere.reason.why is Why.LEAST_HARM


@pytest.mark.parametrize(("order", "expected"), [("slack", [4, 3, 1, 2]), ("timely_slack", [4, 1, 2, 3])])
def test_engine_orders_by_priority_then_least_slack(order: str, expected: list[int]) -> None:
    engine = scheduler(order=order, sizing="fixed", prefill_tokens_max=100, blocks=1000)
    engine.add(sequence(2, 10, slo=slo(0.5)))
    engine.add(sequence(1, 20, slo=slo(0.5)))
    engine.add(sequence(3, 50, slo=slo(0.03)))  # Cannot be in time even alone.
    engine.add(sequence(4, 10, slo=slo(9.0), priority=1))
    assert [chunk.sequence.id for chunk in engine.plan(0.0).prefills] == expected
    engine.check()


def test_running_requests_size_the_steps() -> None:
    rules = create("hfx_faithful", 2048).rules
    assert (rules.order, rules.sizing, rules.credit_spend_max) == ("slack", "slack", 0.0)
    assert create("hfx_faithful:late_last=on", 2048).rules.order == "timely_slack"
