"""What enters an instance's next step: decodes first, then prefill chunks as large as the tightest decode can bear.

    budget    .95 * min over decodes of (f + k * .97 Q - now), less the decodes' own time; the rest is prefill
    order     first-token deadlines, as far as they can all be kept; what is given up for that goes behind (`order`)

Work that is given up still runs, in whatever room is left, and once it has been late for `starvation_s` it gets a
trickle of every step ahead of the rest, so that it ends. When blocks run out, the least important work with the most
slack gives up its blocks and is computed again later.

The rules were ranked by measurement on traces before this was written; fixed chunks and other orders (`StepRules`) are
what published systems do. The scheduler runs inside a real instance and inside a simulated one alike: it never reads a
clock and knows no tensor. Token ids pass through it only to be hashed and compared with stop ids, and a body that has
none may leave them out: lengths are counted.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Collection, Iterator, Mapping
from collections.abc import Sequence as Series
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from hyperflexis.core import budget, order
from hyperflexis.core.blocks import BlockPool
from hyperflexis.core.decodes import Decodes
from hyperflexis.core.latency import OnlineLatency, StepShape, chunk_pairs
from hyperflexis.core.moving import Held, Moves, Suspended
from hyperflexis.core.prefix import extend_hashes
from hyperflexis.core.slo import Slo

OrderName = Literal[
    "fewest_late",
    "timely_deadline",
    "timely_slack",
    "gain",
    "admission",
    "deadline",
    "slack",
    "priority",
    "arrival",
]
ORDERS = get_args(OrderName)
WALKED = {
    "fewest_late": order.fewest_late,
    "timely_deadline": order.timely_deadline,
    "timely_slack": order.timely_slack,
    "gain": order.most_gain,
    "admission": order.admitted,
}
"""Orders that depend on all that waits; `order` has them. The others are fixed when a request begins to wait."""
REORDER_S = 0.1
"""How long an order holds if nothing joins it: what goes first is looked at again."""
RECONSIDER_S = 1.0
"""The same for what has been given up, which may have become possible again."""


@dataclass(frozen=True, slots=True)
class StepRules:
    """The part of a policy that acts inside an instance."""

    order: OrderName = "fewest_late"
    sizing: Literal["slack", "fixed"] = "slack"
    prefill_tokens_max: int = 2048
    """Most prefill tokens in one step."""
    prefill_tokens_floor: int = 64
    """The first prefill in order gets at least this many, however tight the decodes are."""
    step_s_max: float = math.inf
    """The longest that a step with prefills is meant to take, but for the floor. What an instance is told, such as
    another role, waits for the step that runs."""
    patience_s: float = 60.0
    """The first-token deadline of work that was promised none."""
    starvation_s: float = 30.0
    """A request this late goes first with a floor-sized chunk per step, the one that was due first before the others.

    So however much work of higher priority could be in time, a prompt of P tokens waits at most for this and for P /
    floor + 1 steps after its deadline, and as many for each that was due before it and is as late; as long as it is
    neither `seqs_max` nor blocks that it lacks."""
    credit_spend_max: float = 0.0
    """Share of the time by which a first token came early that its later tokens may come late: 0 anchors them at the
    real first token, 1 at the promised one."""
    slack_share: float = budget.SAFETY
    """Share of the tightest slack that a step may use."""
    hands_off: bool = False
    """What has emitted its first token here stands still, to go on elsewhere: the role of prefill."""

    def __post_init__(self) -> None:
        for name in ("prefill_tokens_max", "prefill_tokens_floor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {self.order!r}")
        if not self.step_s_max > 0:
            raise ValueError(f"step_s_max must be above 0, not {self.step_s_max}")
        if not 0 < self.slack_share <= 1:
            raise ValueError(f"slack_share must be above 0 and at most 1, not {self.slack_share}")
        if not 0 <= self.credit_spend_max <= 1:
            raise ValueError(f"credit_spend_max must be between 0 and 1, not {self.credit_spend_max}")

    @property
    def floor(self) -> int:
        return min(self.prefill_tokens_floor, self.prefill_tokens_max)


class Sequence:
    """One request inside an instance.

    `tokens` is prompt and output, the last of which may not be computed yet; without token ids it stays empty and
    `emitted` says how much of the answer there is already.
    """

    __slots__ = (
        "_computed",
        "_emitted",
        "anchor_s",
        "arrived_s",
        "blocks",
        "deadline_s",
        "decodes",
        "expected_tokens",
        "first_token_s",
        "has_started",
        "hashes",
        "id",
        "is_admitted",
        "joined",
        "key",
        "max_tokens",
        "pace_s",
        "priority",
        "prompt_tokens",
        "published",
        "reuses_prefix",
        "slo",
        "stop_ids",
        "tenure",
        "tokens",
    )

    def __init__(  # noqa: PLR0917  # what every sequence has
        self,
        id: int,  # noqa: A002  # the field's name
        tokens: list[int],
        prompt_tokens: int,
        max_tokens: int,
        slo: Slo,
        arrived_s: float,
        *,
        emitted: int | None = None,
        expected_tokens: int = 0,
        hashes: list[bytes] | None = None,
        priority: int = 0,
        stop_ids: frozenset[int] = frozenset(),
        first_token_s: float | None = None,
        reuses_prefix: bool = True,
    ) -> None:
        self.id = id
        self.tokens = tokens
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.expected_tokens = min(expected_tokens, max_tokens) or max_tokens
        """How long its answer is believed to become."""
        self.slo = slo
        self.arrived_s = arrived_s
        self.priority = priority
        self.stop_ids = stop_ids
        self.first_token_s = first_token_s
        self.reuses_prefix = reuses_prefix
        self.hashes = [] if hashes is None else hashes
        self.blocks: list[int] = []
        self.published = 0
        self.tenure = 0
        """How often it has lost its blocks."""
        self.has_started = False
        self.is_admitted = False
        """Whether an order that admits has promised it a place."""
        self.pace_s: float | None = None
        self.anchor_s = math.inf
        """The instant from which paces are counted."""
        self.deadline_s = math.inf
        self.key: tuple[float, float, int] = (0.0, 0.0, 0)
        self.decodes: Decodes | None = None
        """Those it decodes with; None while it waits."""
        self.joined = 0
        """The step in which it would have emitted its token number zero, while it decodes."""
        if emitted is None:
            emitted = len(tokens) - prompt_tokens if tokens else 0
        self._emitted = emitted
        self._computed = 0

    @property
    def emitted(self) -> int:
        """Tokens of the answer so far."""
        return self._emitted if self.decodes is None else self.decodes.steps - self.joined

    @property
    def context_tokens(self) -> int:
        """Prompt and answer so far."""
        emitted = self._emitted if self.decodes is None else self.decodes.steps - self.joined
        return self.prompt_tokens + emitted

    @property
    def computed(self) -> int:
        """Tokens whose KV is there. A decode has all but its last token's."""
        return self._computed if self.decodes is None else self.context_tokens - 1

    @property
    def left(self) -> int:
        """Tokens that still have to be computed before the next one can be sampled."""
        return self.prompt_tokens + self._emitted - self._computed if self.decodes is None else 1

    def due_s(self) -> float:
        """The instant at which the next token is due; infinite where no pace was promised."""
        if self.pace_s is None:
            return math.inf
        return self.anchor_s + self.emitted * self.pace_s

    def compute(self, tokens: int) -> None:
        """Count prefill tokens as computed."""
        self._computed += tokens

    def catch_up(self, emitted: list[int], first_token_s: float | None) -> None:
        """Its answer has got this far elsewhere: so many tokens of it, and the first one then, unless that is known."""
        self.tokens[self.prompt_tokens :] = emitted
        self._emitted = len(emitted)
        if self.first_token_s is None:
            self.first_token_s = first_token_s

    def rewind(self, computed: int) -> None:
        """Begin the prefill anew, this much of it being there."""
        self._computed = computed

    def count(self, emitted: int) -> None:
        """Stop decoding with this many tokens emitted."""
        self._emitted = emitted
        self._computed = self.prompt_tokens + emitted - 1
        self.decodes = None

    def __repr__(self) -> str:
        return f"Sequence({self.id}, {self.computed} of {self.context_tokens} computed, {self.emitted} emitted)"


class Chunk(NamedTuple):
    """Tokens start .. start + count of one sequence; `samples` says whether the next token is wanted after them."""

    sequence: Sequence
    start: int
    tokens: int
    samples: bool


class StepPlan:
    """One step, or several alike of decodes alone.

    `started` are (sequence, tokens found in the prefix cache) of prefills that begin with it; `began` are, once it is
    committed, those that decode from now on; of these, `handed_off` stand still instead.
    """

    __slots__ = (
        "_decoding",
        "_running",
        "began",
        "computing",
        "handed_off",
        "preempted",
        "prefills",
        "started",
        "steps",
    )

    def __init__(self, decodes: Decodes) -> None:
        self._running = decodes
        self._decoding: list[Chunk] | None = None
        self.prefills: list[Chunk] = []
        self.started: list[tuple[int, int]] = []
        self.preempted: list[int] = []
        self.began: list[Sequence] = []
        self.handed_off: list[int] = []
        self.computing: set[bytes] = set()
        """Content that this step's prefills compute or will go on to compute."""
        self.steps = 1

    @property
    def decodes(self) -> list[Chunk]:
        """Every decode's chunk. They are made when first asked for, which must be before the commit."""
        if self._decoding is None:
            running = self._running.sequences.values()
            self._decoding = [Chunk(sequence, sequence.computed, 1, True) for sequence in running]
        return self._decoding

    @property
    def chunks(self) -> list[Chunk]:
        return self.decodes + self.prefills

    @property
    def is_empty(self) -> bool:
        return not self.prefills and not self._running.sequences

    @property
    def is_void(self) -> bool:
        """Nothing is computed, and nobody has lost blocks either: there is no step to run, and none to tell."""
        return self.is_empty and not self.preempted

    @property
    def shape(self) -> StepShape:
        """What the (first) step computes."""
        if not self.prefills:
            return StepShape(0, 0, len(self._running.sequences), self._running.context_tokens)
        return StepShape(
            prefill_tokens=sum([chunk.tokens for chunk in self.prefills]),
            prefill_pairs=sum([chunk_pairs(chunk.tokens, chunk.start) for chunk in self.prefills]),
            decode_seqs=len(self._running.sequences),
            context_tokens=self._running.context_tokens,
        )


class Finished(NamedTuple):
    sequence_id: int
    by_stop: bool
    """Else by length."""


class StepScheduler:
    """All sequences of one instance, their blocks, and the choice of each step.

    The caller alternates `plan` and `commit`; everything else may come between two steps, never within one.
    """

    def __init__(
        self,
        pool: BlockPool,
        seqs_max: int,
        latency: OnlineLatency,
        rules: StepRules | None = None,
        *,
        names_blocks: bool = True,
    ) -> None:
        """With `names_blocks` off, blocks that answers fill are only counted, for a body that has no tensors in them.

        What is chosen is the same.
        """
        if seqs_max < 1:
            raise ValueError(f"an instance needs room for at least one sequence, not {seqs_max}")
        self.pool = pool
        self.seqs_max = seqs_max
        self.latency = latency
        self.rules = rules or StepRules()
        self.decodes = Decodes(pool.block_tokens)
        self._names_blocks = names_blocks
        self._sequences: dict[int, Sequence] = {}
        self._waiting: list[Sequence] = []
        """In order of deadlines, or of arrivals where the rules say so."""
        self._partial: dict[int, Sequence] = {}
        """Those of `_waiting` that hold blocks."""
        self._first: list[Sequence] = []
        self._behind: list[Sequence] = []
        """With `_first`, those of `_waiting` that have been ordered; the given up ones, in order."""
        self._joined: list[Sequence] = []
        """The others."""
        self._ordered_s = self._reconsidered_s = -math.inf
        self.moves = Moves()

    @property
    def waiting_seqs(self) -> int:
        return len(self._waiting)

    @property
    def running_seqs(self) -> int:
        return len(self.decodes.sequences)

    @property
    def waiting_tokens(self) -> int:
        return sum(sequence.left for sequence in self._waiting)

    def sequences(self) -> Collection[Sequence]:
        """Everything that is here: waiting, decoding and suspended."""
        return self._sequences.values()

    def find(self, sequence_id: int) -> Sequence | None:
        return self._sequences.get(sequence_id)

    def is_idle(self) -> bool:
        return not self._sequences

    def is_resting(self) -> bool:
        """Whether all that is here stands still, so that there is nothing to compute."""
        return len(self._sequences) == len(self.moves.suspended)

    def add(self, sequence: Sequence) -> None:
        """Take a sequence, new or resumed.

        Raises:
            ValueError: it could not be held even by an empty pool.
        """
        assert sequence.id not in self._sequences, f"sequence {sequence.id} is here already"
        assert sequence.id not in self.moves.expected, f"sequence {sequence.id} is expected and must be adopted"
        needed = self.pool.blocks_for(sequence.prompt_tokens + sequence.max_tokens)
        if needed > self.pool.blocks:
            raise ValueError(f"the request needs {needed} KV blocks and the instance has {self.pool.blocks}")
        self._sequences[sequence.id] = sequence
        self.name_content(sequence)
        self._wait(sequence)

    def cancel(self, sequence_id: int) -> bool:
        """Forget a sequence and free its blocks; False if it is not here (any more)."""
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            return False
        self._drop(sequence)
        return True

    def end(self, sequence_id: int) -> None:
        """Its answer is complete: for bodies that count tokens and do not have them."""
        self._drop(self._sequences[sequence_id])

    def fail(self, sequence_id: int) -> None:
        """Forget a sequence that could not be computed, and what its blocks were believed to hold."""
        sequence = self._sequences[sequence_id]
        self.pool.disown(sequence.blocks)
        self._drop(sequence)

    def reconfigure(self, rules: StepRules) -> None:
        """Put new rules in force; what waits is put into their order."""
        self.rules = rules
        self._first, self._behind, self._joined = [], [], []
        for sequence in self._waiting:
            self._rank(sequence)
        self._waiting.sort(key=_key)
        if rules.order in WALKED:
            self._joined = list(self._waiting)

    def plan(self, now: float, steps_max: int = 1) -> StepPlan:
        """Choose the next step and give it its blocks. An empty plan means that there is nothing to compute.

        Where nothing waits, the plan may stand for up to `steps_max` steps that are alike.
        """
        plan = StepPlan(self.decodes)
        if self.decodes.sequences:
            self._make_room_for_decodes(plan)
            self._cover_decodes(1)
        if self._waiting:
            if len(self._waiting) > 1 or not self._fill_with_all(self._waiting[0], plan, now):
                self._fill(plan, now)
        elif steps_max > 1 and self.decodes.sequences:
            plan.steps = self._steps_alike(steps_max)
        return plan

    def commit(self, plan: StepPlan, sampled: Mapping[int, int] | None, now: float, steps: int = 1) -> list[Finished]:
        """Take the outcome of a plan, of which `steps` were taken: the token of each chunk that samples, by sequence.

        A sampling chunk without a token has failed; the caller is expected to `fail` its sequence. None instead of
        tokens stands for one token, whatever it is, for every such chunk; the caller says what has ended.
        """
        if steps > 1:
            self._cover_decodes(steps)
        decoded = list(self.decodes.sequences.values()) if sampled is not None else []
        self.decodes.advance(steps)
        if sampled is not None:
            for sequence in self.decodes.crossing():
                self._publish(sequence)
        for sequence, _, tokens, samples in plan.prefills:
            sequence.compute(tokens)
            self._publish(sequence)
            if samples and (sampled is None or sequence.id in sampled):
                self._begin_decoding(sequence, now)
                plan.began.append(sequence)
                if sequence.decodes is None:
                    plan.handed_off.append(sequence.id)
        if sampled is None:
            return []
        ends = [self._append(sequence, sampled.get(sequence.id)) for sequence in [*decoded, *plan.began]]
        finished = [end for end in ends if end is not None]
        plan.handed_off = [sequence_id for sequence_id in plan.handed_off if sequence_id in self._sequences]
        return finished

    def observe(self, shape: StepShape, duration_s: float) -> bool:
        """Learn how long a step really took; returns whether the latency model is another one now."""
        return self.latency.observe(shape, duration_s)

    # -- moves (see `moving`)

    def held(self, sequence_id: int, since: int = 0) -> Held | None:
        """What a sequence has in its blocks from index `since` on; None if it is not here (any more).

        Blocks that are only counted have no names to tell until the sequence is suspended.
        """
        sequence = self._sequences.get(sequence_id)
        return None if sequence is None else self._held(sequence, since)

    def _held(self, sequence: Sequence, since: int) -> Held:
        computed = sequence.computed
        return Held(since, sequence.blocks[since : self.pool.blocks_for(computed)], computed, sequence.tenure)

    def suspend(self, sequence_id: int) -> Held:
        """Let a sequence take part in no step, and keep its blocks, until it is resumed or cancelled."""
        sequence = self._sequences[sequence_id]
        assert sequence_id not in self.moves.suspended, f"sequence {sequence_id} is suspended already"
        was_decoding = sequence.decodes is not None
        if was_decoding:
            counted = 0 if self._names_blocks else self._lent(sequence)
            self._stop_decoding(sequence)
            sequence.blocks += self.pool.take(counted)
        else:
            self._unwait(sequence)
        self.moves.suspended[sequence_id] = Suspended(sequence, was_decoding)
        return self._held(sequence, 0)

    def resume(self, sequence_id: int) -> None:
        """Let a suspended sequence go on where it stood."""
        sequence, was_decoding = self.moves.suspended.pop(sequence_id)
        self._place(sequence, is_decoding=was_decoding)

    def expect(self, sequence_id: int, tokens: int, tokens_max: int, hashes: Series[bytes] = ()) -> list[int] | None:
        """Set a seat and blocks for so many tokens aside for a sequence that will arrive; None if they cannot be had.

        Those that hold the beginning of its content, named by `hashes`, are used as they are: from now on nobody can
        evict them. `moves.found` says how many. Nobody loses a block by it, and nobody gets the others. Asked again
        with more tokens it adds blocks, or refuses and leaves what there is. `tokens_max` is what the sequence may grow
        to: it must fit an empty pool.
        """
        assert sequence_id not in self._sequences, f"sequence {sequence_id} is here already"
        pool, expected = self.pool, self.moves.expected
        is_new = sequence_id not in expected
        # The last token is always computed, for its logits.
        found = pool.find(hashes[: (tokens - 1) // pool.block_tokens]) if is_new and hashes else []
        blocks = found or expected.get(sequence_id, [])
        missing = max(0, pool.blocks_for(tokens) - len(blocks))
        lacks_seat = is_new and self._seats_taken() >= self.seqs_max
        lacks_blocks = missing > pool.free_beside(found) or pool.blocks_for(max(tokens, tokens_max)) > pool.blocks
        if lacks_seat or lacks_blocks:
            return None
        if found:
            pool.hold(found)
            self.moves.found[sequence_id] = len(found)
        expected[sequence_id] = blocks + pool.take(missing)
        return list(expected[sequence_id])

    def release(self, sequence_id: int) -> bool:
        """Expect a sequence no longer; False if nobody did (any more)."""
        blocks = self.moves.expected.pop(sequence_id, None)
        if blocks is None:
            return False
        self.moves.found.pop(sequence_id, None)
        self.pool.release(blocks)
        return True

    def adopt(self, sequence: Sequence, computed: int, now: float) -> None:
        """Take an expected sequence whose first `computed` tokens are in its blocks by now; give back what is over.

        With all but its last token computed, and that one emitted, it decodes from the next step on.
        """
        assert sequence.id not in self._sequences, f"sequence {sequence.id} is here already"
        blocks, needed = self.moves.expected.pop(sequence.id), self.pool.blocks_for(computed)
        shared = self.moves.found.pop(sequence.id, 0) * self.pool.block_tokens
        assert not 0 < computed < shared, f"the next of its tokens would be written to what others share: {sequence!r}"
        assert computed < sequence.context_tokens, f"nothing is left to compute: {sequence!r}"
        assert needed <= len(blocks), f"{computed} tokens in {len(blocks)} blocks: {sequence!r}"
        self.pool.release(blocks[needed:])
        self._sequences[sequence.id] = sequence
        sequence.blocks = blocks[:needed]
        sequence.rewind(computed)
        sequence.has_started = bool(sequence.blocks)
        self.name_content(sequence)
        self._publish(sequence)
        is_decoding = sequence.emitted > 0 and sequence.left == 1
        if is_decoding:
            self._start_pace(sequence, now)
        self._place(sequence, is_decoding=is_decoding)

    def _place(self, sequence: Sequence, *, is_decoding: bool) -> None:
        """Let a sequence that has what it has go on."""
        if is_decoding:
            self.decodes.join(sequence)
            return
        self._wait(sequence)
        if sequence.blocks:
            self._partial[sequence.id] = sequence

    def _seats_taken(self) -> int:
        return len(self.decodes.sequences) + len(self._partial) + self.moves.seats

    # -- decodes

    def _make_room_for_decodes(self, plan: StepPlan) -> None:
        if len(self.decodes.sequences) <= self.pool.blocks_free:  # Nobody needs more than one.
            return
        while self.decodes.sequences:
            if self._blocks_due() <= self.pool.blocks_free:
                return
            self._preempt(self._least_important(), plan)

    def _blocks_due(self) -> int:
        """How many blocks the decodes lack for their next tokens."""
        crossing = self.decodes.crossing()
        if not self._names_blocks:
            return len(crossing)
        return sum([1 for sequence in crossing if self._missing_blocks(sequence, sequence.context_tokens) > 0])

    def _cover_decodes(self, steps: int) -> None:
        """Give every decode the blocks of its next `steps` tokens."""
        if not self._names_blocks:
            self.pool.lend(self.decodes.cover(steps))
            return
        growing = self.decodes.crossing() if steps == 1 else self.decodes.sequences.values()
        for sequence in growing:
            self._grow(sequence, sequence.context_tokens + steps - 1)

    def _stop_decoding(self, sequence: Sequence) -> None:
        """It leaves the decodes; blocks of its that have names stay with it."""
        if not self._names_blocks:
            self.pool.take_back(self._lent(sequence))
        self.decodes.leave(sequence)

    def _lent(self, sequence: Sequence) -> int:
        """Blocks of a decode that are only counted."""
        return self.decodes.blocks_covered(sequence) - len(sequence.blocks)

    def _steps_alike(self, steps_max: int) -> int:
        """How many steps of the decodes alone the free blocks allow; this one has its blocks already."""
        block_tokens = self.pool.block_tokens
        free = self.pool.blocks_free
        if free >= len(self.decodes.sequences) * -(-steps_max // block_tokens):  # Nobody could need more.
            return steps_max
        steps_max = min(steps_max, block_tokens)
        for ahead in range(1, steps_max):
            free -= len(self.decodes.crossing(ahead))
            if free < 0:
                return ahead
        return steps_max

    def _least_important(self) -> Sequence:
        holders = [*self.decodes.sequences.values(), *self._partial.values()]
        return max(holders, key=self._expendability)

    def _expendability(self, sequence: Sequence) -> tuple[int, float, float, int]:
        """Whose blocks are taken first: the lowest priority, and in it the most slack (prefills have no token due yet).

        First come, first served looks at neither.
        """
        if self.rules.order == "arrival":
            return (0, 0.0, sequence.arrived_s, sequence.id)
        return (-sequence.priority, sequence.due_s(), sequence.arrived_s, sequence.id)

    def _preempt(self, sequence: Sequence, plan: StepPlan) -> None:
        if sequence.decodes is not None:
            self._stop_decoding(sequence)
            self._wait(sequence)
        self._let_go(sequence)
        plan.preempted.append(sequence.id)

    def _let_go(self, sequence: Sequence) -> None:
        """Give back all blocks of a sequence that waits, and what was computed in them."""
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.rewind(0)
        sequence.published = 0
        sequence.tenure += 1
        sequence.has_started = False
        self._partial.pop(sequence.id, None)

    def _begin_decoding(self, sequence: Sequence, now: float) -> None:
        """Its first token, or after a preemption the next one, is out."""
        self._unwait(sequence)
        sequence.count(sequence.emitted + 1)
        if sequence.first_token_s is None:
            self._start_pace(sequence, now)
        if self.rules.hands_off:
            self.moves.suspended[sequence.id] = Suspended(sequence, was_decoding=True)
        else:
            self.decodes.join(sequence)

    def _start_pace(self, sequence: Sequence, now: float) -> None:
        """Anchor its pace at its first token, which is this one unless it had one before."""
        if sequence.first_token_s is None:
            sequence.first_token_s = now
        self._set_pace(sequence)

    def _set_pace(self, sequence: Sequence) -> None:
        first_s = sequence.first_token_s
        assert first_s is not None
        sequence.pace_s = budget.pace_s(sequence.slo, sequence.arrived_s, first_s, sequence.expected_tokens)
        sequence.anchor_s = budget.anchor_s(sequence.slo, sequence.arrived_s, first_s, self.rules.credit_spend_max)

    def _append(self, sequence: Sequence, token: int | None) -> Finished | None:
        """Note a token; returns its end if that was the last one."""
        if token is None:
            return None
        sequence.tokens.append(token)
        by_stop = token in sequence.stop_ids
        if not by_stop and sequence.emitted < sequence.max_tokens:
            return None
        self._drop(sequence)
        return Finished(sequence.id, by_stop)

    def _drop(self, sequence: Sequence) -> None:
        del self._sequences[sequence.id]
        if sequence.decodes is not None:
            self._stop_decoding(sequence)
        elif self.moves.suspended.pop(sequence.id, None) is None:
            self._unwait(sequence)
        self.pool.release(sequence.blocks)
        sequence.blocks = []

    # -- prefills

    def _fill_with_all(self, sequence: Sequence, plan: StepPlan, now: float) -> bool:
        """Schedule all that is left of the only sequence that waits; False, with nothing done, if that does not fit.

        No order is asked for: it goes first in any, and none will find it waiting any more.
        """
        rules, computed, left = self.rules, sequence.computed, sequence.left
        may_share = sequence.hashes and not sequence.blocks
        lacks_place = len(self.decodes.sequences) + self.moves.seats >= self.seqs_max and not sequence.blocks
        if may_share or lacks_place or not 0 < left <= rules.prefill_tokens_max:
            return False
        room_s = self._room_s(now)
        if room_s < math.inf and left > max(rules.floor, self.latency.model.chunk_tokens(room_s, computed)):
            return False
        if self._missing_blocks(sequence, computed + left) > self.pool.blocks_free:
            return False
        self._grow(sequence, computed + left)
        self._partial[sequence.id] = sequence
        self._schedule(sequence, left, plan)
        if rules.order in WALKED and self._is_order_due(now):
            self._note_order(now)
        return True

    def _fill(self, plan: StepPlan, now: float) -> None:
        model, rules = self.latency.model, self.rules
        room_s = self._room_s(now)
        tokens_left = rules.prefill_tokens_max
        behind = dict(self._partial)
        held = self._seats_taken()
        waits_with_others = len(self._waiting) > 1
        floor = rules.floor
        for sequence, most in self._walk(now):
            behind.pop(sequence.id, None)
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
            is_answer_next = tokens == sequence.left and sequence.first_token_s is None
            if waits_with_others and rules.sizing == "slack" and is_answer_next:
                room_s = min(room_s, self._room_before_s(sequence, plan, now))
            if most > rules.floor and waits_with_others:  # Nobody waits for a trickle: that would be as slow as it is.
                plan.computing.update(sequence.hashes[sequence.published :])
            if most > floor:
                floor = 0  # Only the first in order has a claim on a floor, besides the starved one's own.
            if tokens_left <= 0 or (room_s <= 0 and not floor):
                break

    def _room_s(self, now: float) -> float:
        """Seconds of prefill that this step may have: as the rules bound it, and as its decodes can bear it.

        Infinite if neither does: none of the decodes has a promise to lose.
        """
        decodes, rules = self.decodes, self.rules
        seqs, context = len(decodes.sequences), decodes.context_tokens
        longest_s = rules.step_s_max
        if rules.sizing == "slack":
            slack_s = decodes.slack_s(now, self.latency.decode_step_s(seqs, context))
            longest_s = min(longest_s, rules.slack_share * slack_s)
        if longest_s == math.inf:
            return math.inf
        return budget.prefill_room_s(self.latency, longest_s, seqs, context)

    def _room_before_s(self, sequence: Sequence, plan: StepPlan, now: float) -> float:
        """Seconds of prefill that may join a step in which this one's first token comes out, so that it is in time.

        Infinite if it is late anyway: it has nothing to lose.
        """
        spent_s = self.latency.step_s(plan.shape)
        left_s = sequence.deadline_s - now - spent_s
        return left_s / self.latency.correction.factor("mixed") if left_s >= 0 else math.inf

    def _walk(self, now: float) -> Iterator[tuple[Sequence, int]]:
        """Waiting sequences in the order in which they may enter, each with the most tokens it may have."""
        everything = 1 << 30
        if self.rules.order not in WALKED:
            yield from [(sequence, everything) for sequence in self._waiting]
            return
        self._reorder(now)
        first, behind = list(self._first), list(self._behind)
        starved = self._starved(behind, now)
        if starved is not None:
            yield starved, self.rules.floor if first else everything
        for sequence in first:
            yield sequence, everything
        for sequence in behind:
            if sequence is not starved:
                yield sequence, everything

    def _reorder(self, now: float) -> None:
        """Say what goes first: of all that waits now and then, else of what went first before and what has joined."""
        if not self._is_order_due(now):
            return
        is_full = self._reconsiders(now)
        given_up: list[Sequence] = [] if is_full else self._behind
        waiting = self._waiting if is_full else sorted([*self._first, *self._joined], key=_key)
        start_s = now + self.latency.model.prefill_base_s
        self._first, behind = WALKED[self.rules.order](waiting, start_s, self._stretch(), self._work_s)
        if behind and given_up:
            behind = sorted([*given_up, *behind], key=order.back_key)
        self._behind = behind or given_up
        self._joined = []
        self._note_order(now)

    def _is_order_due(self, now: float) -> bool:
        return bool(self._joined) or now > self._ordered_s + REORDER_S or self._reconsiders(now)

    def _reconsiders(self, now: float) -> bool:
        """Whether all that waits is to be ordered anew. What was not admitted stays so."""
        return now > self._reconsidered_s + RECONSIDER_S and self.rules.order != "admission"

    def _note_order(self, now: float) -> None:
        if self._reconsiders(now):
            self._reconsidered_s = now
        self._ordered_s = now

    def _work_s(self, sequence: Sequence) -> float:
        return self.latency.model.chunk_s(sequence.left, sequence.computed)

    def _stretch(self) -> float:
        """How many times its own work a prefill takes beside the present decodes."""
        decodes, rules = self.decodes, self.rules
        bounds = (rules.floor, rules.prefill_tokens_max)
        pace_s = decodes.strictest_pace_s()
        return budget.stretch(self.latency, pace_s, len(decodes.sequences), decodes.context_tokens, bounds)

    def _starved(self, behind: list[Sequence], now: float) -> Sequence | None:
        """The one that has been late for longest, if that is longer than anyone has to bear."""
        if not behind:
            return None
        latest = min(behind, key=lambda sequence: (sequence.deadline_s, sequence.id))
        return latest if now > latest.deadline_s + self.rules.starvation_s else None

    def _begin(self, sequence: Sequence, plan: StepPlan) -> bool:
        """Attach what the prefix cache holds; False if a neighbour is computing the next block in this step.

        Waiting one step for that neighbour is cheaper than computing the same block twice.
        """
        if sequence.blocks or not sequence.hashes:
            return True
        # The last token is always computed, for its logits.
        usable = sequence.hashes[: (sequence.context_tokens - 1) // self.pool.block_tokens]
        found = self.pool.find(usable)
        if len(found) < len(usable) and usable[len(found)] in plan.computing:
            return False
        if found:
            self.pool.hold(found)
            sequence.blocks = found
            sequence.rewind(len(found) * self.pool.block_tokens)
            sequence.published = len(found)
            self._partial[sequence.id] = sequence
        return True

    def _unbegin(self, sequence: Sequence) -> None:
        """Give back a prefix that was attached for nothing."""
        if not sequence.has_started:
            self._let_go(sequence)

    def _allot(self, sequence: Sequence, tokens: int, behind: dict[int, Sequence], plan: StepPlan) -> int:
        """Blocks for the next `tokens` tokens, or for as many as can be had; returns how many tokens that is.

        `behind` are the unfinished prefills whose turn in this step comes later.
        """
        while tokens > 0:
            if self._missing_blocks(sequence, sequence.computed + tokens) <= self.pool.blocks_free:
                self._grow(sequence, sequence.computed + tokens)
                self._partial[sequence.id] = sequence
                return tokens
            victim = self._outranked(sequence, behind)
            if victim is None:
                room = (len(sequence.blocks) + self.pool.blocks_free) * self.pool.block_tokens
                tokens = min(tokens, room - sequence.computed)
            else:
                behind.pop(victim.id, None)
                self._preempt(victim, plan)
        return 0

    def _outranked(self, sequence: Sequence, behind: Mapping[int, Sequence]) -> Sequence | None:
        """Someone whose blocks this sequence may take: a prefill behind it, or a decode of lower priority.

        Whoever is first in this step's order can take from all other prefills, so that two of them never hold the
        last blocks against each other.
        """
        candidates = [other for other in behind.values() if other.blocks]
        if self.rules.order != "arrival":
            running = self.decodes.sequences.values()
            candidates += [other for other in running if other.priority < sequence.priority]
        return max(candidates, key=self._expendability, default=None)

    def _schedule(self, sequence: Sequence, tokens: int, plan: StepPlan) -> None:
        if not sequence.has_started:
            sequence.has_started = True
            plan.started.append((sequence.id, sequence.computed))
        plan.prefills.append(Chunk(sequence, sequence.computed, tokens, tokens == sequence.left))

    # -- blocks

    def _missing_blocks(self, sequence: Sequence, tokens: int) -> int:
        return self.pool.blocks_for(tokens) - len(sequence.blocks)

    def _grow(self, sequence: Sequence, tokens: int) -> None:
        blocks, pool = sequence.blocks, self.pool
        missing = -(-tokens // pool.block_tokens) - len(blocks)
        if missing > 0:
            blocks += pool.take(missing)

    def name_content(self, sequence: Sequence) -> None:
        """Hash what it has of full blocks, if others may share them."""
        if sequence.reuses_prefix and sequence.tokens:
            extend_hashes(sequence.hashes, sequence.tokens, self.pool.block_tokens)

    def _publish(self, sequence: Sequence) -> None:
        if not sequence.reuses_prefix:
            return
        full = sequence.computed // self.pool.block_tokens
        if full == sequence.published:
            return
        self.name_content(sequence)
        full = min(full, len(sequence.hashes))
        for index in range(sequence.published, full):
            self.pool.publish(sequence.blocks[index], sequence.hashes[index])
        sequence.published = max(sequence.published, full)

    # -- waiting

    def _wait(self, sequence: Sequence) -> None:
        """Fix its place among those that wait; deadlines do not move while it does."""
        self._rank(sequence)
        insort(self._waiting, sequence, key=_key)
        if self.rules.order in WALKED:
            self._joined.append(sequence)

    def _unwait(self, sequence: Sequence) -> None:
        del self._waiting[bisect_left(self._waiting, sequence.key, key=_key)]
        self._partial.pop(sequence.id, None)
        for part in (self._first, self._joined, self._behind):
            if sequence in part:
                part.remove(sequence)
                return

    def _rank(self, sequence: Sequence) -> None:
        if sequence.first_token_s is not None:
            self._set_pace(sequence)
            sequence.deadline_s = sequence.due_s() if sequence.pace_s is not None else sequence.first_token_s
        else:
            sequence.deadline_s = budget.first_token_deadline_s(
                sequence.slo,
                sequence.arrived_s,
                sequence.expected_tokens,
                self.latency.decode_step_s(1, sequence.context_tokens),
                self.rules.patience_s,
            )
        if self.rules.order == "arrival":
            sequence.key = (sequence.arrived_s, sequence.arrived_s, sequence.id)
        elif self.rules.order == "priority":
            sequence.key = (-sequence.priority, sequence.arrived_s, sequence.id)
        elif self.rules.order == "slack":
            sequence.key = (-sequence.priority, sequence.deadline_s - self._work_s(sequence), sequence.id)
        else:
            sequence.key = (sequence.deadline_s, sequence.arrived_s, sequence.id)

    def check(self) -> None:
        """Every sequence in one place, every block accounted for, waiting work in order."""
        self.pool.check()
        self.decodes.check()
        waiting = [sequence.id for sequence in self._waiting]
        placed = [*waiting, *self.decodes.sequences, *self.moves.suspended]
        assert sorted(placed) == sorted(self._sequences), f"a sequence is misplaced: {self!r}"
        assert [s.key for s in self._waiting] == sorted(s.key for s in self._waiting), f"out of order: {self!r}"
        assert {s.id for s in self._waiting if s.blocks} == self._partial.keys(), f"blocks without a prefill: {self!r}"
        if self.rules.order in WALKED:
            ordered = [sequence.id for part in (self._first, self._joined, self._behind) for sequence in part]
            assert sorted(ordered) == sorted(waiting), f"an order of others: {ordered}, {self!r}"
        assert self._sequences.keys().isdisjoint(self.moves.expected), f"what is here is expected: {self!r}"
        assert self._seats_taken() <= self.seqs_max, f"more than {self.seqs_max} sequences hold blocks: {self!r}"
        assert self.moves.found.keys() <= self.moves.expected.keys(), f"found for nobody: {self!r}"
        holders: dict[int, int] = {}
        for sequence_id, expected in self.moves.expected.items():
            for block in expected:
                holders[block] = holders.get(block, 0) + 1
            own = expected[self.moves.found.get(sequence_id, 0) :]
            assert not any(self.pool.has_content(block) for block in own), f"set aside, and not to be written: {self!r}"
        lent = 0
        for sequence in self._sequences.values():
            counted = 0 if self._names_blocks or sequence.decodes is None else self._lent(sequence)
            blocks = len(sequence.blocks) + counted
            assert blocks >= self.pool.blocks_for(sequence.computed), f"KV without a block: {sequence!r}"
            for block in sequence.blocks:
                holders[block] = holders.get(block, 0) + 1
            lent += counted
        self.pool.check_holders(holders, lent)

    def __repr__(self) -> str:
        running = sorted(self.decodes.sequences)
        waiting, moves = [sequence.id for sequence in self._waiting], self.moves
        moving = f"suspended={sorted(moves.suspended)}, expected={sorted(moves.expected)}"
        return f"StepScheduler(running={running}, waiting={waiting}, {moving}, {self.pool!r})"


def _key(sequence: Sequence) -> tuple[float, float, int]:
    return sequence.key
