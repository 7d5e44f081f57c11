"""Moves between schedulers: hand-made cases for each call, and worlds that interleave them with everything else.

The bodies know what each block really holds, so a token that reads a block which was not copied, or was copied too
early, or is another's, is caught where it is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from helpers import soak
from helpers.bodies import TEXT, Body, copy_of
from helpers.builders import SIMPLE, scheduler, sequence, slo
from hyperflexis.core.blocks import BlockPool
from hyperflexis.core.latency import OnlineLatency
from hyperflexis.core.slo import Slo
from hyperflexis.core.step import Sequence, StepRules, StepScheduler


@dataclass
class Move:
    """The plain mover: pre-copies rounds of full blocks, stops the sequence, copies the rest."""

    number: int
    source: Body
    target: Body
    blocks: list[int]
    copied: int = 0
    tenure: int | None = None
    is_over: bool = False

    @classmethod
    def begin(cls, number: int, source: Body, target: Body, headroom: int = 0) -> Move | None:
        one = source.scheduler._sequences[number]
        before = repr(target.scheduler), dict(target.scheduler.moves.expected)
        blocks = target.scheduler.expect(number, one.computed + headroom, one.prompt_tokens + one.max_tokens)
        target.scheduler.check()
        if blocks is None:
            assert before == (repr(target.scheduler), target.scheduler.moves.expected), "refused with side effects"
            return None
        return cls(number, source, target, blocks)

    def precopy(self) -> None:
        held = self.source.scheduler.held(self.number, self.copied)
        if held is None:
            return self.abandon()
        if held.tenure != self.tenure:
            self.tenure, self.copied = held.tenure, 0
            held = self.source.scheduler.held(self.number)
            assert held is not None
        settled = held.settled(self.source.scheduler.pool.block_tokens)
        assert all(
            self.source.scheduler._sequences[self.number].blocks[held.since + i] == b for i, b in enumerate(settled)
        )
        count = min(len(settled), len(self.blocks) - self.copied)
        self._copy(settled[:count])
        return None

    def finish(self) -> bool:
        """Stop and copy; False where the target has no room for what it has become."""
        if not self.suspend():
            return False
        source, target = self.source.scheduler, self.target.scheduler
        one = source._sequences[self.number]
        held = source.held(self.number)
        assert held is not None
        blocks = target.expect(self.number, held.computed, one.prompt_tokens + one.max_tokens)
        if blocks is None:
            self.abandon()
            return False
        assert blocks[: len(self.blocks)] == self.blocks
        self.blocks = blocks
        self.copied = self.copied if held.tenure == self.tenure else 0
        self._copy(held.blocks[self.copied :])
        if not self.source.names:
            assert len(held.blocks) == source.pool.blocks_for(held.computed), "a suspended sequence names its blocks"
        target.adopt(copy_of(one), held.computed, self.target.now)
        assert source.cancel(self.number)
        self.is_over = True
        source.check()
        target.check()
        return True

    def suspend(self) -> bool:
        source = self.source.scheduler
        if source.held(self.number) is None:
            self.abandon()
            return False
        if self.number not in source.moves.suspended:
            source.suspend(self.number)
            source.check()
        return True

    def abandon(self) -> None:
        if self.number in self.source.scheduler.moves.suspended:
            self.source.scheduler.resume(self.number)
        assert self.target.scheduler.release(self.number)
        assert not self.target.scheduler.release(self.number)
        self.is_over = True
        self.source.scheduler.check()
        self.target.scheduler.check()

    def _copy(self, blocks: list[int]) -> None:
        into = self.blocks[self.copied : self.copied + len(blocks)]
        for one, other in zip(blocks, into, strict=True):
            for offset in range(self.source.scheduler.pool.block_tokens):
                self.target.kv.pop((other, offset), None)
                if (one, offset) in self.source.kv:
                    self.target.kv[other, offset] = self.source.kv[one, offset]
        self.copied += len(blocks)


def bodies(**settings_: Any) -> tuple[Body, Body]:
    return Body(scheduler(**settings_)), Body(scheduler(**settings_))


# One call at a time.


def test_a_decode_moves_and_decodes_in_the_next_step() -> None:
    source, target = bodies(block_tokens=4)
    source.scheduler.add(sequence(0, prompt=10, max_tokens=6, slo=slo(tpot_s=0.5)))
    source.step()
    target.now = source.now
    before = source.scheduler._sequences[0]
    pace = (before.pace_s, before.anchor_s, before.due_s())
    move = Move.begin(0, source, target)
    assert move is not None
    move.precopy()
    assert move.copied == 2
    assert move.finish()
    assert source.scheduler.is_idle()
    assert [(c.start, c.tokens) for c in target.step().decodes] == [(10, 1)]
    after = target.scheduler._sequences[0]
    assert (after.pace_s, after.anchor_s) == pace[:2]
    assert after.due_s() == pytest.approx(pace[2] + 0.5 * 0.97, rel=0.05)
    while not target.scheduler.is_idle():
        target.step()
    assert target.ended[0].tokens[10:] == [900 + i for i in range(6)]
    assert target.scheduler.pool.blocks_free == target.scheduler.pool.blocks


def test_a_partial_prefill_waits_at_the_target_with_its_progress() -> None:
    source, target = bodies(prefill_tokens_max=6)
    source.scheduler.add(sequence(0, prompt=20, max_tokens=2))
    source.step()
    move = Move.begin(0, source, target)
    assert move is not None
    assert move.finish()
    plan = target.step()
    assert [(c.start, c.tokens) for c in plan.prefills] == [(6, 6)]
    assert plan.started == []


def test_a_prompt_that_lacks_its_last_token_only_has_not_begun_to_answer() -> None:
    source, target = bodies(prefill_tokens_max=6)
    source.scheduler.add(sequence(0, prompt=7, max_tokens=2))
    source.step()
    target.now = 5.0
    move = Move.begin(0, source, target)
    assert move is not None
    assert move.finish()
    plan = target.step()
    assert [(c.start, c.tokens, c.samples) for c in plan.prefills] == [(6, 1, True)]
    assert [each.id for each in plan.began] == [0]
    assert target.scheduler._sequences[0].first_token_s == target.now


def test_what_has_no_block_moves_too() -> None:
    source, target = bodies()
    source.scheduler.add(sequence(0))
    move = Move.begin(0, source, target)
    assert move is not None
    assert move.finish()
    assert target.step().started == [(0, 0)]


def test_room_is_refused_without_blocks_or_seat_or_for_what_could_never_fit() -> None:
    made = scheduler(blocks=4, block_tokens=4, seqs_max=2)
    assert made.expect(0, 17, 17) is None
    assert made.expect(0, 4, 17) is None
    assert made.expect(0, 12, 16) is not None
    assert made.expect(1, 5, 16) is None
    assert made.expect(0, 17, 17) is None
    assert made.expect(1, 4, 16) is not None
    assert made.expect(2, 0, 4) is None
    made.check()
    assert made.pool.blocks_free == 0
    assert made.release(0)
    assert made.release(1)
    assert made.pool.blocks_free == 4


def test_expected_blocks_and_seats_are_kept_from_everyone_else() -> None:
    body = Body(scheduler(blocks=4, block_tokens=4, seqs_max=1))
    assert body.scheduler.expect(9, 4, 16) is not None
    body.scheduler.add(sequence(0, prompt=4, max_tokens=1, priority=9))
    assert not body.step().chunks
    body.scheduler.add(sequence(1, prompt=4, max_tokens=1, priority=9))
    assert not body.step().chunks
    body.scheduler.release(9)
    assert [c.sequence.id for c in body.step().prefills] == [0]


def test_asked_again_an_expectation_grows_and_keeps_its_first_blocks() -> None:
    made = scheduler(blocks=5, block_tokens=4)
    first = made.expect(0, 5, 20)
    assert first is not None
    assert made.expect(0, 3, 20) == first
    more = made.expect(0, 17, 20)
    assert more is not None
    assert (more[:2], len(more)) == (first, 5)


def test_two_moves_that_cross_between_full_instances_are_both_refused_and_both_go_on() -> None:
    both = bodies(blocks=4, block_tokens=4)
    for number, body in enumerate(both):
        body.scheduler.add(sequence(number, prompt=10, max_tokens=6))
        body.step()
    left, right = both
    assert Move.begin(0, left, right) is None
    assert Move.begin(1, right, left) is None
    for body in both:
        while not body.scheduler.is_idle():
            assert body.step().chunks
    assert left.ended.keys() | right.ended.keys() == {0, 1}


def test_what_is_over_is_given_back_and_full_blocks_can_be_found() -> None:
    source, target = bodies(block_tokens=4)
    shared = list(range(100, 110))
    source.scheduler.add(sequence(0, prompt=shared, max_tokens=5))
    source.step()
    move = Move.begin(0, source, target, headroom=16)
    assert move is not None
    assert target.scheduler.pool.blocks_free == 100 - 7
    assert move.finish()
    assert target.scheduler.pool.blocks_free == 100 - 3
    target.scheduler.add(sequence(1, prompt=[*shared, 5], max_tokens=1))
    assert target.step().started == [(1, 8)]
    source.scheduler.add(sequence(2, prompt=[*shared, 5], max_tokens=1))
    assert source.step().started == [(2, 8)], "what was moved away stays findable at the source"


def test_a_suspended_decode_goes_on_as_if_nothing_had_been() -> None:
    """Alone, its steps are those of one that never stood still, only later."""
    moved, still = bodies(block_tokens=4)
    for body in (moved, still):
        body.scheduler.add(sequence(0, prompt=10, max_tokens=6, slo=slo(tpot_s=0.5)))
        body.step()
    held = moved.scheduler.suspend(0)
    assert (held.computed, len(held.blocks), held.settled(4)) == (10, 3, held.blocks[:2])
    assert not moved.step().chunks
    moved.scheduler.resume(0)
    moved.log.pop()
    for body in (moved, still):
        while not body.scheduler.is_idle():
            body.step()
    assert moved.log == still.log
    assert moved.ended[0].tokens == still.ended[0].tokens


def test_suspended_work_keeps_its_blocks_from_more_important_work() -> None:
    body = Body(scheduler(blocks=4, block_tokens=4))
    body.scheduler.add(sequence(0, prompt=10, max_tokens=3))
    body.step()
    body.scheduler.suspend(0)
    body.scheduler.add(sequence(1, prompt=12, max_tokens=2, priority=5))
    plan = body.step()
    assert plan.preempted == []
    assert [c.tokens for c in plan.prefills] == [4]
    body.scheduler.resume(0)
    while not body.scheduler.is_idle():
        body.step()
    assert body.ended.keys() == {0, 1}


def test_decode_that_loses_its_blocks_to_what_is_expected_is_told_without_a_step() -> None:
    """Nothing is computed then: who looks at that alone would say nothing, and the decode would be thought to go on."""
    one = scheduler(blocks=3, block_tokens=4)
    body = Body(one)
    one.add(sequence(1, prompt=4, max_tokens=8))
    assert one.expect(2, 8, 12) is not None
    body.step()
    plan = one.plan(body.now)
    assert (plan.chunks, plan.preempted) == ([], [1])
    assert not plan.is_void
    one.commit(plan, {}, body.now)
    one.check()
    assert one.plan(body.now).is_void


def test_lost_blocks_show_as_another_tenure() -> None:
    body = Body(scheduler(blocks=4, block_tokens=4))
    body.scheduler.add(sequence(0, prompt=10, max_tokens=6))
    body.step()
    before = body.scheduler.held(0)
    assert before is not None
    body.scheduler.add(sequence(1, prompt=12, max_tokens=1, priority=1))
    assert body.step().preempted == [0]
    after = body.scheduler.held(0)
    assert after is not None
    assert (after.blocks, after.computed) == ([], 0)
    assert after.tenure > before.tenure


def test_only_what_is_new_is_told_and_only_what_is_full_is_settled() -> None:
    body = Body(scheduler(block_tokens=4))
    body.scheduler.add(sequence(0, prompt=7, max_tokens=9))
    body.step()
    counts = []
    for _ in range(6):
        whole, rest = body.scheduler.held(0), body.scheduler.held(0, 1)
        assert whole is not None
        assert rest is not None
        assert whole.blocks[1:] == rest.blocks
        counts.append((whole.computed, len(whole.settled(4)), len(rest.settled(4))))
        body.step()
    assert counts == [(7, 1, 0), (8, 2, 1), (9, 2, 1), (10, 2, 1), (11, 2, 1), (12, 3, 2)]
    assert body.scheduler.held(5) is None


@pytest.mark.parametrize("names", [True, False])
def test_suspended_sequences_can_be_cancelled_and_fail(names: bool) -> None:
    made = StepScheduler(BlockPool(20, 4), 4, OnlineLatency(SIMPLE), StepRules(), names_blocks=names)
    body = Body(made, names)
    for number in range(3):
        one = sequence(number, prompt=6, max_tokens=9)
        made.add(one if names else Sequence(number, [], 6, 9, Slo(), 0.0))
    for _ in range(4):
        body.step()
    made.suspend(0)
    made.suspend(1)
    made.check()
    assert made.cancel(0)
    made.fail(1)
    made.check()
    while not made.is_idle():
        body.step()
    assert made.pool.blocks_free == 20


# Everything at once.

SLOS = [Slo(), Slo(0.2, 0.03), Slo(e2e_s=0.5), Slo(0.05)]
ORDERS = ["fewest_late", "arrival", "admission", "timely_slack", "slack", "gain"]
ACTS = [*["step"] * 6, *["add"] * 3, *["begin"] * 4, "precopy", "precopy", "suspend", *["finish"] * 3]
ACTS += ["abandon", "cancel", "reconfigure"]


class Act(NamedTuple):
    """Something that happens; the numbers choose among what is possible then."""

    name: str
    which: int
    where: int
    size: int


class World:
    """Two or three schedulers, sequences of all kinds, and moves at every stage among everything else."""

    def __init__(self, made: list[Body], names: bool) -> None:
        self.bodies = made
        self.names = names
        self.asked: dict[int, int] = {}
        self.cancelled: set[int] = set()
        self.moves: list[Move] = []
        self.counts: dict[str, int] = {}

    def play(self, acts: list[Act]) -> None:
        for act in acts:
            getattr(self, act.name)(act)
            self.check()
        for place, move in enumerate(self.under_way):
            if place % 2 or not move.finish():
                move.is_over or move.abandon()
        for body in self.bodies:
            self._end(body)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    @property
    def under_way(self) -> list[Move]:
        return [move for move in self.moves if not move.is_over]

    def home(self, number: int) -> Body | None:
        homes = [body for body in self.bodies if number in body.scheduler._sequences]
        assert len(homes) <= 1, f"sequence {number} is in {len(homes)} places"
        return homes[0] if homes else None

    def check(self) -> None:
        for body in self.bodies:
            body.scheduler.check()
        for number in self.asked:
            ends = sum(number in body.ended for body in self.bodies) + (number in self.cancelled)
            assert ends + (self.home(number) is not None) == 1, f"sequence {number} is lost or doubled"

    def add(self, act: Act) -> None:
        body, number = self.bodies[act.where % len(self.bodies)], len(self.asked)
        prompt, max_tokens, shared = 1 + act.size % 13, 1 + act.which % 9, act.where * 3
        text = [*TEXT[: min(shared, prompt)], *(1000 * (number + 1) + i for i in range(prompt - min(shared, prompt)))]
        if body.scheduler.pool.blocks_for(prompt + max_tokens) > body.scheduler.pool.blocks:
            return
        one = Sequence(
            number,
            text if self.names else [],
            prompt,
            max_tokens,
            SLOS[act.size % len(SLOS)],
            body.now,
            priority=act.which % 3,
            reuses_prefix=act.which % 5 > 0,
        )
        body.scheduler.add(one)
        self.asked[number] = max_tokens

    def step(self, act: Act) -> None:
        body = self.bodies[act.where % len(self.bodies)]
        for _ in range(1 + act.size % 3):
            plan, moves = body.step(), body.scheduler.moves
            for _ in plan.preempted:
                self.count("preempted")
            if moves.seats and plan.chunks:
                self.count("steps beside a move")

    def begin(self, act: Act) -> None:
        busy = {move.number for move in self.under_way}
        free = [number for number in self.asked if number not in busy and self.home(number)]
        if not free:
            return
        # Mostly the oldest, which has got furthest.
        number = free[0] if act.which % 2 else free[act.size % len(free)]
        source = self.home(number)
        assert source is not None
        others = [body for body in self.bodies if body is not source]
        move = Move.begin(number, source, others[act.where % len(others)], act.size % 7)
        if move is None:
            self.count("no room")
        else:
            self.moves.append(move)

    def precopy(self, act: Act) -> None:
        for move in self._chosen(act):
            move.precopy()

    def suspend(self, act: Act) -> None:
        for move in self._chosen(act):
            move.suspend()

    def finish(self, act: Act) -> None:
        for move in self._chosen(act):
            one = move.source.scheduler._sequences.get(move.number)
            suspended = move.number in move.source.scheduler.moves.suspended
            precopied = move.copied
            if move.finish():
                assert one is not None
                kind = "decoding" if one.emitted and one.left == 1 else "partial" if one.computed else "waiting"
                self.count(f"moved {kind}{' after a stop' * suspended}{' and pre-copies' * bool(precopied)}")
            else:
                self.count("not moved: gone" if one is None else "not moved: no room")

    def abandon(self, act: Act) -> None:
        for move in self._chosen(act):
            move.abandon()
            self.count("abandoned")

    def _chosen(self, act: Act) -> list[Move]:
        return self.under_way[act.which % len(self.under_way) :][:1] if self.under_way else []

    def cancel(self, act: Act) -> None:
        """The client is gone, whether its request was to move or not."""
        live = [number for number in self.asked if self.home(number)]
        for number in live[act.which % len(live) :][:1] if live else []:
            body = self.home(number)
            assert body is not None
            assert body.scheduler.cancel(number)
            self.cancelled.add(number)

    def reconfigure(self, act: Act) -> None:
        order: Any = ORDERS[act.which % len(ORDERS)]
        self.bodies[act.where % len(self.bodies)].scheduler.reconfigure(StepRules(order=order, prefill_tokens_max=7))

    def _end(self, body: Body) -> None:
        for _ in range(600):
            if body.scheduler.is_idle():
                break
            body.step()
        assert body.scheduler.is_idle(), f"stuck: {body.scheduler!r}"
        assert body.scheduler.pool.blocks_free == body.scheduler.pool.blocks
        for number, one in body.ended.items():
            assert one.emitted == self.asked[number]
            assert not self.names or one.tokens[one.prompt_tokens :] == [900 + i for i in range(one.emitted)]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    block_tokens, names = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([True, True, False]))
    made = []
    for _ in range(draw(st.integers(2, 3))):
        rules = StepRules(
            order=draw(st.sampled_from(ORDERS)),
            prefill_tokens_max=draw(st.integers(2, 24)),
            prefill_tokens_floor=draw(st.integers(1, 6)),
        )
        pool = BlockPool(draw(st.integers(16, 48)) // block_tokens, block_tokens)
        seqs_max, latency = draw(st.integers(1, 6)), OnlineLatency(SIMPLE)
        made.append(Body(StepScheduler(pool, seqs_max, latency, rules, names_blocks=names), names))
    return World(made, names)


@pytest.mark.soak
@settings(max_examples=soak.examples(200))
@given(
    worlds(),
    st.lists(
        st.builds(Act, st.sampled_from(ACTS), st.integers(0, 30), st.integers(0, 5), st.integers(0, 30)),
        min_size=50,
        max_size=90,
    ),
)
def test_moves_lose_and_double_nothing(world: World, acts: list[Act]) -> None:
    world.play(acts)
    for what in world.counts:
        event(what)
