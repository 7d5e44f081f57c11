"""Step schedulers with a memory: each block's content is known, and so is every token that reads the wrong one.

`Body` steps a scheduler. `Ends` are its ends of moves; what they say to others, and how long copies take, is the
caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from hyperflexis.core.handover import Answer, Call, Complete, Failure, Giver, Pull, Taker, TakerStep
from hyperflexis.core.step import Sequence, StepPlan, StepScheduler

TEXT = list(range(100, 140))
"""Prompts begin with some of it, so that they share blocks."""


def copy_of(one: Sequence) -> Sequence:
    """What the target makes of what the source tells it."""
    return Sequence(
        one.id,
        list(one.tokens),
        one.prompt_tokens,
        one.max_tokens,
        one.slo,
        one.arrived_s,
        emitted=one.emitted,
        expected_tokens=one.expected_tokens,
        hashes=[] if one.tokens else list(one.hashes),
        priority=one.priority,
        stop_ids=one.stop_ids,
        first_token_s=one.first_token_s,
        reuses_prefix=one.reuses_prefix,
    )


@dataclass
class Body:
    """Steps a scheduler. With `names`, it knows for each (block, offset) a digest of the text up to that token."""

    scheduler: StepScheduler
    names: bool = True
    now: float = 0.0
    kv: dict[tuple[int, int], int] = field(default_factory=dict)
    ended: dict[int, Sequence] = field(default_factory=dict)
    log: list[object] = field(default_factory=list)
    unread: set[int] = field(default_factory=set)
    """Nobody reads what is computed of these any more: it may be anything."""

    def step(self) -> StepPlan:
        here = {each.id: each for each in self.scheduler.sequences()}
        plan = self.scheduler.plan(self.now)
        still = self.scheduler.moves.suspended.keys() | self.scheduler.moves.expected.keys()
        assert still.isdisjoint([*(chunk.sequence.id for chunk in plan.chunks), *plan.preempted])
        for chunk in plan.chunks:
            self._compute(chunk.sequence, chunk.start, chunk.tokens)
        self.now += self.scheduler.latency.model.step_s(plan.shape)
        samplers = [chunk.sequence for chunk in plan.chunks if chunk.samples]
        self.log.append(([(c.sequence.id, c.start, c.tokens) for c in plan.chunks], plan.preempted))
        if self.names:
            sampled = {each.id: 900 + each.emitted for each in samplers}
            ends = [end.sequence_id for end in self.scheduler.commit(plan, sampled, self.now)]
        else:
            self.scheduler.commit(plan, None, self.now)
            ends = [each.id for each in samplers if each.emitted >= each.max_tokens]
            for number in ends:
                self.scheduler.end(number)
        self.ended.update({number: here[number] for number in ends})
        self.scheduler.check()
        return plan

    def _compute(self, one: Sequence, start: int, tokens: int) -> None:
        digest, size = 0, self.scheduler.pool.block_tokens
        for position, token in enumerate(one.tokens[: start + tokens] if self.names else []):
            digest = hash((digest, token))
            slot = (one.blocks[position // size], position % size)
            if position < start and one.id not in self.unread:
                assert self.kv.get(slot) == digest, f"{one!r} reads what is not its own at {position}"
            else:
                self.kv[slot] = digest


class Left(NamedTuple):
    """A taker has given a move up."""

    request_id: int
    move: int


class Answered(NamedTuple):
    """An answer, and with the last one what goes on elsewhere."""

    answer: Answer
    parting: Sequence | None


Word = Call | Answered | Left
"""What the ends of moves say to each other."""


class Order(NamedTuple):
    """What a taker is told to take."""

    request_id: int
    move: int
    source_id: int
    tokens: int
    tokens_max: int
    at_first_token: bool = False
    offer: Answered | None = None
    block_s: float = 0.0
    recomputes: bool = False
    hashes: tuple[bytes, ...] = ()


class Arrived(NamedTuple):
    """A sequence goes on here."""

    request_id: int
    source_id: int
    computed: int
    emitted: int


class Told(NamedTuple):
    """What a report says of moves."""

    suspended: list[int]
    resumed: list[int]
    arrived: list[Arrived]
    offers: dict[int, Answered]


@dataclass
class Copying:
    """A pull that is under way, and what there was to read when it began."""

    pull: Pull
    source_id: int
    read: dict[tuple[int, int], int]


@dataclass
class Ends:
    """One body's ends of moves. It calls `say(to, word)` and `fail(failure)`; all methods are for between two steps."""

    id: int
    body: Body
    peers: dict[int, Ends]
    """All that live."""
    say: Callable[[int, Word], None]
    fail: Callable[[Failure], None]
    copies: list[Copying] = field(default_factory=list)
    orders: dict[int, Order] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.giver = Giver(self.body.scheduler)
        self.taker = Taker(self.body.scheduler)
        self._callers: dict[int, int] = {}
        self._partings: dict[int, Sequence] = {}
        self._soiled: dict[int, set[int]] = {}
        self._arrived: list[Arrived] = []
        self._resumed: list[int] = []

    @property
    def has_news(self) -> bool:
        return bool(self._arrived or self._resumed) or self.giver.may_stop()

    # -- the taker's end

    def take_in(self, order: Order) -> None:
        number = order.request_id
        self.orders[number], self._soiled[number] = order, set()
        step = self.taker.begin(
            number,
            order.move,
            order.tokens,
            order.tokens_max,
            block_s=order.block_s,
            at_first_token=order.at_first_token,
            recomputes=order.recomputes,
            hashes=order.hashes,
        )
        if isinstance(step, Call) and order.offer is not None:
            self._hear(order.offer._replace(answer=order.offer.answer._replace(move=order.move)))
        else:
            self._do(step)

    def abandon(self, request_id: int, why: str = "given up") -> None:
        self._do(self.taker.fail(request_id, why))

    def cancel(self, request_id: int) -> None:
        """Its client has left."""
        self.body.unread.add(request_id)
        self.giver.forget(request_id)
        self.body.scheduler.cancel(request_id)
        self.abandon(request_id, "cancelled")

    def end_copy(self, copy: Copying) -> None:
        """What was being copied is here, unless its source is gone."""
        self.copies.remove(copy)
        number = copy.pull.request_id
        order = self.orders.get(number)
        if order is None or order.move != copy.pull.move:
            return
        if copy.source_id not in self.peers:
            self.abandon(number, "its source is gone")
            return
        self._write(copy)
        self._do(self.taker.copied(number, copy.pull.move, order.block_s))

    def _write(self, copy: Copying) -> None:
        """Some of it was read at first, some at last."""
        source, size = self.peers[copy.source_id].body, self.body.scheduler.pool.block_tokens
        if not source.names:
            return
        for index, (one, other) in enumerate(zip(copy.pull.source_blocks, copy.pull.target_blocks, strict=True)):
            content = copy.read if index % 2 else source.kv
            for offset in range(size):
                self.body.kv.pop((other, offset), None)
                if (one, offset) in content:
                    self.body.kv[other, offset] = content[one, offset]

    def _do(self, step: TakerStep | None) -> None:
        if step is None:
            return
        order = self.orders[step.request_id]
        if isinstance(step, Call):
            self.say(order.source_id, step)
        elif isinstance(step, Pull):
            source = self.peers.get(order.source_id)
            self._soiled[step.request_id] |= set(step.target_blocks)
            self.copies.append(Copying(step, order.source_id, {} if source is None else dict(source.body.kv)))
        elif isinstance(step, Complete):
            del self.orders[step.request_id]
            sequence = self._partings.pop(step.request_id)
            self.body.scheduler.adopt(sequence, step.computed, self.body.now)
            self._arrived.append(Arrived(step.request_id, order.source_id, step.computed, sequence.emitted))
        else:
            del self.orders[step.request_id]
            assert self._soiled[step.request_id] <= set(step.soiled), "half a copy was forgotten"
            self._partings.pop(step.request_id, None)
            self.say(order.source_id, Left(step.request_id, step.move))
            self.fail(step)

    # -- both

    def hear(self, peer_id: int, word: Word) -> None:
        if isinstance(word, Call):
            self._callers[word.request_id] = peer_id
            self.giver.call(word)
        elif isinstance(word, Left):
            if self.giver.left(word.request_id, word.move):
                self._resumed.append(word.request_id)
        else:
            self._hear(word)

    def _hear(self, word: Answered) -> None:
        number = word.answer.request_id
        order = self.orders.get(number)
        if order is not None and order.move == word.answer.move and word.parting is not None:
            self._partings[number] = copy_of(word.parting)
        self._do(self.taker.take(word.answer))

    # -- the giver's end

    def stay(self, request_id: int, move: int | None) -> None:
        if self.giver.stay(request_id) if move is None else self.giver.left(request_id, move):
            self._resumed.append(request_id)

    def taken(self, request_id: int) -> None:
        self.giver.taken(request_id)

    def answer(self) -> None:
        """Between steps."""
        for answer in self.giver.answers(may_stop=False):
            self.say(self._callers[answer.request_id], self._answered(answer))

    def end_step(self, handed_off: list[int]) -> tuple[Told, list[tuple[int, Word]]]:
        """What is to be reported, and what is to be said after the report."""
        standing = self.body.scheduler.moves.suspended
        before = set(standing)
        answers = self.giver.answers(may_stop=True)
        letters: list[tuple[int, Word]] = [(self._callers[a.request_id], self._answered(a)) for a in answers]
        called = {answer.request_id for answer in answers}
        offers = {i: self._offer(i) for i in handed_off if i not in called}
        told = Told([*handed_off, *(i for i in standing if i not in before)], self._resumed, self._arrived, offers)
        self._resumed, self._arrived = [], []
        return told, letters

    def _answered(self, answer: Answer) -> Answered:
        return Answered(answer, self._parting(answer.request_id) if answer.is_last else None)

    def _offer(self, request_id: int) -> Answered:
        return Answered(self.giver.offer(request_id), self._parting(request_id))

    def _parting(self, request_id: int) -> Sequence:
        sequence = self.body.scheduler.find(request_id)
        assert sequence is not None
        return copy_of(sequence)

    def check(self) -> None:
        """Nobody is expected but what is being taken, and what stands still for a move is here."""
        scheduler = self.body.scheduler
        scheduler.check()
        assert scheduler.moves.expected.keys() == self.orders.keys()
        assert len(self.taker) == len(self.orders)
        assert all(number in self.taker for number in self.orders)

    def check_empty(self) -> None:
        """Everything has ended."""
        scheduler = self.body.scheduler
        self.check()
        assert scheduler.is_idle(), repr(scheduler)
        assert scheduler.pool.blocks_free == scheduler.pool.blocks
        assert not any([self.orders, self.copies, self._arrived, self._resumed, self._partings])
        assert not self.giver.is_called()
