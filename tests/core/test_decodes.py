"""Sequences that decode together, against a plain list of them in which every token is counted one by one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helpers.builders import sequence
from hyperflexis.core import budget
from hyperflexis.core.decodes import Decodes
from hyperflexis.core.step import Sequence

PACES = st.sampled_from([None, 0.02, 0.03, 0.2])


@dataclass
class Naive:
    """One decode, counted by hand."""

    sequence: Sequence
    emitted: int

    @property
    def context_tokens(self) -> int:
        return self.sequence.prompt_tokens + self.emitted

    def slack_s(self, now: float) -> float:
        assert self.sequence.pace_s is not None
        return self.sequence.anchor_s + self.emitted * self.sequence.pace_s - now


class DecodesMachine(RuleBasedStateMachine):
    """They join, leave and advance in any order."""

    @initialize(block_tokens=st.sampled_from([1, 2, 4, 16]))
    def start(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.decodes = Decodes(block_tokens)
        self.naive: dict[int, Naive] = {}
        self.left: dict[int, Naive] = {}
        self.count = 0

    @rule(
        prompt=st.integers(1, 40),
        emitted=st.integers(1, 20),
        longest=st.integers(1, 60),
        pace_s=PACES,
        anchor_s=st.floats(-2.0, 2.0),
    )
    def join(self, prompt: int, emitted: int, longest: int, pace_s: float | None, anchor_s: float) -> None:
        each = sequence(self.count, prompt, emitted + longest)
        each.count(emitted)
        each.pace_s = pace_s
        each.anchor_s = anchor_s if pace_s is not None else math.inf
        self.naive[each.id] = Naive(each, emitted)
        self.count += 1
        self.decodes.join(each)

    @precondition(lambda self: self.naive)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.naive)))
        self.left[number] = self.naive.pop(number)
        self.decodes.leave(self.left[number].sequence)

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        """After a preemption: its next token is out."""
        number = data.draw(st.sampled_from(sorted(self.left)))
        each = self.naive[number] = self.left.pop(number)
        each.emitted += 1
        each.sequence.count(each.emitted)
        self.decodes.join(each.sequence)

    @rule(steps=st.integers(0, 20))
    def advance(self, steps: int) -> None:
        self.decodes.advance(steps)
        for each in self.naive.values():
            each.emitted += steps

    @rule(steps=st.integers(1, 40))
    def cover_what_the_next_steps_fill(self, steps: int) -> None:
        """First for one step, as a plan does, and then for all that were taken."""
        before = sum(self.blocks(each, 0) for each in self.naive.values())
        taken = self.decodes.cover(1) + self.decodes.cover(steps)
        assert taken == sum(self.blocks(each, steps) for each in self.naive.values()) - before
        for each in self.naive.values():
            assert self.decodes.blocks_covered(each.sequence) == self.blocks(each, steps)
        self.advance(steps)

    def blocks(self, each: Naive, steps: int) -> int:
        """That hold all its tokens but the last after so many steps more."""
        return -(-(each.context_tokens + steps - 1) // self.block_tokens)

    @rule(now=st.floats(-2.0, 4.0), step_s=st.sampled_from([0.001, 0.019, 0.025, 0.1]))
    def least_slack_is_of_those_that_are_not_lost(self, now: float, step_s: float) -> None:
        slacks_s = [math.inf]
        for each in self.naive.values():
            pace_s = each.sequence.pace_s
            left = each.sequence.max_tokens - each.emitted
            if pace_s is not None:
                due_s = now + each.slack_s(now)
                if not budget.is_decode_lost(due_s, now, pace_s, left, step_s):
                    slacks_s.append(each.slack_s(now))
        assert self.decodes.slack_s(now, step_s) == pytest.approx(min(slacks_s), abs=1e-9)

    @rule(ahead=st.integers(0, 40))
    def those_that_need_a_block_are_those_whose_blocks_are_full(self, ahead: int) -> None:
        """The last token's KV is not there yet: all before it fill whole blocks, now or so many steps from now."""
        crossing = {each.id for each in self.decodes.crossing(ahead)}
        computed = {number: each.context_tokens + ahead - 1 for number, each in self.naive.items()}
        assert crossing == {number for number, tokens in computed.items() if tokens % self.block_tokens == 0}

    @invariant()
    def counts_are_those_of_a_list(self) -> None:
        if not hasattr(self, "decodes"):
            return
        self.decodes.check()
        assert set(self.decodes.sequences) == set(self.naive)
        assert len(self.decodes) == len(self.naive)
        assert self.decodes.context_tokens == sum(each.context_tokens for each in self.naive.values())
        for number, each in {**self.naive, **self.left}.items():
            assert (number in self.decodes.sequences) == (number in self.naive)
            assert (each.sequence.emitted, each.sequence.context_tokens) == (each.emitted, each.context_tokens)
            assert each.sequence.computed == each.context_tokens - 1
        paces = [each.sequence.pace_s for each in self.naive.values() if each.sequence.pace_s is not None]
        assert self.decodes.strictest_pace_s() == min(paces, default=math.inf)


TestDecodesMachine = DecodesMachine.TestCase


def test_nobody_binds_where_nobody_decodes() -> None:
    decodes = Decodes(4)
    assert decodes.slack_s(0.0, 0.01) == decodes.strictest_pace_s() == math.inf
    assert not decodes.crossing()


def test_decode_that_is_lost_does_not_hide_one_of_its_pace_that_is_not() -> None:
    decodes = Decodes(4)
    for number, anchor_s in enumerate((-5.0, 0.0)):
        each = sequence(number, max_tokens=9)
        each.count(1)
        each.pace_s, each.anchor_s = 0.1, anchor_s
        decodes.join(each)
    assert decodes.slack_s(0.0, 0.05) == pytest.approx(0.1)
