"""ProServe: gain of tokens on time, GoRouting, and the sliding boundary inside."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.builders import cluster, place, request, scheduler, sequence, slo
from hyperflexis.core import dispatch
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.dispatch import Estimate
from hyperflexis.core.order import most_gain
from hyperflexis.core.step import Sequence
from hyperflexis.policies import create
from hyperflexis.policies.proserve import on_time
from policies.choosing import chosen


def predicted(ttft_s: float, peak_step_s: float) -> Estimate:
    made = dispatch.estimate(request(), cluster().ready[0], 10, 0.0)
    return replace(made, ttft_s=ttft_s, step_s=peak_step_s, peak_step_s=peak_step_s)


@pytest.mark.parametrize(
    ("ttft_s", "step_s", "share"),
    [
        (0.5, 0.1, 1.0),
        (1.0, 0.1, 1.0),
        (0.5, 0.2, 0.6),  # .5 s early, .1 s lost with each: the first and five more.
        (1.5, 0.05, 0.0),  # .5 s late, .05 s gained with each: the tenth is the last of ten.
        (1.25, 0.05, 0.5),
        (1.5, 0.1, 0.0),
        (1.5, 0.2, 0.0),
    ],
)
def test_share_of_tokens_on_time(ttft_s: float, step_s: float, share: float) -> None:
    assert on_time(request(slo=slo(1.0, 0.1)), predicted(ttft_s, step_s), 10) == pytest.approx(share)


def test_without_promises_everything_is_on_time() -> None:
    assert on_time(request(), predicted(100.0, 1.0), 10) == 1.0


def queues(*prompts: int) -> Cluster:
    fleet = cluster(len(prompts))
    for number, tokens in enumerate(prompts):
        if tokens:
            place(request(number, prompt_tokens=tokens), fleet.ready[number])
    return fleet


NEWCOMER = request(9, slo=slo(10.0, 1.0))


def test_all_light_the_idlest() -> None:
    assert chosen("proserve", NEWCOMER, queues(80, 40, 60)) == 1


def test_all_heavy_the_least_loaded() -> None:
    assert chosen("proserve", NEWCOMER, queues(4000, 3000, 2000)) == 2


def test_else_the_heaviest_acceptable() -> None:
    """An idle instance stays free for what will need it."""
    assert chosen("proserve:heavy_s=1", NEWCOMER, queues(0, 900, 500, 2000)) == 1
    assert chosen("proserve:heavy_s=0.6", NEWCOMER, queues(0, 900, 500, 2000)) == 2
    assert chosen("proserve:routing=least_tokens", NEWCOMER, queues(0, 900, 500, 2000)) == 0


def test_gain_comes_before_load() -> None:
    fleet = cluster(2)
    place(request(1, prompt_tokens=900, slo=slo(0.2, 1.0)), fleet.ready[1])
    assert chosen("proserve:heavy_s=1", request(9, slo=slo(2.0, 1.0)), fleet) == 1
    assert chosen("proserve:heavy_s=1", request(9, slo=slo(0.3, 1.0)), fleet) == 0


def ids(sequences: list[Sequence]) -> list[int]:
    return [each.id for each in sequences]


def waiting(*prompts_and_deadlines: tuple[int, float], priority: int = 0) -> list[Sequence]:
    made = []
    for number, (prompt, deadline_s) in enumerate(prompts_and_deadlines):
        each = sequence(number, prompt, priority=priority)
        each.deadline_s = deadline_s
        made.append(each)
    return made


def order(sequences: list[Sequence]) -> tuple[list[int], list[int]]:
    first, behind = most_gain(sequences, 0.0, 1.0, lambda each: each.left * 0.001)
    return ids(first), ids(behind)


def test_without_a_backlog_deadlines_decide() -> None:
    assert order(waiting((300, 1.0), (100, 2.0), (200, 3.0))) == ([0, 1, 2], [])


def test_urgent_work_goes_by_gain_per_second() -> None:
    assert order(waiting((400, 0.5), (200, 0.55), (100, 0.6), (50, 9.0))) == ([2, 1, 0, 3], [])


def test_priority_is_weight() -> None:
    sequences = waiting((300, 0.5), (200, 0.5))
    sequences[0].priority = 1
    assert order(sequences) == ([0, 1], [])


def test_late_work_goes_behind() -> None:
    assert order(waiting((900, 0.5), (200, 0.6))) == ([1], [0])


def test_the_engine_orders_by_gain_and_scales_its_budget() -> None:
    rules = create("proserve:slack_share=0.8", 2048).rules
    assert (rules.order, rules.sizing, rules.credit_spend_max, rules.slack_share) == ("gain", "slack", 1.0, 0.8)
    engine = scheduler(order="gain", sizing="fixed", prefill_tokens_max=10)
    engine.add(sequence(1, 30, slo=slo(0.05)))
    engine.add(sequence(2, 15, slo=slo(0.05)))
    plan = engine.plan(0.0)
    assert [chunk.sequence.id for chunk in plan.prefills] == [2]
    engine.check()


@pytest.mark.parametrize("slack_share", [0.5, 1.0])
def test_a_step_takes_its_share_of_the_slack(slack_share: float) -> None:
    engine = scheduler(order="gain", prefill_tokens_floor=1, slack_share=slack_share)
    engine.add(sequence(1, 8, slo=slo(1.0, 0.1)))
    engine.commit(engine.plan(0.0), {1: 5}, 0.0)
    engine.add(sequence(2, 200, slo=slo(9.0, 1.0)))
    (chunk,) = engine.plan(0.0).prefills
    # The next token is due after 97 ms; the decode takes 11 ms, and a prefill token one.
    assert chunk.tokens == int(97 * slack_share - 11 + 1e-9)
