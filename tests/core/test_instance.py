"""An instance's life is its table, and its modelled load is what was dispatched less what has ended."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helpers.builders import SIMPLE, capacity, decode, instance, place, request
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
    assert made.work_s == {1: pytest.approx(0.020)}
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
    first.emitted_tokens = 1
    made.begin_decoding(first)
    assert made.progress_tokens == 15
    second.emitted_tokens = 1
    made.begin_decoding(second)
    made.check()


def test_preempted_decode_waits_with_all_its_context_to_compute() -> None:
    made = instance()
    one = decode(request(1, prompt_tokens=20), made, emitted_tokens=5)
    assert made.context_tokens == 25
    made.fall_back(one)
    assert (made.context_tokens, list(made.waiting), made.work_s) == (0, [1], {1: pytest.approx(0.025)})
    made.check()
    one.emitted_tokens = 6
    made.begin_decoding(one)
    assert (made.context_tokens, list(made.decoding)) == (26, [1])
    made.check()


def test_running_step_is_assumed_to_repeat_until_the_instance_is_empty() -> None:
    made = instance()
    one = decode(request(1), made)
    made.observe_step(StepShape(0, 0, 1, 11), 0.011, now=5.0)
    assert made.step_end_s == pytest.approx(5.011)
    made.remove(one)
    assert made.step_end_s <= 5.0, "an idle instance has no step to wait for"


def test_check_finds_a_request_of_another_instance() -> None:
    made = instance(1)
    place(request(7), made).instance_id = 2
    with pytest.raises(AssertionError, match="i1 holds a request of 2"):
        made.check()


class LoadMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, the load is the sum over who is there."""

    @initialize()
    def start(self) -> None:
        self.instance = instance(block_tokens=4, blocks=20)
        self.requests: dict[int, Request] = {}
        self.count = 0

    @rule(prompt=st.integers(1, 40), shared=st.integers(0, 40))
    def dispatch(self, prompt: int, shared: int) -> None:
        text = [*range(min(shared, prompt)), *(1000 * (self.count + 1) + i for i in range(prompt - shared))]
        made = request(self.count, prompt_tokens=len(text), block_hashes=tuple(block_hashes(text, 4)))
        self.requests[made.id] = place(made, self.instance)
        assert 0 <= made.cached_tokens < len(text)
        self.count += 1

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), what=st.sampled_from(["token", "preempt", "end"]))
    def happen(self, data: st.DataObject, what: str) -> None:
        one = self.requests[data.draw(st.sampled_from(sorted(self.requests)))]
        decoding = one.id in self.instance.decoding
        if what == "token":
            one.emitted_tokens += 1
            if decoding:
                self.instance.context_tokens += 1
            else:
                self.instance.begin_decoding(one)
        elif what == "preempt" and decoding:
            self.instance.fall_back(one)
        elif what == "end":
            self.instance.remove(one)
            del self.requests[one.id]

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


TestLoadMachine = LoadMachine.TestCase
