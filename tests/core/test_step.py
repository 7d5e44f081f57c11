"""What enters a step: hand-made cases for each rule, and random worlds in which nothing may be lost or stuck."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from helpers.builders import SIMPLE, scheduler, sequence, slo
from hyperflexis.core import budget
from hyperflexis.core.latency import LatencyModel
from hyperflexis.core.prefix import extend_hashes
from hyperflexis.core.slo import Slo
from hyperflexis.core.step import RECONSIDER_S, Sequence, StepPlan, StepRules, StepScheduler

STOP = 7
"""A token that random prompts and honest outputs never contain."""


class Before(NamedTuple):
    """What the rules are about, as it was before the plan was made."""

    running: set[int]
    slacks_s: dict[int, float]
    """Of decodes that are not lost."""
    factor: float
    has_blocks: bool
    """Whether every decode can have the block that it needs."""


@dataclass
class Honest:
    """An engine that checks every step before it "computes" it, and knows what each block of KV really holds."""

    scheduler: StepScheduler
    now: float = 0.0
    stops: dict[int, int] = field(default_factory=dict)
    """Sequence id → the number of the output token at which it stops by a stop id."""
    seen: dict[int, Sequence] = field(default_factory=dict)
    finished: dict[int, bool] = field(default_factory=dict)
    preemptions: int = 0
    steps: int = 0
    _started: set[int] = field(default_factory=set)
    _kv: dict[tuple[int, int], int] = field(default_factory=dict)
    """(block, offset) → a digest of the text up to and with that token."""

    def add(self, sequence_: Sequence) -> None:
        self.scheduler.add(sequence_)
        self.seen[sequence_.id] = sequence_
        self.scheduler.check()

    def cancel(self, sequence_id: int) -> None:
        assert self.scheduler.cancel(sequence_id) == (sequence_id in self.seen and sequence_id not in self.finished)
        self.seen.pop(sequence_id, None)
        self.scheduler.check()

    @property
    def live(self) -> list[Sequence]:
        return [each for each in self.seen.values() if each.id not in self.finished]

    def step(self) -> StepPlan:
        """One step of exactly the predicted length."""
        before = self._before()
        plan = self.scheduler.plan(self.now)
        self.scheduler.check()
        self._check(plan, before)
        sampled = {}
        for chunk in plan.chunks:
            self._compute(chunk.sequence, chunk.start, chunk.tokens)
            if chunk.samples:
                sampled[chunk.sequence.id] = self._token(chunk.sequence)
        shape = plan.shape
        duration_s = self.scheduler.latency.model.step_s(shape)
        self.now += duration_s
        self.steps += 1
        self.preemptions += len(plan.preempted)
        for end in self.scheduler.commit(plan, sampled, self.now):
            assert end.sequence_id not in self.finished
            self.finished[end.sequence_id] = end.by_stop
        self.scheduler.check()
        if plan.chunks:
            self.scheduler.observe(shape, duration_s)
        return plan

    def run(self, steps_max: int) -> None:
        """Step until nothing is left."""
        for _ in range(steps_max):
            if not self.scheduler.is_idle():
                self.step()
        assert self.scheduler.is_idle(), f"not done after {steps_max} steps: {self.scheduler!r}"

    def _token(self, sequence_: Sequence) -> int:
        if self.stops.get(sequence_.id) == sequence_.emitted + 1:
            return STOP
        return 100 + sequence_.emitted

    # -- checks of one plan

    def _before(self) -> Before:
        running = self.scheduler.decodes.sequences
        pool, latency = self.scheduler.pool, self.scheduler.latency
        context = sum(len(each.tokens) for each in running.values())
        alone_s = latency.decode_step_s(len(running), context)
        slacks = {
            each.id: each.due_s() - self.now
            for each in running.values()
            if each.pace_s is not None
            and not budget.is_decode_lost(each.due_s(), self.now, each.pace_s, each.max_tokens - each.emitted, alone_s)
        }
        missing = sum(pool.blocks_for(len(each.tokens)) > len(each.blocks) for each in running.values())
        return Before(
            running=set(running),
            slacks_s=slacks,
            factor=latency.correction.factor("mixed"),
            has_blocks=missing <= pool.blocks_free,
        )

    def _check(self, plan: StepPlan, before: Before) -> None:
        rules, pool = self.scheduler.rules, self.scheduler.pool
        assert bool(plan.chunks) == bool(self.live), f"work exists and the plan is empty: {self.scheduler!r}"
        ids = [chunk.sequence.id for chunk in plan.chunks]
        assert len(ids) == len(set(ids)), "one sequence stands twice in a step"
        assert {chunk.sequence.id for chunk in plan.decodes} == set(self.scheduler.decodes.sequences), (
            "a decode was left out"
        )
        assert set(plan.preempted).isdisjoint(chunk.sequence.id for chunk in plan.decodes)
        self._started -= set(plan.preempted)
        started = dict(plan.started)
        assert set(started) == set(ids) - self._started, "every prefill that begins, and no other, is said to begin"
        self._started |= set(ids)
        for chunk in plan.chunks:
            assert chunk.sequence.context_tokens == len(chunk.sequence.tokens)
            assert chunk.start == started.get(chunk.sequence.id, chunk.start)
            assert chunk.tokens > 0
            assert chunk.start == chunk.sequence.computed
            assert chunk.start + chunk.tokens <= len(chunk.sequence.tokens)
            assert chunk.samples == (chunk.start + chunk.tokens == len(chunk.sequence.tokens))
            assert pool.blocks_for(chunk.start + chunk.tokens) <= len(chunk.sequence.blocks)
        assert sum(bool(each.blocks) for each in self.live) <= self.scheduler.seqs_max
        prefill_tokens = plan.shape.prefill_tokens
        assert prefill_tokens <= rules.prefill_tokens_max
        lost_decodes = before.running - set(self.scheduler.decodes.sequences)
        if before.has_blocks and len({each.priority for each in self.live}) == 1:
            assert not lost_decodes, "a decode was preempted although blocks sufficed"
        if rules.sizing == "slack" and plan.decodes and prefill_tokens > self._floors(plan):
            slack_s = min((before.slacks_s.get(c.sequence.id, math.inf) for c in plan.decodes), default=math.inf)
            predicted_s = self.scheduler.latency.model.step_s(plan.shape) * before.factor
            assert predicted_s <= budget.SAFETY * slack_s * (1 + 1e-9), "the step budget is exceeded"

    def _floors(self, plan: StepPlan) -> int:
        """The most tokens that are due whatever the budget: a floor for the first, one more if someone starves."""
        rules = self.scheduler.rules
        return rules.floor * (1 + any(c.sequence.deadline_s + rules.starvation_s < self.now for c in plan.prefills))

    def _compute(self, sequence_: Sequence, start: int, tokens: int) -> None:
        """Read the KV of everything before the chunk, write the chunk's; both must be this very text's."""
        digest, size = 0, self.scheduler.pool.block_tokens
        for position, token in enumerate(sequence_.tokens[: start + tokens]):
            digest = hash((digest, token))
            slot = (sequence_.blocks[position // size], position % size)
            if position < start:
                assert self._kv.get(slot) == digest, f"sequence {sequence_.id} reads another's KV at {position}"
            else:
                self._kv[slot] = digest


# One rule at a time.


def test_empty_scheduler_plans_nothing() -> None:
    assert scheduler().plan(0.0).chunks == []


def test_prefill_then_decodes_until_max_tokens() -> None:
    engine = Honest(scheduler())
    engine.add(sequence(0, prompt=8, max_tokens=3))
    plans = [engine.step() for _ in range(3)]
    assert [(p.shape.prefill_tokens, len(p.decodes)) for p in plans] == [(8, 0), (0, 1), (0, 1)]
    assert engine.finished == {0: False}
    assert engine.seen[0].emitted == 3
    assert engine.scheduler.is_idle()
    assert engine.scheduler.pool.blocks_free == 100


def test_stop_id_ends_a_sequence_early() -> None:
    engine = Honest(scheduler(), stops={0: 2})
    engine.add(sequence(0, max_tokens=9, stop_ids=frozenset({STOP})))
    engine.run(2)
    assert engine.finished == {0: True}
    assert engine.seen[0].emitted == 2


def test_request_larger_than_the_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 4 KV blocks and the instance has 3"):
        scheduler(blocks=3, block_tokens=4).add(sequence(prompt=9, max_tokens=4))


def test_request_of_exactly_the_pool_runs() -> None:
    engine = Honest(scheduler(blocks=3, block_tokens=4))
    engine.add(sequence(prompt=8, max_tokens=4))
    engine.run(4)


def test_cancel_frees_blocks_and_is_false_when_gone() -> None:
    made = scheduler(blocks=10)
    made.add(sequence(0))
    made.plan(0.0)
    assert made.pool.blocks_free == 8
    assert made.cancel(0)
    assert made.pool.blocks_free == 10
    assert not made.cancel(0)


def test_rules_refuse_empty_steps() -> None:
    with pytest.raises(ValueError, match="prefill_tokens_max"):
        StepRules(prefill_tokens_max=0)
    with pytest.raises(ValueError, match="prefill_tokens_floor"):
        StepRules(prefill_tokens_floor=0)
    with pytest.raises(ValueError, match="at least one sequence"):
        scheduler(seqs_max=0)


def test_long_prompt_is_cut_at_the_step_maximum() -> None:
    engine = Honest(scheduler(prefill_tokens_max=6))
    engine.add(sequence(0, prompt=14, max_tokens=1))
    assert [engine.step().shape.prefill_tokens for _ in range(3)] == [6, 6, 2]


def test_chunk_is_sized_by_the_tightest_decode() -> None:
    """.95 of the slack, less the step's fixed part and the decode itself, at a millisecond per token."""
    engine = Honest(scheduler(prefill_tokens_floor=1))
    engine.add(sequence(0, max_tokens=9, slo=slo(tpot_s=0.1)))
    engine.step()
    engine.add(sequence(1, prompt=300))
    assert engine.step().shape.prefill_tokens == int((0.95 * 0.097 - 0.011) / 0.001 + 1e-9) == 81


def test_fixed_sizing_looks_at_no_decode() -> None:
    engine = Honest(scheduler(sizing="fixed", prefill_tokens_max=200))
    engine.add(sequence(0, max_tokens=9, slo=slo(tpot_s=0.1)))
    engine.step()
    engine.add(sequence(1, prompt=300))
    assert engine.step().shape.prefill_tokens == 200


@pytest.mark.parametrize("sizing", ["slack", "fixed"])
@pytest.mark.parametrize(("decodes", "tokens"), [(0, [40]), (3, [37]), (0, [25, 15]), (3, [25, 12])])
def test_step_is_not_longer_than_it_may_be(sizing: str, decodes: int, tokens: list[int]) -> None:
    """50 ms, of which 10 are fixed and 1 goes to each decode, are so many tokens of prefill."""
    engine = Honest(scheduler(prefill_tokens_floor=1, step_s_max=0.05 + 1e-9, sizing=sizing))
    for number in range(decodes):
        engine.add(sequence(10 + number, prompt=2, max_tokens=90))
    if decodes:
        engine.step()
    prompts = [100] if len(tokens) == 1 else [25, 100]
    for number, prompt in enumerate(prompts):
        engine.add(sequence(number, prompt=prompt, slo=slo(ttft_s=1.0 + number)))
    plan = engine.step()
    assert [chunk.tokens for chunk in plan.prefills] == tokens
    assert len(plan.decodes) == decodes


def test_bound_on_steps_leaves_the_first_prefill_its_floor() -> None:
    engine = Honest(scheduler(prefill_tokens_floor=5, step_s_max=0.001))
    for number in range(2):
        engine.add(sequence(number, prompt=30))
    assert [chunk.tokens for chunk in engine.step().prefills] == [5]
    with pytest.raises(ValueError, match="step_s_max must be above 0"):
        StepRules(step_s_max=0.0)


def test_floor_is_given_to_the_first_only_however_tight_decodes_are() -> None:
    engine = Honest(scheduler(prefill_tokens_floor=5))
    engine.add(sequence(0, max_tokens=9, slo=slo(tpot_s=0.012)))
    engine.step()
    engine.add(sequence(1, prompt=20))
    engine.add(sequence(2, prompt=20))
    assert [(chunk.sequence.id, chunk.tokens) for chunk in engine.step().prefills] == [(1, 5)]


def test_lost_decode_does_not_bind_the_step() -> None:
    """A decode that cannot keep its pace even alone leaves the step to prefills."""
    engine = Honest(scheduler(prefill_tokens_floor=1))
    engine.add(sequence(0, max_tokens=9, slo=slo(tpot_s=0.005)))
    engine.step()
    engine.add(sequence(1, prompt=300))
    assert engine.step().shape.prefill_tokens == 300


def test_steps_longer_than_predicted_shrink_chunks() -> None:
    engine = Honest(scheduler(prefill_tokens_floor=1))
    for _ in range(100):
        engine.scheduler.latency.correction.observe("mixed", 1.0, 1.5)
    engine.add(sequence(0, max_tokens=9, slo=slo(tpot_s=0.1)))
    engine.step()
    engine.add(sequence(1, prompt=300))
    assert engine.step().shape.prefill_tokens == int((0.95 * 0.097 / 1.5 - 0.011) / 0.001) == 50


def test_order_is_deadline_then_arrival_then_id_whatever_the_priority() -> None:
    engine = Honest(scheduler(prefill_tokens_max=1))
    engine.add(sequence(0, slo=slo(ttft_s=9)))
    engine.add(sequence(1, slo=slo(ttft_s=9), arrived_s=-1))
    engine.add(sequence(2, slo=slo(ttft_s=9), priority=1))
    engine.add(sequence(4, slo=slo(ttft_s=8)))
    engine.add(sequence(3, slo=slo(ttft_s=8)))
    assert [each.id for each in engine.scheduler._waiting] == [1, 3, 4, 0, 2]


def test_first_come_first_served_looks_at_arrival_alone() -> None:
    engine = Honest(scheduler(order="arrival", prefill_tokens_max=1))
    engine.add(sequence(0, priority=2, slo=slo(ttft_s=0.1), arrived_s=3))
    engine.add(sequence(2, arrived_s=2))
    engine.add(sequence(1, arrived_s=2))
    assert [each.id for each in engine.scheduler._waiting] == [1, 2, 0]
    assert [chunk.sequence.id for chunk in engine.step().prefills] == [1]


def test_urgent_work_of_low_priority_goes_before_important_work_that_has_time() -> None:
    engine = Honest(scheduler(prefill_tokens_max=8))
    engine.add(sequence(0, slo=slo(ttft_s=5.0), priority=1))
    engine.add(sequence(1, slo=slo(ttft_s=0.5)))
    assert [chunk.sequence.id for chunk in engine.step().prefills] == [1]
    assert [chunk.sequence.id for chunk in engine.step().prefills] == [0]


def test_low_priority_is_given_up_where_not_all_deadlines_can_be_kept() -> None:
    """Either takes 50 ms of the 60 that there are; the other one's deadline is the sooner."""
    engine = Honest(scheduler(prefill_tokens_max=50))
    engine.add(sequence(0, prompt=50, slo=slo(ttft_s=0.069), priority=1))
    engine.add(sequence(1, prompt=50, slo=slo(ttft_s=0.065)))
    assert [chunk.sequence.id for chunk in engine.step().prefills] == [0]
    assert engine.seen[0].first_token_s == pytest.approx(0.06)


def test_given_up_work_is_looked_at_again_after_a_while() -> None:
    """What it was given up for has left, and it could be in time again."""
    engine = Honest(scheduler(blocks=1000, prefill_tokens_max=10))
    engine.add(sequence(0, prompt=2000, slo=slo(ttft_s=2.1), priority=1))
    engine.add(sequence(1, prompt=1000, slo=slo(ttft_s=2.9)))
    engine.step()
    assert [each.id for each in engine.scheduler._behind] == [1]
    engine.cancel(0)
    engine.now = RECONSIDER_S / 2
    engine.step()
    assert [each.id for each in engine.scheduler._behind] == [1]
    engine.now = RECONSIDER_S * 1.1
    engine.step()
    assert engine.scheduler._behind == []


@given(st.lists(st.tuples(st.integers(1, 120), st.floats(0.02, 0.4)), min_size=1, max_size=6), st.integers(0, 3))
def test_step_makes_no_first_token_late_that_it_lets_out(asked: list[tuple[int, float]], running: int) -> None:
    """What joins a step after a prompt's last chunk leaves that prompt in time if it was."""
    engine = Honest(scheduler(blocks=1000, prefill_tokens_max=150, prefill_tokens_floor=8))
    for number in range(running):
        engine.add(sequence(100 + number, prompt=1, max_tokens=50))
    engine.step()
    begin_s = engine.now
    for number, (prompt, ttft_s) in enumerate(asked):
        engine.add(sequence(number, prompt=prompt, slo=slo(ttft_s=ttft_s), arrived_s=begin_s))
    plan = engine.step()
    ready_s = begin_s + SIMPLE.step_s(plan.shape._replace(prefill_tokens=0, prefill_pairs=0))
    for chunk in plan.prefills:
        ready_s += SIMPLE.prefill_token_s * chunk.tokens
        if chunk.samples and ready_s <= chunk.sequence.deadline_s:
            assert engine.now <= chunk.sequence.deadline_s + 1e-9


@pytest.mark.parametrize(("expected", "steps_left"), [(10, 10), (0, 40), (99, 40)])
def test_end_to_end_promise_is_paced_by_the_expected_length(expected: int, steps_left: int) -> None:
    """Where nothing is known, or too much, by the longest answer that was allowed."""
    engine = Honest(scheduler())
    engine.add(sequence(0, prompt=8, max_tokens=40, slo=slo(e2e_s=1.0), expected_tokens=expected))
    engine.step()
    pace_s = engine.seen[0].pace_s
    assert pace_s is not None
    exact_s = budget.AIM * (1.0 - engine.now) / steps_left
    assert exact_s * 2 ** (-1 / 16) <= pace_s <= exact_s


def test_sequence_without_token_ids_has_emitted_nothing_unless_said() -> None:
    assert Sequence(0, [], 8, 4, Slo(), 0.0).emitted == 0
    assert Sequence(0, [], 8, 4, Slo(), 0.0, emitted=3).emitted == 3
    assert sequence(0, prompt=8, emitted=[1, 2]).emitted == 2


def test_lost_work_goes_behind_feasible_work_of_lower_priority() -> None:
    engine = Honest(scheduler(prefill_tokens_max=8), now=1.0)
    engine.add(sequence(0, slo=slo(ttft_s=0.5), priority=1))
    engine.add(sequence(1, slo=slo(ttft_s=5.0)))
    assert [chunk.sequence.id for chunk in engine.step().prefills] == [1]
    assert [chunk.sequence.id for chunk in engine.step().prefills] == [0]


def test_starved_work_gets_a_trickle_beside_feasible_work() -> None:
    engine = Honest(scheduler(prefill_tokens_max=10, prefill_tokens_floor=2, starvation_s=5.0), now=10.0)
    engine.add(sequence(0, prompt=6, slo=slo(ttft_s=1.0)))
    engine.add(sequence(1, prompt=50, slo=slo(ttft_s=60.0)))
    assert [(chunk.sequence.id, chunk.tokens) for chunk in engine.step().prefills] == [(0, 2), (1, 8)]
    engine.step()
    assert [chunk.samples for chunk in engine.step().prefills] == [True, False]


def test_feasible_work_does_not_wait_for_a_trickle_to_compute_what_both_need() -> None:
    engine = Honest(scheduler(prefill_tokens_max=40, prefill_tokens_floor=2, starvation_s=5.0), now=10.0)
    engine.add(sequence(0, prompt=[*range(100, 120), 1], slo=slo(ttft_s=1.0)))
    engine.add(sequence(1, prompt=[*range(100, 120), 2], slo=slo(ttft_s=60.0)))
    assert [(chunk.sequence.id, chunk.tokens) for chunk in engine.step().prefills] == [(0, 2), (1, 21)]
    engine.run(20)


def test_starved_work_without_competition_is_not_throttled() -> None:
    """The trickle is for feasible work's sake; nobody waits here whom a full step would harm."""
    engine = Honest(scheduler(prefill_tokens_max=10, prefill_tokens_floor=2, starvation_s=5.0), now=10.0)
    engine.add(sequence(0, prompt=30, slo=slo(ttft_s=1.0)))
    engine.add(sequence(1, prompt=30, slo=slo(ttft_s=2.0)))
    assert [(chunk.sequence.id, chunk.tokens) for chunk in engine.step().prefills] == [(0, 10)]


def test_seqs_max_holds_newcomers_back() -> None:
    engine = Honest(scheduler(seqs_max=2))
    for number in range(3):
        engine.add(sequence(number, max_tokens=2 + number))
    assert [chunk.sequence.id for chunk in engine.step().prefills] == [0, 1]
    engine.step()
    assert [chunk.sequence.id for chunk in engine.step().prefills] == [2]


def test_equal_prompts_share_blocks_that_are_computed_once() -> None:
    """The sibling waits for the step that computes the shared blocks, then computes only what is its own."""
    engine = Honest(scheduler(block_tokens=4))
    shared = list(range(100, 112))
    engine.add(sequence(0, prompt=[*shared, 1]))
    engine.add(sequence(1, prompt=[*shared, 2, 3]))
    engine.add(sequence(2, prompt=5))
    first = engine.step()
    assert [(chunk.sequence.id, chunk.tokens) for chunk in first.prefills] == [(0, 13), (2, 5)]
    second = engine.step()
    assert [(chunk.sequence.id, chunk.start, chunk.tokens) for chunk in second.prefills] == [(1, 12, 2)]
    assert second.started == [(1, 12)]
    assert engine.seen[0].blocks[:3] == engine.seen[1].blocks[:3]


def test_last_token_is_always_computed() -> None:
    """A prompt that is wholly in the cache is still computed from its last block on, for its logits."""
    engine = Honest(scheduler(block_tokens=4))
    engine.add(sequence(0, prompt=range(8), max_tokens=1))
    engine.run(1)
    engine.add(sequence(1, prompt=range(8), max_tokens=1))
    assert [(chunk.start, chunk.tokens) for chunk in engine.step().prefills] == [(4, 4)]


def test_output_is_shared_too() -> None:
    """A conversation's next turn finds the KV of the answer before it."""
    engine = Honest(scheduler(block_tokens=4))
    engine.add(sequence(0, prompt=range(6), max_tokens=7))
    engine.run(7)
    engine.add(sequence(1, prompt=[*engine.seen[0].tokens, 50, 51], max_tokens=1))
    assert engine.step().started == [(1, 12)]


def test_request_that_may_not_share_computes_everything_and_publishes_nothing() -> None:
    engine = Honest(scheduler(block_tokens=4))
    for number in range(3):
        engine.add(sequence(number, prompt=range(8), max_tokens=1, reuses_prefix=False))
        assert engine.step().started == [(number, 0)]
    assert len(engine.scheduler.pool._cached) == 0


def test_high_priority_takes_blocks_from_lower() -> None:
    engine = Honest(scheduler(blocks=4, block_tokens=4))
    engine.add(sequence(0, prompt=10, max_tokens=6))
    engine.step()
    engine.add(sequence(1, prompt=12, max_tokens=2, priority=1))
    plan = engine.step()
    assert plan.preempted == [0]
    assert [chunk.sequence.id for chunk in plan.prefills] == [1]
    assert plan.decodes == []
    engine.run(20)
    assert all(each.emitted == each.max_tokens for each in engine.seen.values())


def test_equal_priority_takes_no_blocks_from_a_decode() -> None:
    engine = Honest(scheduler(blocks=4, block_tokens=4))
    engine.add(sequence(0, prompt=10, max_tokens=6))
    engine.step()
    engine.add(sequence(1, prompt=12, max_tokens=2, slo=slo(ttft_s=0.1)))
    while 0 not in engine.finished:
        assert 0 not in engine.step().preempted


def test_decode_with_most_slack_gives_up_its_blocks() -> None:
    engine = Honest(scheduler(blocks=4, block_tokens=4))
    engine.add(sequence(0, prompt=7, max_tokens=8, slo=slo(tpot_s=0.2)))
    engine.add(sequence(1, prompt=7, max_tokens=8, slo=slo(tpot_s=0.1)))
    engine.step()
    engine.step()
    plan = engine.step()
    assert plan.preempted == [0]
    assert [chunk.sequence.id for chunk in plan.decodes] == [1]


def test_first_come_first_served_preempts_the_latest_whatever_its_priority() -> None:
    engine = Honest(scheduler(order="arrival", sizing="fixed", blocks=4, block_tokens=4))
    engine.add(sequence(0, prompt=7, max_tokens=8, arrived_s=0.0))
    engine.add(sequence(1, prompt=7, max_tokens=8, arrived_s=0.1, priority=2))
    engine.step()
    engine.step()
    assert engine.step().preempted == [1]
    engine.run(30)


def test_prefill_ahead_takes_blocks_of_a_lost_partial_prefill() -> None:
    """Two partial prefills hold all blocks, and the one in front has the later deadline: it must not wait for ever."""
    engine = Honest(scheduler(blocks=4, block_tokens=4, prefill_tokens_max=8))
    engine.add(sequence(0, prompt=14, max_tokens=2, slo=slo(ttft_s=0.5)))
    engine.step()
    engine.now = 1.0
    engine.add(sequence(1, prompt=14, max_tokens=2, slo=slo(ttft_s=9.0)))
    engine.run(20)
    assert set(engine.finished) == {0, 1}


def test_resumed_sequence_goes_on_after_what_was_emitted() -> None:
    engine = Honest(scheduler())
    engine.add(sequence(0, prompt=6, emitted=[100, 101], max_tokens=4, first_token_s=-1.0, slo=slo(tpot_s=1.0)))
    plan = engine.step()
    assert (plan.shape.prefill_tokens, plan.chunks[0].samples) == (8, True)
    engine.run(1)
    assert engine.seen[0].tokens[-4:] == [100, 101, 102, 103]
    assert engine.seen[0].first_token_s == -1.0


def test_sequence_whose_token_failed_stays_until_it_is_cancelled() -> None:
    made = scheduler()
    made.add(sequence(0))
    assert made.commit(made.plan(0.0), {}, 0.1) == []
    made.check()
    assert made.waiting_seqs == 1
    assert made.cancel(0)
    assert made.is_idle()


def test_counts_are_what_a_report_says() -> None:
    engine = Honest(scheduler(prefill_tokens_max=8))
    engine.add(sequence(0, prompt=8))
    engine.add(sequence(1, prompt=8))
    engine.step()
    assert (engine.scheduler.waiting_seqs, engine.scheduler.running_seqs, engine.scheduler.waiting_tokens) == (1, 1, 8)


def test_reconfigure_puts_waiting_work_into_the_new_order() -> None:
    made = scheduler(order="arrival")
    made.add(sequence(0, arrived_s=0.0, slo=slo(ttft_s=9)))
    made.add(sequence(1, arrived_s=1.0, slo=slo(ttft_s=1)))
    made.reconfigure(StepRules(order="fewest_late"))
    made.check()
    assert [each.id for each in made._waiting] == [1, 0]


# Random worlds.

SLOS = [Slo(), Slo(ttft_s=0.05), Slo(0.2, 0.03), Slo(2.0, 0.2), Slo(tpot_s=0.02), Slo(e2e_s=0.5), Slo(0.1, None, 3.0)]
TEXT = list(range(100, 140))

MODELS = [
    SIMPLE,
    LatencyModel(0.02, 0.005, 0.001, 1e-5, 0.0005, 1e-5),
    LatencyModel(0.0, 0.01, 0.002, 0.0, 0.0, 1e-4),
]


@st.composite
def arrivals(draw: st.DrawFn, tokens_max: int) -> list[Sequence]:
    """Sequences that fit an empty pool, in order of the step at which they come; many share a prefix."""
    made = []
    for number in range(draw(st.integers(1, 8))):
        prompt_tokens = draw(st.integers(1, max(1, tokens_max - 1)))
        shared = draw(st.integers(0, prompt_tokens))
        prompt = TEXT[:shared] + [1000 * (number + 1) + i for i in range(prompt_tokens - shared)]
        max_tokens = draw(st.integers(1, max(1, min(9, tokens_max - prompt_tokens))))
        emitted = draw(st.integers(0, max_tokens - 1)) if draw(st.booleans()) and draw(st.booleans()) else 0
        made.append(
            sequence(
                number,
                prompt=prompt,
                emitted=[100 + i for i in range(emitted)],
                max_tokens=max_tokens,
                slo=draw(st.sampled_from(SLOS)),
                priority=draw(st.integers(0, 2)),
                stop_ids=frozenset({STOP}),
                first_token_s=-0.01 if emitted else None,
                reuses_prefix=draw(st.integers(0, 4)) > 0,
            )
        )
    return made


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Honest, list[tuple[int, Sequence]], dict[int, int]]:
    """An engine, (step, sequence) arrivals, and sequence id → the step at which it is cancelled."""
    block_tokens = draw(st.sampled_from([1, 2, 4]))
    blocks = draw(st.integers(2, 12))
    rules = {
        "order": draw(st.sampled_from(["fewest_late", "fewest_late", "fewest_late", "deadline", "arrival"])),
        "sizing": draw(st.sampled_from(["slack", "slack", "fixed"])),
        "prefill_tokens_max": draw(st.integers(1, 24)),
        "prefill_tokens_floor": draw(st.integers(1, 6)),
        "starvation_s": draw(st.sampled_from([0.05, 1.0, 30.0])),
        "patience_s": draw(st.sampled_from([0.05, 60.0])),
        "credit_spend_max": draw(st.sampled_from([0.0, 0.0, 0.5, 1.0])),
    }
    made = scheduler(
        blocks, block_tokens, seqs_max=draw(st.integers(1, 6)), model=draw(st.sampled_from(MODELS)), **rules
    )
    sequences = draw(arrivals(blocks * block_tokens))
    steps = sorted(draw(st.lists(st.integers(0, 12), min_size=len(sequences), max_size=len(sequences))))
    cancels = draw(st.dictionaries(st.integers(0, 7), st.integers(0, 20), max_size=2))
    stops = draw(st.dictionaries(st.integers(0, 7), st.integers(1, 6), max_size=3))
    return Honest(made, stops=stops), list(zip(steps, sequences, strict=True)), cancels


@settings(max_examples=400)
@given(worlds())
def test_random_worlds_end_and_lose_nothing(
    world: tuple[Honest, list[tuple[int, Sequence]], dict[int, int]],
) -> None:
    engine, coming, cancels = world
    for step in range(21):
        for _, each in [c for c in coming if c[0] == step]:
            each.arrived_s = engine.now
            if each.first_token_s is not None:
                each.first_token_s = engine.now
            engine.add(each)
        for sequence_id in [number for number, at in cancels.items() if at == step]:
            engine.cancel(sequence_id)
        engine.step()
    tokens = sum(len(each.tokens) + each.max_tokens for each in engine.seen.values())
    engine.run(4 * tokens + 20)
    for each in engine.seen.values():
        stop = engine.stops.get(each.id)
        by_stop = engine.finished[each.id]
        assert by_stop == (each.tokens[-1] == STOP)
        assert each.emitted == (stop if by_stop else each.max_tokens)
        outputs = each.tokens[each.prompt_tokens :]
        assert outputs[: len(outputs) - by_stop] == [100 + i for i in range(len(outputs) - by_stop)]
    assert engine.scheduler.pool.blocks_free == engine.scheduler.pool.blocks
    event(f"preemptions {min(3, engine.preemptions)}")


@given(worlds())
def test_same_world_gives_the_same_steps(world: tuple[Honest, list[tuple[int, Sequence]], dict[int, int]]) -> None:
    """Plans depend on nothing but what was said: no set order, no identity. Ids matter by their order only."""
    engine, coming, _ = world
    old = engine.scheduler
    journals = []
    for ids in (lambda i: i, lambda i: 5 * i + 3):
        pool = type(old.pool)(old.pool.blocks, old.pool.block_tokens)
        twin = Honest(StepScheduler(pool, old.seqs_max, type(old.latency)(old.latency.model), old.rules))
        for _, each in coming:
            twin.add(
                Sequence(
                    ids(each.id),
                    list(each.tokens),
                    each.prompt_tokens,
                    each.max_tokens,
                    each.slo,
                    each.arrived_s,
                    priority=each.priority,
                    first_token_s=each.first_token_s,
                    reuses_prefix=each.reuses_prefix,
                )
            )
        journal = []
        for _ in range(30):
            plan = twin.step()
            journal.append([(chunk.sequence.id, chunk.start, chunk.tokens) for chunk in plan.chunks])
            journal.append([(number, 0, 0) for number in plan.preempted])
        renamed = {ids(each.id): each.id for _, each in coming}
        journals.append([[(renamed[i], start, tokens) for i, start, tokens in line] for line in journal])
    assert journals[0] == journals[1]


# Bodies that count tokens and do not have them, and several steps in one.


@dataclass
class Counting:
    """An engine without tokens that takes as many steps at once as it is let."""

    scheduler: StepScheduler
    steps_max: int
    now: float = 0.0
    live: dict[int, Sequence] = field(default_factory=dict)
    lines: list[object] = field(default_factory=list)
    """A line for each step that was taken, alone or with others."""
    free: list[int] = field(default_factory=list)
    """Blocks that were free after each plan and after what came of it."""

    def add(self, each: Sequence, *, has_tokens: bool) -> None:
        hashes = list(extend_hashes([], each.tokens[: each.prompt_tokens], self.scheduler.pool.block_tokens))
        copy = Sequence(
            each.id,
            list(each.tokens) if has_tokens else [],
            each.prompt_tokens,
            each.max_tokens,
            each.slo,
            self.now,
            emitted=each.emitted,
            hashes=hashes if each.reuses_prefix else [],
            priority=each.priority,
            first_token_s=None if each.first_token_s is None else self.now,
            reuses_prefix=each.reuses_prefix,
        )
        self.live[each.id] = copy
        self.scheduler.add(copy)

    def go(self, steps: int, *, has_tokens: bool = False) -> None:
        while steps > 0:
            decodes = self.scheduler.decodes.sequences.values()
            until_end = min((each.max_tokens - each.emitted for each in decodes), default=1)
            plan = self.scheduler.plan(self.now, min(self.steps_max, steps, until_end))
            assert 1 <= plan.steps <= min(self.steps_max, steps, max(1, until_end))
            assert plan.steps == 1 or not (plan.prefills or plan.preempted), "no steps alike"
            self.scheduler.check()
            self.free.append(self.scheduler.pool.blocks_free)
            shape, decoding = plan.shape, len(plan.decodes)
            self.lines.append((shape, plan.preempted, plan.started, [(c.sequence.id, c.start) for c in plan.prefills]))
            for step in range(plan.steps):
                alike = shape._replace(context_tokens=shape.context_tokens + step * decoding)
                if step:
                    self.lines.append((alike, [], [], []))
                self.now += self.scheduler.latency.model.step_s(alike)
            sampled = {chunk.sequence.id: 100 for chunk in plan.chunks if chunk.samples} if has_tokens else None
            self.scheduler.commit(plan, sampled, self.now, plan.steps)
            for each in [each for each in self.live.values() if each.emitted >= each.max_tokens]:
                if not has_tokens:
                    self.scheduler.end(each.id)
                del self.live[each.id]
            self.scheduler.check()
            self.free.append(self.scheduler.pool.blocks_free)
            steps -= plan.steps


def journal(
    world: tuple[Honest, list[tuple[int, Sequence]], dict[int, int]],
    steps_max: int,
    *,
    has_tokens: bool = False,
    kind: type[StepScheduler] = StepScheduler,
) -> tuple[float, list[object]]:
    made = counting(world, steps_max, has_tokens=has_tokens, kind=kind)
    return made.now, made.lines


def counting(
    world: tuple[Honest, list[tuple[int, Sequence]], dict[int, int]],
    steps_max: int,
    *,
    has_tokens: bool = False,
    kind: type[StepScheduler] = StepScheduler,
    names_blocks: bool = True,
) -> Counting:
    """One that has done all there was to do."""
    engine, coming, cancels = world
    old = engine.scheduler
    pool = type(old.pool)(old.pool.blocks, old.pool.block_tokens)
    latency = type(old.latency)(old.latency.model)
    twin = kind(pool, old.seqs_max, latency, old.rules, names_blocks=names_blocks)
    made = Counting(twin, steps_max)
    for step in range(0, 24, 2):
        for _, each in [(at, each) for at, each in coming if at in {step, step + 1}]:
            made.add(each, has_tokens=has_tokens)
        for sequence_id in [number for number, at in cancels.items() if at in {step, step + 1}]:
            twin.cancel(sequence_id)
            made.live.pop(sequence_id, None)
        made.go(12, has_tokens=has_tokens)
    made.go(500, has_tokens=has_tokens)
    assert twin.is_idle()
    assert twin.pool.blocks_free == twin.pool.blocks
    return made


@settings(max_examples=60)
@given(worlds(), st.integers(2, 40))
def test_several_steps_at_once_are_the_same_as_one_by_one(
    world: tuple[Honest, list[tuple[int, Sequence]], dict[int, int]], steps_max: int
) -> None:
    assert journal(world, 1) == journal(world, steps_max)


@settings(max_examples=40)
@given(worlds())
def test_lengths_alone_are_as_good_as_tokens(
    world: tuple[Honest, list[tuple[int, Sequence]], dict[int, int]],
) -> None:
    """Where no prefix is shared: answers are content too, and only who has their tokens can share them."""
    for _, each in world[1]:
        each.reuses_prefix = False
    assert journal(world, 1) == journal(world, 1, has_tokens=True)


@given(worlds(), st.integers(1, 40))
def test_counted_blocks_are_as_good_as_named_ones(
    world: tuple[Honest, list[tuple[int, Sequence]], dict[int, int]], steps_max: int
) -> None:
    """The same steps at the same instants, with as many blocks free at any time, prefixes shared or not."""
    named, counted = (counting(world, steps_max, names_blocks=names_blocks) for names_blocks in (True, False))
    assert (named.now, named.lines, named.free) == (counted.now, counted.lines, counted.free)


class Unhurried(StepScheduler):
    """Asks for an order even of one."""

    def _fill_with_all(self, sequence: Sequence, plan: StepPlan, now: float) -> bool:
        return False


@settings(max_examples=200)
@given(worlds(), st.integers(1, 40), st.booleans())
def test_who_waits_alone_gets_what_it_would_get_in_any_order(
    world: tuple[Honest, list[tuple[int, Sequence]], dict[int, int]], steps_max: int, has_tokens: bool
) -> None:
    kinds = (StepScheduler, Unhurried)
    short, long = (counting(world, 1 if has_tokens else steps_max, has_tokens=has_tokens, kind=kind) for kind in kinds)
    assert (short.now, short.lines, short.free) == (long.now, long.lines, long.free)
