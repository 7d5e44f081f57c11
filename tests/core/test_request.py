"""A request's life is its table: every move in it works, every other raises, and ends are final."""

from __future__ import annotations

import itertools
import math

import pytest

from helpers.builders import request, slo
from hyperflexis.core.request import ON_INSTANCE, TRANSITIONS, RequestState, RequestStep

TERMINAL = {RequestState.FINISHED, RequestState.CANCELLED, RequestState.REJECTED}


@pytest.mark.parametrize(("state", "step"), list(itertools.product(RequestState, RequestStep)))
def test_each_step_moves_as_in_the_table_or_raises(state: RequestState, step: RequestStep) -> None:
    made = request(3)
    made.state = state
    target = TRANSITIONS[state].get(step)
    if target is None:
        with pytest.raises(AssertionError, match=f"request 3 cannot {step.value} while {state.value}"):
            made.step(step)
        assert made.state is state
    else:
        made.step(step)
        assert made.state is target


def test_table_covers_all_states_and_ends_are_final() -> None:
    assert set(TRANSITIONS) == set(RequestState)
    assert {state for state in RequestState if not TRANSITIONS[state]} == TERMINAL


def test_every_state_is_reached_and_has_a_way_to_an_end() -> None:
    reached = {RequestState.QUEUED}
    for _ in RequestState:
        reached |= {target for state in reached for target in TRANSITIONS[state].values()}
    assert reached == set(RequestState)
    for state in set(RequestState) - TERMINAL:
        assert RequestStep.CANCEL in TRANSITIONS[state], "a client may leave at any time"


def test_whoever_is_on_an_instance_can_lose_it() -> None:
    for state in RequestState:
        assert (RequestStep.LOSE in TRANSITIONS[state]) == (state in ON_INSTANCE)
        may_be_queued = state in ON_INSTANCE or state is RequestState.IN_TRANSIT
        assert (RequestStep.REQUEUE in TRANSITIONS[state]) == may_be_queued


def test_context_is_prompt_and_what_was_emitted() -> None:
    assert request(prompt_tokens=7, tokens_before=3).context_tokens == 10


class Steps:
    """Counts what its test says."""

    decode_steps = 100


def test_tokens_are_counted_by_the_steps_of_where_it_decodes() -> None:
    made, steps = request(tokens_before=3), Steps()
    made.begin_counting(steps)
    assert made.emitted_tokens == 3
    steps.decode_steps += 16
    assert made.emitted_tokens == 19
    made.stop_counting()
    steps.decode_steps += 5
    assert (made.emitted_tokens, made.tokens_before) == (19, 19)
    made.begin_counting(steps)
    steps.decode_steps += 1
    assert made.emitted_tokens == 20


def test_first_deadline_is_the_sooner_promise() -> None:
    assert request(arrived_s=1.0, slo=slo(ttft_s=2.0, e2e_s=1.5)).first_deadline_s == 2.5
    assert request(arrived_s=1.0, slo=slo(tpot_s=2.0)).first_deadline_s == math.inf


def test_queue_key_is_priority_then_deadline_then_arrival_then_id() -> None:
    in_order = [
        request(9, arrived_s=5.0, priority=1),
        request(4, arrived_s=5.0, slo=slo(ttft_s=1.0)),
        request(5, arrived_s=4.0, slo=slo(ttft_s=3.0)),
        request(1, arrived_s=5.0, slo=slo(ttft_s=2.0)),
        request(2, arrived_s=5.0, slo=slo(ttft_s=2.0)),
        request(0, arrived_s=1.0),
        request(3, arrived_s=2.0),
    ]
    by_id = sorted(in_order, key=lambda each: each.id)
    assert sorted(by_id, key=lambda each: each.queue_key) == in_order


def test_verdict_needs_a_token() -> None:
    assert request().verdict("i0") is None


def test_verdict_tells_where_the_time_went() -> None:
    made = request(arrived_s=1.0, slo=slo(ttft_s=2.0, tpot_s=0.5), service_class="chat", priority=2)
    made.dispatched_s, made.prefill_started_s, made.first_token_s, made.last_token_s = 1.5, 2.0, 2.5, 4.0
    made.tokens_before, made.dispatches = 4, 3
    made.predicted_ttft_s, made.predicted_tpot_s = 1.2, 0.4
    told = made.verdict("i7")
    assert told is not None
    assert (told.service_class, told.priority, told.instance, told.migrations) == ("chat", 2, "i7", 2)
    assert told.attained
    assert (told.timeline.dispatched_s, told.timeline.prefill_started_s) == (1.5, 2.0)
    assert (told.timeline.ttft_s, told.timeline.tpot_s, told.timeline.e2e_s) == (1.5, 0.5, 3.0)
    assert (told.timeline.predicted_ttft_s, told.timeline.predicted_tpot_s) == (1.2, 0.4)


def test_verdict_fills_unknown_instants_with_the_latest_known_before_them() -> None:
    made = request(arrived_s=1.0)
    made.first_token_s = made.last_token_s = 3.0
    made.tokens_before = 1
    told = made.verdict("")
    assert told is not None
    assert (told.timeline.dispatched_s, told.timeline.prefill_started_s, told.migrations) == (1.0, 1.0, 0)
