"""What enters an instance's next step: decodes first, then prefill chunks as large as the tightest decode can bear.

    budget    .95 * min over decodes of (f + k * .97 Q - now), less the decodes' own time; the rest is prefill
    order     priority, then first-token deadline, then arrival; work that is lost goes behind all that is not
    lost      now + t0 + x * prefill > deadline, x being how much the present decodes stretch a prefill

A lost request still runs, in whatever room is left, and once it has been late for `starvation_s` it gets a trickle of
every step ahead of the rest, so that it ends. When blocks run out, the least important work with the most slack gives
up its blocks and is computed again later.

The rules were ranked by measurement on traces before this was written; fixed chunks and arrival order (`StepRules`) are
kept as what other engines do. The scheduler runs inside a real instance and inside a simulated one alike: it never
reads a clock and knows no tensor. Token ids pass through it only to be counted, hashed and compared with stop ids.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from hyperflexis.core import budget
from hyperflexis.core.blocks import BlockPool
from hyperflexis.core.latency import OnlineLatency, StepShape, chunk_pairs
from hyperflexis.core.prefix import extend_hashes
from hyperflexis.core.slo import Slo


@dataclass(frozen=True, slots=True)
class StepRules:
    """The part of a policy that acts inside an instance."""

    order: Literal["slack", "fcfs"] = "slack"
    sizing: Literal["slack", "fixed"] = "slack"
    prefill_tokens_max: int = 2048
    """Most prefill tokens in one step."""
    prefill_tokens_floor: int = 64
    """The first prefill in order gets at least this many, however tight the decodes are."""
    patience_s: float = 60.0
    """The first-token deadline of work that was promised none."""
    starvation_s: float = 30.0
    """A request this late goes first with a floor-sized chunk per step."""

    def __post_init__(self) -> None:
        for name in ("prefill_tokens_max", "prefill_tokens_floor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def floor(self) -> int:
        return min(self.prefill_tokens_floor, self.prefill_tokens_max)


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside an instance. `tokens` is prompt and output; the last may not be computed yet."""

    id: int
    tokens: list[int]
    prompt_tokens: int
    max_tokens: int
    slo: Slo
    arrived_s: float
    priority: int = 0
    stop_ids: frozenset[int] = frozenset()
    first_token_s: float | None = None
    reuses_prefix: bool = True

    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    published: int = 0
    has_started: bool = False
    pace_s: float | None = None
    deadline_s: float = math.inf
    key: tuple[float, float, float, int] = (0.0, 0.0, 0.0, 0)

    @property
    def emitted(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def left(self) -> int:
        """Tokens that still have to be computed before the next one can be sampled."""
        return len(self.tokens) - self.computed

    def due_s(self) -> float:
        """The instant at which the next token is due; infinite where no pace was promised."""
        if self.first_token_s is None or self.pace_s is None:
            return math.inf
        return self.first_token_s + self.emitted * self.pace_s


class Chunk(NamedTuple):
    """Tokens start .. start + count of one sequence; `samples` says whether the next token is wanted after them."""

    sequence: Sequence
    start: int
    tokens: int
    samples: bool


@dataclass(slots=True)
class StepPlan:
    """One step. `started` are (sequence, tokens found in the prefix cache) of prefills that begin with it."""

    decodes: list[Chunk] = field(default_factory=list)
    prefills: list[Chunk] = field(default_factory=list)
    started: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)
    computing: set[bytes] = field(default_factory=set)
    """Content that this step's prefills compute or will go on to compute."""

    @property
    def chunks(self) -> list[Chunk]:
        return self.decodes + self.prefills

    @property
    def shape(self) -> StepShape:
        return StepShape(
            prefill_tokens=sum(chunk.tokens for chunk in self.prefills),
            prefill_pairs=sum(chunk_pairs(chunk.tokens, chunk.start) for chunk in self.prefills),
            decode_seqs=len(self.decodes),
            context_tokens=sum(len(chunk.sequence.tokens) for chunk in self.decodes),
        )


class Finished(NamedTuple):
    sequence_id: int
    by_stop: bool
    """Else by length."""


class StepScheduler:
    """All sequences of one instance, their blocks, and the choice of each step.

    The caller alternates `plan` and `commit`; `add` and `cancel` may come between two steps, never within one.
    """

    def __init__(self, pool: BlockPool, seqs_max: int, latency: OnlineLatency, rules: StepRules | None = None) -> None:
        if seqs_max < 1:
            raise ValueError(f"an instance needs room for at least one sequence, not {seqs_max}")
        self.pool = pool
        self.seqs_max = seqs_max
        self.latency = latency
        self.rules = rules or StepRules()
        self._sequences: dict[int, Sequence] = {}
        self._running: dict[int, Sequence] = {}
        self._waiting: list[Sequence] = []

    @property
    def waiting_seqs(self) -> int:
        return len(self._waiting)

    @property
    def running_seqs(self) -> int:
        return len(self._running)

    @property
    def waiting_tokens(self) -> int:
        return sum(sequence.left for sequence in self._waiting)

    def is_idle(self) -> bool:
        return not self._sequences

    def add(self, sequence: Sequence) -> None:
        """Take a sequence, new or resumed.

        Raises:
            ValueError: it could not be held even by an empty pool.
        """
        assert sequence.id not in self._sequences, f"sequence {sequence.id} is here already"
        needed = self.pool.blocks_for(sequence.prompt_tokens + sequence.max_tokens)
        if needed > self.pool.blocks:
            raise ValueError(f"the request needs {needed} KV blocks and the instance has {self.pool.blocks}")
        self._sequences[sequence.id] = sequence
        if sequence.reuses_prefix:
            extend_hashes(sequence.hashes, sequence.tokens, self.pool.block_tokens)
        self._rank(sequence)
        insort(self._waiting, sequence, key=_key)

    def cancel(self, sequence_id: int) -> bool:
        """Forget a sequence and free its blocks; False if it is not here (any more)."""
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            return False
        self._drop(sequence)
        return True

    def fail(self, sequence_id: int) -> None:
        """Forget a sequence that could not be computed, and what its blocks were believed to hold."""
        sequence = self._sequences[sequence_id]
        self.pool.disown(sequence.blocks)
        self._drop(sequence)

    def reconfigure(self, rules: StepRules) -> None:
        """Put new rules in force; what waits is put into their order."""
        self.rules = rules
        for sequence in self._waiting:
            self._rank(sequence)
        self._waiting.sort(key=_key)

    def plan(self, now: float) -> StepPlan:
        """Choose the next step and give it its blocks. An empty plan means that there is nothing to compute."""
        plan = StepPlan()
        self._make_room_for_decodes(plan)
        for sequence in self._running.values():
            self._grow(sequence, len(sequence.tokens))
            plan.decodes.append(Chunk(sequence, sequence.computed, 1, True))
        if self._waiting:
            self._fill(plan, now)
        return plan

    def commit(self, plan: StepPlan, sampled: Mapping[int, int], now: float) -> list[Finished]:
        """Take the outcome of a step: the token of each chunk that samples, by sequence id.

        A sampling chunk without a token has failed; the caller is expected to `fail` its sequence.
        """
        finished = []
        for sequence, _, tokens, samples in plan.chunks:
            sequence.computed += tokens
            self._publish(sequence)
            token = sampled.get(sequence.id) if samples else None
            if token is None:
                continue
            ended = self._append(sequence, token, now)
            if ended is not None:
                finished.append(ended)
        return finished

    def observe(self, shape: StepShape, duration_s: float) -> bool:
        """Learn how long a step really took; returns whether the latency model is another one now."""
        return self.latency.observe(shape, duration_s)

    # -- decodes

    def _make_room_for_decodes(self, plan: StepPlan) -> None:
        while self._running:
            needed = sum(1 for s in self._running.values() if self._missing_blocks(s, len(s.tokens)))
            if needed <= self.pool.blocks_free:
                return
            self._preempt(self._least_important(), plan)

    def _least_important(self) -> Sequence:
        holders = [sequence for sequence in self._sequences.values() if sequence.blocks]
        return max(holders, key=self._expendability)

    def _expendability(self, sequence: Sequence) -> tuple[int, float, float, int]:
        """Whose blocks are taken first: the lowest priority, and in it the most slack (prefills have no token due yet).

        First come, first served looks at neither.
        """
        if self.rules.order == "fcfs":
            return (0, 0.0, sequence.arrived_s, sequence.id)
        return (-sequence.priority, sequence.due_s(), sequence.arrived_s, sequence.id)

    def _preempt(self, sequence: Sequence, plan: StepPlan) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.published = 0
        sequence.has_started = False
        plan.preempted.append(sequence.id)
        if self._running.pop(sequence.id, None) is not None:
            plan.decodes = [chunk for chunk in plan.decodes if chunk.sequence is not sequence]
            self._rank(sequence)
            insort(self._waiting, sequence, key=_key)

    # -- prefills

    def _fill(self, plan: StepPlan, now: float) -> None:
        model, rules = self.latency.model, self.rules
        seqs, context = len(plan.decodes), sum(len(chunk.sequence.tokens) for chunk in plan.decodes)
        room_s = self._room_s(now, seqs, context) if rules.sizing == "slack" else math.inf
        tokens_left = rules.prefill_tokens_max
        walk = list(self._walk(now, seqs, context))
        behind = [sequence for sequence, _ in walk if sequence.blocks]
        held = len(self._running) + len(behind)
        floor = rules.floor
        for sequence, most in walk:
            if sequence in behind:
                behind.remove(sequence)
            if held >= self.seqs_max and not sequence.blocks:
                continue
            if not self._begin(sequence, plan):
                continue
            fits = tokens_left if room_s == math.inf else model.chunk_tokens(room_s, sequence.computed)
            tokens = self._allot(sequence, min(most, tokens_left, sequence.left, max(fits, floor)), behind, plan)
            if tokens == 0:
                self._unbegin(sequence)
                break
            held += not sequence.has_started
            room_s -= model.chunk_s(tokens, sequence.computed)
            tokens_left -= tokens
            self._schedule(sequence, tokens, plan)
            if most > rules.floor and len(walk) > 1:  # Nobody waits for a trickle: that would be as slow as it is.
                plan.computing.update(sequence.hashes[sequence.published :])
            if most > floor:
                floor = 0  # Only the first in order has a claim on a floor, besides the starved one's own.
            if tokens_left <= 0 or (room_s <= 0 and not floor):
                break

    def _room_s(self, now: float, seqs: int, context: int) -> float:
        """Seconds of prefill that the decodes of this step can bear; infinite if none of them has a promise to lose."""
        model = self.latency.model
        base_s = self.latency.decode_step_s(seqs, context)
        slack_s = math.inf
        for sequence in self._running.values():
            if sequence.pace_s is None:
                continue
            due_s = sequence.due_s()
            left = sequence.max_tokens - sequence.emitted
            if not budget.is_decode_lost(due_s, now, sequence.pace_s, left, base_s):
                slack_s = min(slack_s, due_s - now)
        if slack_s == math.inf:
            return math.inf
        step_s = budget.SAFETY * slack_s / self.latency.correction.factor("mixed")
        return step_s - model.decode_step_s(seqs, context) - max(0.0, model.prefill_base_s - model.decode_base_s)

    def _walk(self, now: float, seqs: int, context: int) -> Iterator[tuple[Sequence, int]]:
        """Waiting sequences in the order in which they may enter, each with the most tokens it may have."""
        everything = 1 << 30
        if self.rules.order == "fcfs":
            for sequence in list(self._waiting):
                yield sequence, everything
            return
        stretch = self._stretch(seqs, context) * self.latency.correction.factor("mixed" if seqs else "prefill")
        feasible: list[Sequence] = []
        lost: list[Sequence] = []
        for sequence in self._waiting:
            (lost if self._is_lost(sequence, now, stretch) else feasible).append(sequence)
        starved = min(lost, key=lambda s: (s.deadline_s, s.id), default=None)
        if starved is not None and now > starved.deadline_s + self.rules.starvation_s:
            yield starved, self.rules.floor if feasible else everything
            lost.remove(starved)
        for sequence in feasible:
            yield sequence, everything
        lost.sort(key=lambda s: (-s.priority, s.arrived_s, s.id))
        for sequence in lost:
            yield sequence, everything

    def _stretch(self, seqs: int, context: int) -> float:
        paces = [s.pace_s for s in self._running.values() if s.pace_s is not None]
        if not paces:
            return 1.0
        model, rules = self.latency.model, self.rules
        bounds = (rules.floor, rules.prefill_tokens_max)
        chunk = budget.chunk_between_decodes(model, min(paces), seqs, context, bounds)
        return budget.prefill_inflation(model, chunk, seqs, context)

    def _is_lost(self, sequence: Sequence, now: float, stretch: float) -> bool:
        """Whether its first token would be late even if it went first from now on."""
        if sequence.first_token_s is not None:
            return False
        model = self.latency.model
        work_s = model.chunk_s(sequence.left, sequence.computed)
        return now + model.prefill_base_s + stretch * work_s > sequence.deadline_s

    def _begin(self, sequence: Sequence, plan: StepPlan) -> bool:
        """Attach what the prefix cache holds; False if a neighbour is computing the next block in this step.

        Waiting one step for that neighbour is cheaper than computing the same block twice.
        """
        if sequence.blocks or not sequence.reuses_prefix:
            return True
        # The last token is always computed, for its logits.
        usable = sequence.hashes[: (len(sequence.tokens) - 1) // self.pool.block_tokens]
        found = self.pool.find(usable)
        if len(found) < len(usable) and usable[len(found)] in plan.computing:
            return False
        self.pool.hold(found)
        sequence.blocks = found
        sequence.computed = len(found) * self.pool.block_tokens
        sequence.published = len(found)
        return True

    def _unbegin(self, sequence: Sequence) -> None:
        """Give back a prefix that was attached for nothing."""
        if not sequence.has_started:
            self.pool.release(sequence.blocks)
            sequence.blocks = []
            sequence.computed = sequence.published = 0

    def _allot(self, sequence: Sequence, tokens: int, behind: list[Sequence], plan: StepPlan) -> int:
        """Blocks for the next `tokens` tokens, or for as many as can be had; returns how many tokens that is.

        `behind` are the unfinished prefills whose turn in this step comes later.
        """
        while tokens > 0:
            if self._missing_blocks(sequence, sequence.computed + tokens) <= self.pool.blocks_free:
                self._grow(sequence, sequence.computed + tokens)
                return tokens
            victim = self._outranked(sequence, behind)
            if victim is None:
                room = (len(sequence.blocks) + self.pool.blocks_free) * self.pool.block_tokens
                tokens = min(tokens, room - sequence.computed)
            else:
                self._preempt(victim, plan)
        return 0

    def _outranked(self, sequence: Sequence, behind: list[Sequence]) -> Sequence | None:
        """Someone whose blocks this sequence may take: a prefill behind it, or a decode of lower priority.

        Whoever is first in this step's order can take from all other prefills, so that two of them never hold the
        last blocks against each other.
        """
        candidates = [other for other in behind if other.blocks]
        if self.rules.order == "slack":
            candidates += [other for other in self._running.values() if other.priority < sequence.priority]
        return max(candidates, key=self._expendability, default=None)

    def _schedule(self, sequence: Sequence, tokens: int, plan: StepPlan) -> None:
        if not sequence.has_started:
            sequence.has_started = True
            plan.started.append((sequence.id, sequence.computed))
        plan.prefills.append(Chunk(sequence, sequence.computed, tokens, tokens == sequence.left))

    # -- blocks and ends

    def _missing_blocks(self, sequence: Sequence, tokens: int) -> int:
        return self.pool.blocks_for(tokens) - len(sequence.blocks)

    def _grow(self, sequence: Sequence, tokens: int) -> None:
        missing = self._missing_blocks(sequence, tokens)
        if missing > 0:
            sequence.blocks.extend(self.pool.take(missing))

    def _publish(self, sequence: Sequence) -> None:
        full = sequence.computed // self.pool.block_tokens
        if not sequence.reuses_prefix or full == sequence.published:
            return
        extend_hashes(sequence.hashes, sequence.tokens, self.pool.block_tokens)
        for index in range(sequence.published, full):
            self.pool.publish(sequence.blocks[index], sequence.hashes[index])
        sequence.published = full

    def _append(self, sequence: Sequence, token: int, now: float) -> Finished | None:
        sequence.tokens.append(token)
        if sequence.first_token_s is None:
            sequence.first_token_s = now
            sequence.pace_s = budget.pace_s(sequence.slo, sequence.arrived_s, now, sequence.max_tokens)
        if sequence.id not in self._running:
            self._waiting.remove(sequence)
            self._running[sequence.id] = sequence
        by_stop = token in sequence.stop_ids
        if not by_stop and sequence.emitted < sequence.max_tokens:
            return None
        self._drop(sequence)
        return Finished(sequence.id, by_stop)

    def _drop(self, sequence: Sequence) -> None:
        del self._sequences[sequence.id]
        if self._running.pop(sequence.id, None) is None:
            self._waiting.remove(sequence)
        self.pool.release(sequence.blocks)
        sequence.blocks = []

    # -- order

    def _rank(self, sequence: Sequence) -> None:
        """Fix a sequence's place among those that wait; deadlines do not move while it does."""
        if sequence.first_token_s is not None:
            pace_s = budget.pace_s(sequence.slo, sequence.arrived_s, sequence.first_token_s, sequence.max_tokens)
            sequence.pace_s = pace_s
            sequence.deadline_s = sequence.due_s() if pace_s is not None else sequence.first_token_s
        else:
            sequence.deadline_s = budget.first_token_deadline_s(
                sequence.slo,
                sequence.arrived_s,
                sequence.max_tokens,
                self.latency.decode_step_s(1, len(sequence.tokens)),
                self.rules.patience_s,
            )
        if self.rules.order == "fcfs":
            sequence.key = (0.0, sequence.arrived_s, 0.0, sequence.id)
        else:
            sequence.key = (-sequence.priority, sequence.deadline_s, sequence.arrived_s, sequence.id)

    def check(self) -> None:
        """Every sequence in one place, every block accounted for, waiting work in order."""
        self.pool.check()
        waiting = [sequence.id for sequence in self._waiting]
        assert sorted([*waiting, *self._running]) == sorted(self._sequences), f"a sequence is misplaced: {self!r}"
        assert [s.key for s in self._waiting] == sorted(s.key for s in self._waiting), f"out of order: {self!r}"
        holders: dict[int, int] = {}
        for sequence in self._sequences.values():
            assert len(sequence.blocks) >= self.pool.blocks_for(sequence.computed), f"KV without a block: {sequence!r}"
            for block in sequence.blocks:
                holders[block] = holders.get(block, 0) + 1
        self.pool.check_holders(holders)

    def __repr__(self) -> str:
        return f"StepScheduler(running={sorted(self._running)}, waiting={[s.id for s in self._waiting]}, {self.pool!r})"


def _key(sequence: Sequence) -> tuple[float, float, float, int]:
    return sequence.key
