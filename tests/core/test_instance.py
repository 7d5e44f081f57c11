"""An instance's life is its table, and its modelled load is what was dispatched less what has ended."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helpers.builders import SIMPLE, capacity, decode, instance, place, request, slo
from hyperflexis.core.instance import TRANSITIONS, Instance, InstanceState, InstanceStep, Role
from hyperflexis.core.latency import StepShape
from hyperflexis.core.prefix import block_hashes
from hyperflexis.core.request import Request


@pytest.mark.parametrize(("state", "step"), list(itertools.product(InstanceState, InstanceStep)))
def test_each_step_moves_as_in_the_table_or_raises(state: InstanceState, step: InstanceStep) -> None:
    made = Instance(3)
    made.state = state
    target = TRANSITIONS[state].get(step)
    if target is None:
        with pytest.raises(AssertionError, match=f"i3 cannot {step.value} while {state.value}"):
            made.step(step)
        assert made.state is state
    else:
        made.step(step)
        assert made.state is target


def test_table_covers_all_states_and_ends_are_final() -> None:
    assert set(TRANSITIONS) == set(InstanceState)
    ends = {state for state in InstanceState if not TRANSITIONS[state]}
    assert ends == {InstanceState.STOPPED, InstanceState.LOST}
    assert all(InstanceStep.LOSE in TRANSITIONS[state] for state in set(InstanceState) - ends)


def test_new_instance_is_mixed_empty_and_starting() -> None:
    made = Instance(4)
    assert (made.name, made.role, made.state, made.is_empty) == ("i4", Role.MIXED, InstanceState.STARTING, True)


def test_capacity_counts_blocks_upwards() -> None:
    assert [capacity(block_tokens=16).blocks_for(tokens) for tokens in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_request_counts_from_its_dispatch() -> None:
    made = instance()
    place(request(1, prompt_tokens=20), made)
    assert made.waiting_s() == pytest.approx(0.020)
    assert (made.planned_tokens, made.planned_blocks) == (30, 2)
    assert not made.is_empty
    assert made.dispatches == 1
    made.check()


def test_prefix_that_was_dispatched_before_needs_no_work() -> None:
    made = instance(block_tokens=4)
    hashes = tuple(block_hashes(range(22), 4))
    place(request(1, prompt_tokens=22, block_hashes=hashes), made)
    twin = request(2, prompt_tokens=22, block_hashes=hashes)
    assert made.cached_tokens(twin) == 20
    assert made.prefill_work_s(twin, 20) == pytest.approx(0.002)


def test_last_block_of_a_prompt_is_never_believed_cached_whole() -> None:
    """An instance computes the last token for its logits, and with it the block that it stands in."""
    made = instance(block_tokens=4)
    hashes = tuple(block_hashes(range(8), 4))
    place(request(1, prompt_tokens=8, block_hashes=hashes), made)
    assert made.cached_tokens(request(2, prompt_tokens=8, block_hashes=hashes)) == 4
    assert made.cached_tokens(request(3, prompt_tokens=9, block_hashes=hashes)) == 8


def test_progress_of_a_prefill_leaves_with_it() -> None:
    """What was computed of the first prompt is taken off when its first token is out; the second's stays."""
    made = instance()
    first, second = place(request(1, prompt_tokens=30), made), place(request(2, prompt_tokens=50), made)
    made.observe_step(StepShape(20, 400), 0.03, now=0.03)
    made.observe_step(StepShape(25, 0), 0.04, now=0.07)
    assert made.progress_tokens == 45
    made.begin_decoding(first)
    assert made.progress_tokens == 15
    assert made.waiting_s() == pytest.approx(0.050 - 0.015)
    made.begin_decoding(second)
    assert made.waiting_s() == 0.0
    made.check()


def test_preempted_decode_waits_with_all_its_context_to_compute() -> None:
    made = instance()
    one = decode(request(1, prompt_tokens=20), made, emitted_tokens=5)
    assert made.context_tokens == 25
    made.fall_back(one)
    assert (made.context_tokens, list(made.waiting), made.waiting_s()) == (0, [1], pytest.approx(0.025))
    made.check()
    made.begin_decoding(one)
    assert (made.context_tokens, list(made.decoding)) == (26, [1])
    made.check()


def test_rest_of_a_step_is_taken_from_the_report_then_from_steps_of_decodes() -> None:
    """Steps of decodes alone are told several at a time: those after the told one's successor are alike."""
    made = instance()
    one = decode(request(1), made)
    made.observe_step(StepShape(10, 100, 1, 11), 0.021, now=5.0)
    assert made.residual_s(5.005) == pytest.approx(0.016)
    assert made.residual_s(5.021 + 3 * 0.011 + 0.004) == pytest.approx(0.007)
    made.remove(one)
    assert made.residual_s(5.005) == 0.0, "an idle instance has no step to wait for"


def test_only_work_with_an_earlier_deadline_is_ahead() -> None:
    made = instance()
    for number, ttft_s in enumerate((3.0, 1.0, 2.0)):
        place(request(number, prompt_tokens=10 * (number + 1), slo=slo(ttft_s=ttft_s)), made)
    assert made.ahead_s(request(9, slo=slo(ttft_s=0.5))) == 0.0
    assert made.ahead_s(request(9, slo=slo(ttft_s=2.0))) == pytest.approx(0.020 + 0.030), "equals by id"
    assert made.ahead_s(request(0, slo=slo(ttft_s=2.0))) == pytest.approx(0.020)
    assert made.ahead_s(request(9)) == made.waiting_s() == pytest.approx(0.060)


def test_strictest_pace_is_of_what_is_here_now() -> None:
    made = instance()
    assert made.strictest_pace_s() == math.inf
    strict, loose = request(1, slo=slo(tpot_s=0.02)), request(2, slo=slo(tpot_s=0.2))
    twin = request(3, slo=slo(tpot_s=0.02))
    for each in (strict, loose, twin):
        place(each, made)
    assert made.strictest_pace_s() == 0.02
    made.remove(strict)
    assert made.strictest_pace_s() == 0.02
    made.remove(twin)
    assert made.strictest_pace_s() == 0.2


def test_answer_outgrows_its_plan_once_per_plan() -> None:
    made = instance()
    one = decode(request(1, prompt_tokens=20, max_tokens=3), made)
    assert made.outgrown() == []
    made.advance(2)
    assert made.outgrown() == [one]
    made.replan(one, 20 + 10)
    assert (made.planned_tokens, made.planned_blocks) == (30, 2)
    made.advance(6)
    assert made.outgrown() == []
    made.advance(1)
    assert made.outgrown() == [one]
    made.check()


def test_request_that_left_outgrows_nothing() -> None:
    made = instance()
    one = decode(request(1, prompt_tokens=20, max_tokens=3), made)
    made.remove(one)
    made.advance(50)
    assert made.outgrown() == []


def test_check_finds_a_request_of_another_instance() -> None:
    made = instance(1)
    place(request(7), made).instance_id = 2
    with pytest.raises(AssertionError, match="i1 holds a request of 2"):
        made.check()


TARGETS = st.sampled_from([None, 0.2, 0.5, 1.0])


class LoadMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, the load is the sum over who is there."""

    @initialize()
    def start(self) -> None:
        self.instance = instance(block_tokens=4, blocks=20)
        self.requests: dict[int, Request] = {}
        self.emitted: dict[int, int] = {}
        self.work_s: dict[int, float] = {}
        self.count = 0

    @rule(prompt=st.integers(1, 40), shared=st.integers(0, 40), data=st.data())
    def dispatch(self, prompt: int, shared: int, data: st.DataObject) -> None:
        text = [*range(min(shared, prompt)), *(1000 * (self.count + 1) + i for i in range(prompt - shared))]
        promise = slo(ttft_s=data.draw(TARGETS), tpot_s=data.draw(TARGETS))
        hashes = tuple(block_hashes(text, 4))
        made = request(self.count, prompt_tokens=len(text), block_hashes=hashes, slo=promise)
        self.emitted[made.id] = 0
        self.requests[made.id] = place(made, self.instance)
        assert 0 <= made.cached_tokens < len(text)
        self.work_s[made.id] = SIMPLE.chunk_s(len(text) - made.cached_tokens, made.cached_tokens)
        self.count += 1

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), what=st.sampled_from(["begin", "preempt", "end"]))
    def happen(self, data: st.DataObject, what: str) -> None:
        one = self.requests[data.draw(st.sampled_from(sorted(self.requests)))]
        decoding = one.id in self.instance.decoding
        if what == "begin" and not decoding:
            self.emitted[one.id] += 1
            self.instance.begin_decoding(one)
        elif what == "preempt" and decoding:
            self.instance.fall_back(one)
            self.work_s[one.id] = SIMPLE.chunk_s(one.context_tokens, 0)
        elif what == "end":
            self.instance.remove(one)
            del self.requests[one.id]
        assert one.emitted_tokens == self.emitted[one.id]

    @rule(steps=st.integers(0, 20))
    def advance(self, steps: int) -> None:
        self.instance.advance(steps)
        for request_id in self.instance.decoding:
            self.emitted[request_id] += steps
        for one in self.instance.outgrown():
            assert one.context_tokens >= one.planned_tokens
            self.instance.replan(one, one.context_tokens + steps + 1)

    @rule(tokens=st.integers(0, 200), seqs=st.integers(0, 4))
    def report(self, tokens: int, seqs: int) -> None:
        shape = StepShape(tokens, tokens**2, seqs, 10 * seqs)
        self.instance.observe_step(shape, SIMPLE.step_s(shape), 1.0)

    @invariant()
    def adds_up(self) -> None:
        if not hasattr(self, "instance"):
            return
        made = self.instance
        made.check()
        assert {*made.waiting, *made.decoding} == set(self.requests)
        assert made.is_empty == (not self.requests)
        assert made.progress_tokens >= 0
        assert made.waiting or not made.progress_tokens
        held = self.requests.values()
        assert {each.id: each.emitted_tokens for each in held} == {each.id: self.emitted[each.id] for each in held}
        assert made.context_tokens == sum(r.prompt_tokens + self.emitted[r.id] for r in made.decoding.values())
        assert made.planned_blocks == sum(made.capacity.blocks_for(each.planned_tokens) for each in held)
        assert all(r.context_tokens < r.planned_tokens or r.id in made.waiting for r in held), "it outgrew its plan"
        assert made.strictest_pace_s() == min(
            (r.slo.tpot_s for r in held if r.slo.tpot_s is not None), default=math.inf
        )
        asked = request(self.count + 1, slo=slo(ttft_s=0.5))
        for limit, seen_s in ((asked.first_deadline_s, made.ahead_s(asked)), (math.inf, made.waiting_s())):
            ahead = [r for r in made.waiting.values() if r.first_deadline_s <= limit]
            work_s = sum(self.work_s[r.id] for r in ahead) - SIMPLE.prefill_token_s * made.progress_tokens
            assert seen_s == pytest.approx(max(0.0, work_s))


TestLoadMachine = LoadMachine.TestCase
