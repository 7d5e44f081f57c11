"""Messages in, plans out, reports back: what both kinds of instance have in common."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.bodies import Bystander
from helpers.builders import SIMPLE, scheduler
from hyperflexis.adapters.sequences import sequence_of
from hyperflexis.adapters.stepping import StepOutcome, Stepping, step_rules
from hyperflexis.core.blocks import BlockPool
from hyperflexis.core.cadence import STEPS_MAX
from hyperflexis.core.latency import LatencyModel, OnlineLatency, StepHistory, StepShape
from hyperflexis.core.slo import Slo
from hyperflexis.core.step import StepRules, StepScheduler
from hyperflexis.wire.messages import FinishReason, Sampling, StepReport, Submit, TokenLogprobs


def submit(request: int = 1, prompt: int = 8, max_tokens: int = 4, **fields: Any) -> Submit:
    values = {"emitted": [], "sampling": Sampling(temperature=0.0), **fields}
    return Submit(request=request, prompt=[request * 100 + i for i in range(prompt)], max_tokens=max_tokens, **values)


def step(
    stepping: Stepping, now: float = 0.0, duration_s: float = 0.01, **outcome: Any
) -> tuple[StepReport, list[int]]:
    """Plan a step and report it; every sequence that samples gets token 7 unless said."""
    plan = stepping.scheduler.plan(now)
    failed = outcome.get("errors", {})
    sampled = {c.sequence.id: 7 for c in plan.chunks if c.samples and c.sequence.id not in failed}
    return stepping.report(plan, StepOutcome(**{"sampled": sampled, "duration_s": duration_s, **outcome}), now)


# -- rules


def test_rules_are_read_from_a_message() -> None:
    assert step_rules({"order": "arrival", "prefill_tokens_max": 7}) == StepRules(order="arrival", prefill_tokens_max=7)


def test_unknown_rule_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="prefil_tokens_max"):
        step_rules({"prefil_tokens_max": 7})


def test_impossible_rule_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        step_rules({"prefill_tokens_max": 0})


# -- submits


def test_durations_become_instants_of_the_local_clock() -> None:
    message = submit(waited_s=2.0, first_token_age_s=0.5, emitted=[5, 6], ttft_s=1.0, tpot_s=0.1, e2e_s=9.0, priority=3)
    sequence = sequence_of(message, now=50.0)
    assert (sequence.arrived_s, sequence.first_token_s) == (48.0, 49.5)
    assert sequence.tokens == [*message.prompt, 5, 6]
    assert (sequence.prompt_tokens, sequence.emitted, sequence.priority) == (8, 2, 3)
    assert sequence.slo == Slo(1.0, 0.1, 9.0)


def test_new_request_has_no_first_token() -> None:
    assert sequence_of(submit(waited_s=2.0), now=50.0).first_token_s is None


def test_sequence_has_tokens_of_its_own() -> None:
    """The scheduler appends to them; the message belongs to its sender."""
    message = submit()
    sequence_of(message, now=0.0).tokens.append(1)
    assert len(message.prompt) == 8


def test_stop_ids_are_taken_over() -> None:
    assert sequence_of(submit(sampling=Sampling(stop_ids=(3, 4))), now=0.0).stop_ids == frozenset({3, 4})


def test_prompt_whose_logprobs_are_wanted_is_computed_whole() -> None:
    assert sequence_of(submit(), now=0.0).reuses_prefix
    assert not sequence_of(submit(sampling=Sampling(prompt_logprobs=True)), now=0.0).reuses_prefix


# -- reports


def test_report_of_a_life() -> None:
    stepping = Stepping(scheduler(blocks=10, block_tokens=4), Bystander())
    assert stepping.submit(submit(prompt=8, max_tokens=2), now=0.0)
    first, ended = step(stepping)
    assert (first.requests, first.tokens, first.started, first.cached_tokens) == ([1], [7], [1], [0])
    assert (first.prefill_tokens, first.prefill_pairs, first.decode_seqs, first.context_tokens) == (8, 64, 0, 0)
    assert (first.finished, first.running_seqs, first.waiting_seqs, first.blocks_free) == ([], 1, 0, 8)
    assert ended == []
    second, ended = step(stepping)
    assert (second.requests, second.tokens, second.started) == ([1], [7], [])
    assert (second.prefill_tokens, second.decode_seqs, second.context_tokens) == (0, 1, 9)
    assert (second.finished, second.reasons) == ([1], [FinishReason.LENGTH])
    assert (second.running_seqs, second.blocks_free) == (0, 10)
    assert ended == [1]


def test_stop_id_is_said_as_the_reason() -> None:
    stepping = Stepping(scheduler(), Bystander())
    stepping.submit(submit(sampling=Sampling(stop_ids=(7,))), now=0.0)
    report, ended = step(stepping)
    assert (report.tokens, report.finished, report.reasons, ended) == ([7], [1], [FinishReason.STOP], [1])


def test_found_prefix_is_reported() -> None:
    stepping = Stepping(scheduler(block_tokens=4), Bystander())
    stepping.submit(submit(1, prompt=9, max_tokens=1), now=0.0)
    step(stepping)
    again = Submit(2, submit(1, prompt=9).prompt, [], 1, Sampling())
    stepping.submit(again, now=0.0)
    report, _ = step(stepping)
    assert (report.started, report.cached_tokens, report.prefill_tokens) == ([2], [8], 1)


def test_request_that_can_never_run_is_reported_as_failed_without_a_step() -> None:
    stepping = Stepping(scheduler(blocks=4, block_tokens=4), Bystander())
    assert not stepping.submit(submit(prompt=14, max_tokens=3), now=0.0)
    assert stepping.has_news()
    report, ended = stepping.report(stepping.scheduler.plan(0.0), StepOutcome({}, 0.0), 0.0)
    assert (report.finished, report.reasons) == ([1], [FinishReason.FAILED])
    assert "5 KV blocks and the instance has 4" in report.errors[1]
    assert ended == [], "it was never opened, so nobody has to close it"
    assert not stepping.has_news()


def test_impossible_promise_is_reported_as_failed() -> None:
    stepping = Stepping(scheduler(), Bystander())
    assert not stepping.submit(submit(ttft_s=-1.0), now=0.0)
    report, _ = step(stepping)
    assert "ttft_s" in report.errors[1]


def test_request_that_the_engine_refuses_is_reported_as_failed() -> None:
    stepping = Stepping(scheduler(blocks=10, block_tokens=4), Bystander())
    stepping.submit(submit(1), now=0.0)
    stepping.submit(submit(2), now=0.0)
    stepping.refuse(1, "a token outside the vocabulary")
    assert stepping.has_news()
    report, ended = step(stepping)
    assert (report.finished, report.reasons) == ([1], [FinishReason.FAILED])
    assert report.errors == {1: "a token outside the vocabulary"}
    assert (report.requests, ended) == ([2], [])
    assert not stepping.has_news()


def test_sequence_that_fails_in_a_step_is_dropped_and_reported() -> None:
    stepping = Stepping(scheduler(blocks=10, block_tokens=4), Bystander())
    for request in (1, 2):
        stepping.submit(submit(request), now=0.0)
    report, ended = step(stepping, errors={1: "not finite"})
    assert (report.requests, report.finished, report.reasons) == ([2], [1], [FinishReason.FAILED])
    assert (report.errors, ended) == ({1: "not finite"}, [1])
    stepping.scheduler.check()
    assert (report.running_seqs, report.blocks_free) == (1, 8)


def test_ends_and_failures_stand_side_by_side() -> None:
    stepping = Stepping(scheduler(blocks=10, block_tokens=4), Bystander())
    stepping.submit(submit(1, max_tokens=1), now=0.0)
    stepping.submit(submit(2), now=0.0)
    stepping.submit(submit(3, prompt=100), now=0.0)
    report, ended = step(stepping, errors={2: "not finite"})
    reasons = dict(zip(report.finished, report.reasons, strict=True))
    assert reasons == {1: FinishReason.LENGTH, 2: FinishReason.FAILED, 3: FinishReason.FAILED}
    assert report.errors.keys() == {2, 3}
    assert ended == [1, 2]


def test_logprobs_are_by_column_of_the_tokens() -> None:
    stepping = Stepping(scheduler(), Bystander())
    for request in (1, 2, 3):
        stepping.submit(submit(request), now=0.0)
    row = TokenLogprobs(7, -0.5, [7], [-0.5])
    report, _ = step(stepping, errors={1: "not finite"}, logprobs={3: row})
    assert report.requests[1] == 3
    assert report.logprobs == {1: row}


def test_prompt_logprobs_are_passed_on() -> None:
    stepping = Stepping(scheduler(), Bystander())
    stepping.submit(submit(1, sampling=Sampling(prompt_logprobs=True)), now=0.0)
    rows = [TokenLogprobs(7, -0.5, [], [])]
    report, _ = step(stepping, prompt_logprobs={1: rows})
    assert report.prompt_logprobs == {1: rows}


def test_preempted_are_reported() -> None:
    stepping = Stepping(scheduler(blocks=3, block_tokens=4), Bystander())
    stepping.submit(submit(1, prompt=4, max_tokens=8), now=0.0)
    stepping.submit(submit(2, prompt=4, max_tokens=8), now=0.0)
    reports = [step(stepping)[0] for _ in range(8)]
    assert [report.preempted for report in reports if report.preempted] == [[2]]


def test_steps_of_decodes_alone_are_told_a_few_at_a_time() -> None:
    stepping = Stepping(scheduler(blocks=1000, block_tokens=4), Bystander())
    stepping.submit(submit(1, max_tokens=3 * STEPS_MAX), now=0.0)
    reports = [step(stepping)[0] for _ in range(2 * STEPS_MAX + 4)]
    assert (reports[0].began, reports[0].steps) == ([1], 1)
    told = {number: report.steps for number, report in enumerate(reports) if report.steps}
    assert told == {0: 1, STEPS_MAX: STEPS_MAX, 2 * STEPS_MAX: STEPS_MAX}
    assert all(report.tokens == [7] for report in reports), "clients need not wait"
    stepping.submit(submit(2), now=0.0)
    report, _ = step(stepping)
    assert (report.began, report.steps) == ([2], 4), "three untold ones and this"


@pytest.mark.parametrize("news", ["end", "cancel", "failure", "preemption"])
def test_step_with_news_is_told_with_those_before_it(news: str) -> None:
    stepping = Stepping(scheduler(blocks=8, block_tokens=4), Bystander())
    stepping.submit(submit(1, prompt=8, max_tokens=5 if news == "end" else 24), now=0.0)
    if news == "preemption":
        stepping.submit(submit(2, prompt=8, max_tokens=24), now=0.0)
    assert step(stepping)[0].steps == 1
    quiet = [step(stepping)[0] for _ in range(8 if news == "preemption" else 3)]
    assert [report.steps for report in quiet] == [0] * len(quiet)
    if news == "cancel":
        stepping.cancel(1, 0.0)
        assert stepping.has_news()
    report, _ = step(stepping, errors={1: "not finite"} if news == "failure" else {})
    assert report.steps == len(quiet) + 1


def test_new_latency_model_is_reported_when_there_is_one() -> None:
    shape = StepShape(8, 64, 0, 0)
    latency = OnlineLatency(SIMPLE, StepHistory([(shape, 0.02), (StepShape(0, 0, 1, 10), 0.01)]))
    stepping = Stepping(StepScheduler(BlockPool(1000, 4), 4, latency), Bystander())
    stepping.submit(submit(max_tokens=200), now=0.0)
    reports = [step(stepping)[0] for _ in range(OnlineLatency.REFIT_STEPS)]
    assert all(report.latency is None for report in reports[:-1])
    assert reports[-1].latency is not None
    assert LatencyModel(**reports[-1].latency) == stepping.scheduler.latency.model
