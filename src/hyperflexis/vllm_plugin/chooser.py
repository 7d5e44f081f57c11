"""What enters the next step of an engine that keeps its own blocks and queues: in which order, and how much prefill.

The rules are those of `core.step`: decodes first, prefill in the order in which the fewest miss their deadlines, as
much of it as the tightest decode can bear. Where that scheduler owns all sequences and blocks, this one is told before
each step what there is, and says how many tokens each prefill may have; whether there is memory for it is the engine's
business. Step times are learnt while serving. As long as nothing has been learnt, nothing is held back.

Knows no vLLM, no clock and no tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias, cast

from hyperflexis.core import budget
from hyperflexis.core.latency import LatencyModel, OnlineLatency, Sample, StepHistory, StepShape, chunk_pairs, fit
from hyperflexis.core.slo import Slo
from hyperflexis.core.step import REORDER_S, WALKED, StepRules

EARLY_FITS = (8, 16, 32)
"""Steps after which the model is fitted for the first times; from then on `OnlineLatency` does so itself."""
UNKNOWN = LatencyModel(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""Nothing takes time: then nothing has to be held back."""


class Job:
    """A request, and what is kept of it. `computed`, `emitted` and `has_begun` are told before each step."""

    __slots__ = (
        "anchor_s",
        "arrived_s",
        "cached_tokens",
        "computed",
        "deadline_s",
        "emitted",
        "first_token_s",
        "has_begun",
        "id",
        "is_admitted",
        "max_tokens",
        "pace_s",
        "priority",
        "prompt_tokens",
        "slo",
    )

    def __init__(  # noqa: PLR0917  # what every job has
        self,
        id: int,  # noqa: A002  # the field's name
        prompt_tokens: int,
        max_tokens: int,
        slo: Slo,
        arrived_s: float,
        priority: int = 0,
    ) -> None:
        self.id = id
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.slo = slo
        self.arrived_s = arrived_s
        self.priority = priority
        """Higher is more important."""
        self.cached_tokens = 0
        """What the prefix cache had of it when it came."""
        self.computed = 0
        """Tokens that need not be computed, be it because the prefix cache has them."""
        self.emitted = 0
        self.has_begun = False
        """Whether it holds blocks."""
        self.first_token_s: float | None = None
        self.pace_s: float | None = None
        self.anchor_s = math.inf
        self.deadline_s = math.inf
        self.is_admitted = False

    @property
    def is_promised(self) -> bool:
        return self.slo != Slo()

    @property
    def left(self) -> int:
        """Tokens to be computed before the next one can be sampled."""
        return self.prompt_tokens + self.emitted - self.computed

    @property
    def context_tokens(self) -> int:
        return self.prompt_tokens + self.emitted

    def due_s(self) -> float:
        """The instant at which its next token is due; infinite where no pace was promised."""
        return math.inf if self.pace_s is None else self.anchor_s + self.emitted * self.pace_s

    def begin_to_answer(self, now: float) -> None:
        """Its first token is out: what follows is paced from here."""
        self.first_token_s = now
        self.pace_s = budget.pace_s(self.slo, self.arrived_s, now, self.max_tokens)
        self.anchor_s = budget.anchor_s(self.slo, self.arrived_s, now, 0.0)


Walk: TypeAlias = Callable[[Sequence[Job], float, float, Callable[[Job], float]], tuple[list[Job], list[Job]]]
"""One of `core.order`."""


class Choice(NamedTuple):
    """Prefills in the order in which they go, and how many tokens each may have in this step; none: 0."""

    order: list[Job]
    tokens: dict[int, int]


class Room(NamedTuple):
    """What the engine can hold besides what it holds now."""

    tokens: int
    """The most that a step may prefill."""
    seats: int
    """Prefills that may begin."""
    kv_tokens: float = math.inf
    """What they may bring."""


class StepChooser:
    """Alternate `choose` and `observe`."""

    def __init__(self, rules: StepRules, samples: Iterable[Sample] = ()) -> None:
        """`samples` are steps that were measured before; without any, all is learnt while serving."""
        known = list(samples)
        self.rules = rules
        self._history = StepHistory(known)
        self.latency = OnlineLatency(fit(known) if known else UNKNOWN, self._history)
        self._steps = 0 if not known else max(EARLY_FITS)
        self._order: list[Job] = []
        self._known: set[int] = set()
        """Jobs that have been ordered."""
        self._ordered_s = -math.inf

    def choose(self, now: float, decoding: Sequence[Job], prefilling: Sequence[Job], room: Room) -> Choice:
        """Say what the next step should hold; all decodes are in it."""
        order = self._ordered(now, decoding, prefilling) if prefilling else []
        return Choice(order, self._allotted(now, decoding, order, room))

    def observe(self, shape: StepShape, actual_s: float) -> None:
        """Learn from a step."""
        self.latency.observe(shape, actual_s)
        self._steps += 1
        if self._steps in EARLY_FITS:
            self.latency.adopt(fit(self._history.samples()))

    def samples(self) -> list[Sample]:
        """What it has learnt, for another one to begin with."""
        return self._history.samples()

    # -- order

    def _ordered(self, now: float, decoding: Sequence[Job], prefilling: Sequence[Job]) -> list[Job]:
        """All of it anew if somebody has joined or some time has passed, else what is still there."""
        present = {job.id for job in prefilling}
        if present <= self._known and now <= self._ordered_s + REORDER_S:
            self._order = [job for job in self._order if job.id in present]
        else:
            self._order = self._walked(now, decoding, prefilling)
            self._ordered_s = now
        self._known = present
        return self._order

    def _walked(self, now: float, decoding: Sequence[Job], prefilling: Sequence[Job]) -> list[Job]:
        if not any(job.is_promised for job in prefilling):
            return sorted(prefilling, key=lambda job: (-job.priority, job.arrived_s, job.id))
        for job in prefilling:
            self._set_deadline(job)
        waiting = sorted(prefilling, key=lambda job: (job.deadline_s, job.arrived_s, job.id))
        start_s = now + self.latency.model.prefill_base_s
        # Orders look at nothing that a job has not.
        walk = cast("Walk", WALKED[self.rules.order])
        first, behind = walk(waiting, start_s, self._stretch(decoding), self._work_s)
        return first + behind

    def _set_deadline(self, job: Job) -> None:
        if job.first_token_s is not None:  # It lost its blocks in the middle of its answer.
            job.deadline_s = job.due_s() if job.pace_s is not None else job.first_token_s
            return
        decode_s = self.latency.decode_step_s(1, job.context_tokens)
        patience_s = self.rules.patience_s
        job.deadline_s = budget.first_token_deadline_s(job.slo, job.arrived_s, job.max_tokens, decode_s, patience_s)

    def _work_s(self, job: Job) -> float:
        return self.latency.model.chunk_s(job.left, job.computed)

    def _stretch(self, decoding: Sequence[Job]) -> float:
        pace_s = min((job.pace_s for job in decoding if job.pace_s is not None), default=math.inf)
        bounds = (self.rules.floor, self.rules.prefill_tokens_max)
        return budget.stretch(self.latency, pace_s, len(decoding), _context(decoding), bounds)

    # -- size

    def _allotted(self, now: float, decoding: Sequence[Job], order: Sequence[Job], room: Room) -> dict[int, int]:
        model, rules = self.latency.model, self.rules
        room_s = self._room_s(now, decoding)
        tokens_left = min(rules.prefill_tokens_max, room.tokens)
        seats, kv_tokens = room.seats, room.kv_tokens
        floor = rules.floor
        allotted: dict[int, int] = {}
        for job, most in self._entering(now, order):
            if tokens_left <= 0 or (room_s <= 0 and not floor):
                break
            begins = not job.has_begun
            if begins and (seats <= 0 or kv_tokens < job.left):
                kv_tokens = 0  # Who needs less does not pass who came first, for whom there would then never be room.
                continue
            fits = tokens_left if room_s == math.inf else model.chunk_tokens(room_s, job.computed)
            tokens = min(most, tokens_left, job.left, max(fits, floor))
            if tokens <= 0:
                break
            allotted[job.id] = allotted.get(job.id, 0) + tokens
            seats -= begins
            kv_tokens -= job.left if begins else 0
            tokens_left -= tokens
            room_s -= model.chunk_s(tokens, job.computed)
            if tokens == job.left and job.first_token_s is None and len(order) > 1:
                room_s = min(room_s, self._room_before_s(now, job, decoding, allotted, order))
            if most > rules.floor:
                floor = 0  # Only the first in order has a claim on a floor, besides the starved one's own.
        return allotted

    def _entering(self, now: float, order: Sequence[Job]) -> Iterator[tuple[Job, int]]:
        """In order, each with the most tokens that it may have; ahead of all a trickle for the one late for longest."""
        starved = min(order, key=lambda job: (job.deadline_s, job.id), default=None)
        if starved is not None and now > starved.deadline_s + self.rules.starvation_s and starved is not order[0]:
            yield starved, self.rules.floor
        else:
            starved = None
        for job in order:
            if job is not starved:
                yield job, job.left

    def _room_s(self, now: float, decoding: Sequence[Job]) -> float:
        """Seconds of prefill that the decodes can bear; infinite if none has a promise to lose."""
        seqs, context = len(decoding), _context(decoding)
        slack_s = self.slack_s(now, decoding, self.latency.decode_step_s(seqs, context))
        longest_s = min(self.rules.step_s_max, self.rules.slack_share * slack_s)
        if longest_s == math.inf:
            return math.inf
        return budget.prefill_room_s(self.latency, longest_s, seqs, context)

    def slack_s(self, now: float, decoding: Iterable[Job], step_s: float) -> float:
        """Least time until a token is due, of those that can still keep their pace."""
        least_s = math.inf
        for job in decoding:
            if job.pace_s is None:
                continue
            slack_s = job.due_s() - now
            if slack_s < least_s and not (
                slack_s < step_s
                and budget.is_decode_lost(slack_s, 0.0, job.pace_s, job.max_tokens - job.emitted, step_s)
            ):
                least_s = slack_s
        return least_s

    def _room_before_s(
        self, now: float, job: Job, decoding: Sequence[Job], allotted: dict[int, int], order: Sequence[Job]
    ) -> float:
        """Seconds of prefill that may join the step in which this job's first token comes out, so that it is in time.

        Infinite if it is late anyway.
        """
        chunks = [(other, allotted[other.id]) for other in order if other.id in allotted]
        left_s = job.deadline_s - now - self.latency.step_s(shape_of(decoding, chunks))
        return left_s / self.latency.correction.factor("mixed") if left_s >= 0 else math.inf


def shape_of(decoding: Collection[Job], chunks: Iterable[tuple[Job, int]]) -> StepShape:
    """What a step computes: these decodes, and so many tokens of each prefill."""
    tokens = pairs = 0
    for job, count in chunks:
        tokens += count
        pairs += chunk_pairs(count, job.computed)
    return StepShape(tokens, pairs, len(decoding), _context(decoding))


def _context(decoding: Iterable[Job]) -> int:
    return sum([job.context_tokens for job in decoding])
