"""What every kind of instance keeps to, so that the runtime need not know which kind it has."""

from __future__ import annotations

import pytest

from adapters.fleets import GREEDY, Fleet, Heard, contract, submission
from hyperflexis.core.latency import LatencyModel
from hyperflexis.wire.messages import FinishReason, Sampling

PROMPT = [11, 12, 13, 14, 15]


@contract
async def test_becomes_ready_and_says_what_it_is(fleet: Fleet) -> None:
    heard = Heard()
    adapter = fleet.start(heard)
    assert heard.ready is None, "the listener is called from within the launch"
    ready = await heard.until_ready()
    assert ready.blocks >= 2
    assert ready.block_tokens == 16
    assert ready.seqs_max >= 1
    model = LatencyModel(**ready.latency)  # refuses what is negative or not finite
    assert model.prefill_base_s + model.prefill_token_s > 0
    assert model.decode_base_s + model.decode_seq_s + model.context_token_s > 0
    adapter.close()


@contract
async def test_reports_every_token_and_the_end(fleet: Fleet) -> None:
    heard = Heard()
    adapter = fleet.start(heard)
    ready = await heard.until_ready()
    adapter.submit(submission(5, PROMPT, 6))
    assert heard.reports == [], "the listener is called from within submit"
    await heard.until_finished(5)
    assert len(heard.tokens[5]) == 6
    assert heard.finished == {5: FinishReason.LENGTH}
    assert [report.started for report in heard.reports if report.started] == [[5]]
    if "steps" not in fleet.lacks:
        assert sum(report.prefill_tokens for report in heard.reports) == len(PROMPT)
        assert sum(report.decode_seqs for report in heard.reports) == 5
    assert all(report.duration_s > 0 for report in heard.reports)
    last = heard.reports[-1]
    assert (last.running_seqs, last.waiting_seqs, last.blocks_free) == (0, 0, ready.blocks)
    adapter.close()


@contract
async def test_two_instances_give_the_same_tokens(fleet: Fleet) -> None:
    heard, other = Heard(), Heard()
    adapter, second = fleet.start(heard), fleet.start(other)
    await heard.until_ready()
    await other.until_ready()
    for each in (adapter, second):
        each.submit(submission(1, PROMPT))
    await heard.until_finished(1)
    await other.until_finished(1)
    assert heard.tokens == other.tokens
    adapter.close()
    second.close()


@contract
async def test_many_at_once_get_what_each_gets_alone(fleet: Fleet) -> None:
    prompts = {number: [20 + number, *PROMPT, 40 + 3 * number] for number in range(6)}
    heard = Heard()
    adapter = fleet.start(heard)
    await heard.until_ready()
    for number, prompt in prompts.items():
        adapter.submit(submission(number, prompt, 5 + number))
    await heard.until_finished(*prompts)
    assert max(report.running_seqs for report in heard.reports) > 1
    for number, prompt in prompts.items():
        adapter.submit(submission(100 + number, prompt, 5 + number))
        await heard.until_finished(100 + number)
        assert heard.tokens[number] == heard.tokens[100 + number]
        assert len(heard.tokens[number]) == 5 + number
    adapter.close()


@contract
async def test_cancelled_work_stops_and_its_blocks_are_free(fleet: Fleet) -> None:
    heard = Heard()
    adapter = fleet.start(heard)
    ready = await heard.until_ready()
    adapter.submit(submission(1, PROMPT, fleet.long_tokens))
    await heard.until(lambda: len(heard.tokens.get(1, ())) >= 3)
    adapter.cancel(1)
    adapter.cancel(1)
    adapter.cancel(999)
    adapter.submit(submission(2, PROMPT, 30))
    await heard.until_finished(2)
    assert 1 not in heard.finished, "a cancelled request has no end"
    assert len(heard.tokens[1]) < fleet.long_tokens
    assert (heard.reports[-1].running_seqs, heard.reports[-1].blocks_free) == (0, ready.blocks)
    adapter.submit(submission(1, PROMPT, 4))
    await heard.until_finished(1)
    assert heard.finished[1] is FinishReason.LENGTH, "something of the cancelled request is still there"
    adapter.close()


@contract
async def test_submit_and_cancel_in_one_turn_leave_nothing(fleet: Fleet) -> None:
    heard = Heard()
    adapter = fleet.start(heard)
    ready = await heard.until_ready()
    adapter.submit(submission(1, PROMPT, fleet.long_tokens))
    adapter.cancel(1)
    adapter.submit(submission(2, PROMPT, 3))
    await heard.until_finished(2)
    assert 1 not in heard.tokens
    assert heard.reports[-1].blocks_free == ready.blocks
    adapter.close()


@contract
async def test_step_rules_are_put_in_force(fleet: Fleet) -> None:
    if "steps" in fleet.lacks:
        pytest.skip(fleet.lacks["steps"])
    heard = Heard()
    adapter = fleet.start(heard)
    await heard.until_ready()
    adapter.configure({"prefill_tokens_max": 32, "prefill_tokens_floor": 8})
    adapter.submit(submission(1, [1 + i for i in range(200)], 2))
    await heard.until_finished(1)
    prefills = [report.prefill_tokens for report in heard.reports if report.prefill_tokens]
    assert prefills == [32] * 6 + [8]
    adapter.close()


SAMPLINGS = {
    "greedy": GREEDY,
    "seeded": Sampling(temperature=1.0, seed=1234, top_p=0.95),
    "penalised": Sampling(temperature=0.7, seed=5, repetition_penalty=1.3),
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
@contract
async def test_resumed_request_goes_on_as_if_unbroken(fleet: Fleet, sampling: Sampling) -> None:
    if sampling.temperature and "draws" in fleet.lacks:
        pytest.skip(fleet.lacks["draws"])
    first, second = Heard(), Heard()
    adapter = fleet.start(first)
    await first.until_ready()
    adapter.submit(submission(1, PROMPT, 20, sampling=sampling))
    await first.until_finished(1)
    unbroken = first.tokens[1]
    adapter.close()
    elsewhere = fleet.start(second)
    await second.until_ready()
    for emitted in (1, 7, 19):
        elsewhere.submit(submission(emitted, PROMPT, 20, sampling=sampling, emitted=unbroken[:emitted], waited_s=1.0))
    await second.until_finished(1, 7, 19)
    for emitted in (1, 7, 19):
        assert second.tokens[emitted] == unbroken[emitted:]
    elsewhere.close()


@contract
async def test_stop_id_ends_a_request_with_itself(fleet: Fleet) -> None:
    heard = Heard()
    adapter = fleet.start(heard)
    await heard.until_ready()
    adapter.submit(submission(1, PROMPT, 12))
    await heard.until_finished(1)
    stop_id = heard.tokens[1][4]
    first_place = heard.tokens[1].index(stop_id)
    adapter.submit(submission(2, PROMPT, 12, sampling=Sampling(temperature=0.0, stop_ids=(stop_id,))))
    await heard.until_finished(2)
    assert heard.tokens[2] == heard.tokens[1][: first_place + 1]
    assert heard.finished[2] is FinishReason.STOP
    adapter.close()


@contract
async def test_request_that_is_too_large_fails_and_harms_nobody(fleet: Fleet) -> None:
    heard = Heard()
    adapter = fleet.start(heard)
    ready = await heard.until_ready()
    adapter.submit(submission(1, PROMPT, ready.blocks * ready.block_tokens))
    adapter.submit(submission(2, PROMPT, 4))
    await heard.until_finished(1, 2)
    assert heard.finished == {1: FinishReason.FAILED, 2: FinishReason.LENGTH}
    assert "KV blocks" in heard.errors[1]
    adapter.submit(submission(3, PROMPT, ready.blocks * ready.block_tokens))
    await heard.until_finished(3)
    adapter.close()


@contract
async def test_close_ends_it_silently(fleet: Fleet) -> None:
    heard = Heard()
    adapter = fleet.start(heard)
    await heard.until_ready()
    adapter.submit(submission(1, PROMPT, fleet.long_tokens))
    await heard.until(lambda: 1 in heard.tokens)
    reports = len(heard.reports)
    adapter.close()
    adapter.close()
    await fleet.gone(adapter)
    assert heard.lost == []
    assert len(heard.reports) == reports


@contract
async def test_close_before_it_is_ready(fleet: Fleet) -> None:
    heard, other = Heard(), Heard()
    fleet.start(heard).close()
    adapter = fleet.start(other)
    await other.until_ready()
    assert heard.ready is None
    assert heard.lost == []
    adapter.close()


@contract
async def test_death_is_heard_once_and_nothing_after_it(fleet: Fleet) -> None:
    if "deaths" in fleet.lacks:
        pytest.skip(fleet.lacks["deaths"])
    heard = Heard()
    adapter = fleet.start(heard)
    await heard.until_ready()
    adapter.submit(submission(1, PROMPT, fleet.long_tokens))
    await heard.until(lambda: 1 in heard.tokens)
    fleet.kill(adapter)
    assert fleet.death in await heard.until_lost()
    adapter.submit(submission(2, PROMPT))
    adapter.cancel(1)
    adapter.configure({})
    await fleet.gone(adapter)
    adapter.close()
    assert len(heard.lost) == 1
