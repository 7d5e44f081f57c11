"""The part of an instance that is the same whatever computes its tokens: messages in, step plans out, reports back.

Turns `Submit`s into sequences of the core's step scheduler, and a plan with its sampled tokens into a `StepReport`;
what concerns moves goes to `moves`. Both the native engine and the modelled one step through this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hyperflexis.adapters.moves import Body, Moves
from hyperflexis.adapters.sequences import sequence_of
from hyperflexis.core.cadence import Cadence
from hyperflexis.core.step import StepPlan, StepRules, StepScheduler
from hyperflexis.wire.messages import (
    Abandon,
    FinishReason,
    FromPeer,
    Order,
    Stay,
    StepReport,
    Submit,
    TakeIn,
    Taken,
    TokenLogprobs,
)


def step_rules(fields: Mapping[str, Any]) -> StepRules:
    """Rules from a message.

    Raises:
        ValueError: a field is unknown or its value impossible.
    """
    try:
        return StepRules(**fields)
    except TypeError as error:
        raise ValueError(f"unknown step rule: {error}") from error


@dataclass(slots=True)
class StepOutcome:
    """What computing a plan gave, all by sequence id. A sampling sequence is in `sampled` or in `errors`."""

    sampled: dict[int, int]
    duration_s: float
    errors: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)


class Stepping:
    """The scheduler of one instance, spoken to in messages."""

    def __init__(self, scheduler: StepScheduler, body: Body) -> None:
        self.scheduler = scheduler
        self.moves = Moves(scheduler, body)
        self._rules_version = 0
        self._cadence = Cadence()
        self._refused: dict[int, str] = {}
        self._has_changed = False

    def submit(self, submit: Submit, now: float) -> bool:
        """Take a request; False (and a line in the next report) if it can never run here."""
        try:
            self.scheduler.add(sequence_of(submit, now))
        except ValueError as error:
            self._refused[submit.request] = str(error)
            return False
        return True

    def refuse(self, request_id: int, why: str) -> None:
        """Take back a request that was submitted since the last step; the next report says that it failed."""
        self.scheduler.cancel(request_id)
        self._refused[request_id] = why

    def cancel(self, request_id: int, now: float) -> bool:
        """Forget a request, and take it in no more; False if it is not here (any more)."""
        was_here = self.scheduler.cancel(request_id)
        self._has_changed |= was_here
        self.moves.cancelled(request_id, now)
        return was_here

    def reconfigure(self, rules: Mapping[str, Any], version: int) -> None:
        """Put rules in force; the next report says that they are.

        Raises:
            ValueError: a rule is unknown or impossible.
        """
        self.scheduler.reconfigure(step_rules(rules))
        self._has_changed |= version != self._rules_version
        self._rules_version = version

    def order(self, order: Order, now: float) -> None:
        """Take an order that concerns moves; others are the body's."""
        if isinstance(order, TakeIn):
            self.moves.take_in(order, now)
        elif isinstance(order, Abandon):
            self.moves.abandon(order.request, now)
        elif isinstance(order, Stay):
            self.moves.stay(order.request, order.move)
        elif isinstance(order, Taken):
            self._has_changed |= self.moves.taken(order.request)
        elif isinstance(order, FromPeer):
            self.moves.hear(order.peer, order.payload, now)

    def busy_with(self) -> str:
        """What keeps it from going to sleep; empty if nothing does."""
        here, expected = len(self.scheduler.sequences()), len(self.scheduler.moves.expected)
        return f"it holds {here} requests and expects {expected}" if here or expected else ""

    def has_news(self) -> bool:
        """Whether a report is due although no step runs: otherwise an instance that a cancel left idle looks busy."""
        return self._has_changed or bool(self._refused) or self.moves.has_news()

    def report(self, plan: StepPlan, outcome: StepOutcome, now: float) -> tuple[StepReport, list[int]]:
        """Commit a step and say what it did; also the ids of all sequences that were here and ended with it."""
        shape, has_computed = plan.shape, not plan.is_empty
        sampled, logprobs = outcome.sampled, outcome.logprobs
        failed = {**self._refused, **outcome.errors}
        has_changed = self._has_changed
        self._refused = {}
        self._has_changed = False
        finished = self.scheduler.commit(plan, sampled, now)
        for sequence_id in outcome.errors:
            self.scheduler.fail(sequence_id)
        moves = self.moves.end_step([i for i in plan.handed_off if i not in outcome.errors], now)
        refitted = has_computed and self.scheduler.observe(shape, outcome.duration_s)
        reasons = [FinishReason.STOP if end.by_stop else FinishReason.LENGTH for end in finished]
        ended = [end.sequence_id for end in finished]
        has_changed |= any(moves)
        has_news = bool(plan.prefills or plan.preempted or ended or failed or refitted or has_changed)
        report = StepReport(
            duration_s=outcome.duration_s,
            prefill_tokens=shape.prefill_tokens,
            prefill_pairs=shape.prefill_pairs,
            decode_seqs=shape.decode_seqs,
            context_tokens=shape.context_tokens,
            requests=list(sampled),
            tokens=list(sampled.values()),
            finished=[*ended, *failed],
            reasons=[*map(int, reasons), *(int(FinishReason.FAILED) for _ in failed)],
            started=[sequence_id for sequence_id, _ in plan.started],
            cached_tokens=[cached for _, cached in plan.started],
            preempted=plan.preempted,
            began=[sequence.id for sequence in plan.began],
            steps=self._cadence.count(1, has_news),
            waiting_seqs=self.scheduler.waiting_seqs,
            waiting_tokens=self.scheduler.waiting_tokens,
            running_seqs=self.scheduler.running_seqs,
            blocks_free=self.scheduler.pool.blocks_free,
            logprobs={i: logprobs[seq] for i, seq in enumerate(sampled) if seq in logprobs} if logprobs else {},
            prompt_logprobs=outcome.prompt_logprobs,
            errors=failed,
            latency=asdict(self.scheduler.latency.model) if refitted else None,
            resumed=moves.resumed,
            arrived=moves.arrived,
            suspended=moves.suspended,
            offers=moves.offers,
            rules_version=self._rules_version,
        )
        return report, [*ended, *outcome.errors]
