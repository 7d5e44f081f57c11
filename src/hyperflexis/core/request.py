"""One request as the control plane sees it: its promise, where it is in its life, and when each thing happened.

The life is a table, `TRANSITIONS`: what is missing from it cannot happen, and trying raises. Knows no token, no text
and no instance's inside; only how many tokens there are and which of their blocks, by content hash, may be found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from hyperflexis.core.slo import Slo, Timeline, Verdict


class _Member(Enum):
    """Of which there is only one of each: hashed by identity, as the table is looked up at every step of a life."""

    __hash__ = object.__hash__


class RequestState(_Member):
    QUEUED = "queued"
    """In the control plane's own queue; no instance knows of it."""
    WAITING = "waiting"
    """Dispatched; no step of its prefill has begun (or it was preempted)."""
    PREFILLING = "prefilling"
    DECODING = "decoding"
    STANDING = "standing"
    """Has its first token and computes nothing, in order to go on elsewhere."""
    IN_TRANSIT = "in transit"
    """Its instance died while it was being copied to another, which will say whether it has everything."""
    FINISHED = "finished"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


class RequestStep(_Member):
    """What can happen to a request."""

    DISPATCH = "dispatch"
    START = "start"
    TOKEN = "token"
    PREEMPT = "preempt"
    STAND = "stand"
    GO_ON = "go on"
    """Decode again, here or where it has been moved to."""
    MOVE = "move"
    """Wait elsewhere."""
    LOSE = "lose"
    REQUEUE = "requeue"
    FINISH = "finish"
    CANCEL = "cancel"
    REJECT = "reject"


_ON_INSTANCE = {
    RequestStep.REQUEUE: RequestState.QUEUED,
    RequestStep.FINISH: RequestState.FINISHED,
    RequestStep.CANCEL: RequestState.CANCELLED,
    RequestStep.LOSE: RequestState.IN_TRANSIT,
}

TRANSITIONS: dict[RequestState, dict[RequestStep, RequestState]] = {
    RequestState.QUEUED: {
        RequestStep.DISPATCH: RequestState.WAITING,
        RequestStep.CANCEL: RequestState.CANCELLED,
        RequestStep.REJECT: RequestState.REJECTED,
    },
    RequestState.WAITING: {
        **_ON_INSTANCE,
        RequestStep.START: RequestState.PREFILLING,
        RequestStep.MOVE: RequestState.WAITING,
        RequestStep.GO_ON: RequestState.DECODING,
        RequestStep.REJECT: RequestState.REJECTED,  # For a more important one.
    },
    RequestState.PREFILLING: {
        **_ON_INSTANCE,
        RequestStep.TOKEN: RequestState.DECODING,
        RequestStep.PREEMPT: RequestState.WAITING,
        RequestStep.MOVE: RequestState.PREFILLING,
        RequestStep.GO_ON: RequestState.DECODING,  # Moved when all that it had lost but the last token was there again.
    },
    RequestState.DECODING: {
        **_ON_INSTANCE,
        RequestStep.PREEMPT: RequestState.WAITING,
        RequestStep.STAND: RequestState.STANDING,
    },
    RequestState.STANDING: {
        **_ON_INSTANCE,
        RequestStep.GO_ON: RequestState.DECODING,
        RequestStep.MOVE: RequestState.WAITING,  # To compute its KV anew.
    },
    RequestState.IN_TRANSIT: {
        RequestStep.GO_ON: RequestState.DECODING,
        RequestStep.MOVE: RequestState.PREFILLING,
        RequestStep.REQUEUE: RequestState.QUEUED,
        RequestStep.CANCEL: RequestState.CANCELLED,
    },
    RequestState.FINISHED: {},
    RequestState.CANCELLED: {},
    RequestState.REJECTED: {},
}

ON_INSTANCE = frozenset({RequestState.WAITING, RequestState.PREFILLING, RequestState.DECODING, RequestState.STANDING})


class StepCounter(Protocol):
    """Counts the steps in each of which all that decodes there emits a token."""

    decode_steps: int


@dataclass(slots=True, eq=False)
class Request:
    """Mutable, owned by the control plane alone. Instants are seconds on the core's clock."""

    id: int
    arrived_s: float
    prompt_tokens: int
    max_tokens: int
    slo: Slo
    priority: int = 0
    service_class: str = "default"
    block_hashes: tuple[bytes, ...] = ()
    refuses_late: bool = False
    is_part: bool = False

    state: RequestState = RequestState.QUEUED
    instance_id: int | None = None
    tokens_before: int = 0
    """Tokens emitted before it began to decode where it is now; all of them while it does not decode."""
    counter: StepCounter | None = None
    """What counts its tokens while it decodes."""
    joined: int = 0
    """The counter's reading when it began."""
    cached_tokens: int = 0
    planned_tokens: int = 0
    """Prompt and the answer that its instance is believed to have to hold in the end."""
    dispatches: int = 0
    tries: int = 0
    """Dispatches since it last got further on one of them."""
    tokens_at_dispatch: int = 0
    """Emitted before its last one."""
    migrations: int = 0
    """Moves from one instance to another that were completed."""
    move_failures: int = 0
    """And those that were not."""
    standing_since_s: float = math.inf
    dispatched_s: float | None = None
    prefill_started_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    predicted_ttft_s: float | None = None
    predicted_tpot_s: float | None = None
    first_deadline_s: float = field(init=False)
    """The instant by which the first token (or, failing that, the last) was promised; infinite where none was."""

    def __post_init__(self) -> None:
        ttft_s, e2e_s = self.slo.ttft_s, self.slo.e2e_s
        within_s = min(math.inf if ttft_s is None else ttft_s, math.inf if e2e_s is None else e2e_s)
        self.first_deadline_s = self.arrived_s + within_s

    @property
    def term_s(self) -> float:
        """Within so long of its arrival its first token is due, or failing that its last; infinite if neither is."""
        return self.first_deadline_s - self.arrived_s

    @property
    def emitted_tokens(self) -> int:
        """Tokens of the answer so far, as far as has been reported."""
        if self.counter is None:
            return self.tokens_before
        return self.tokens_before + self.counter.decode_steps - self.joined

    def begin_counting(self, counter: StepCounter) -> None:
        """From now on it emits a token in every step counted there."""
        self.joined = counter.decode_steps
        self.counter = counter

    def stop_counting(self) -> None:
        """It emits no token any more; nothing if it did not."""
        self.tokens_before = self.emitted_tokens
        self.counter = None

    @property
    def context_tokens(self) -> int:
        """Tokens whose KV the request needs in order to go on."""
        return self.prompt_tokens + self.emitted_tokens

    @property
    def queue_key(self) -> tuple[int, float, float, int]:
        """Total order of the control plane's queue: priority, then least slack, then arrival, then id."""
        return (-self.priority, self.first_deadline_s, self.arrived_s, self.id)

    def step(self, step: RequestStep) -> None:
        """Move along the table.

        Raises:
            AssertionError: this step is impossible in this state.
        """
        target = TRANSITIONS[self.state].get(step)
        if target is None:
            raise AssertionError(f"request {self.id} cannot {step.value} while {self.state.value}: {self!r}")
        self.state = target

    def verdict(self, instance: str) -> Verdict | None:
        """What to tell the client; None when no token was ever emitted."""
        if self.first_token_s is None or self.last_token_s is None:
            return None
        dispatched_s = self.dispatched_s if self.dispatched_s is not None else self.arrived_s
        started_s = self.prefill_started_s if self.prefill_started_s is not None else dispatched_s
        timeline = Timeline(
            arrived_s=self.arrived_s,
            dispatched_s=dispatched_s,
            prefill_started_s=started_s,
            first_token_s=self.first_token_s,
            last_token_s=self.last_token_s,
            tokens=self.emitted_tokens,
            predicted_ttft_s=self.predicted_ttft_s,
            predicted_tpot_s=self.predicted_tpot_s,
        )
        return Verdict(
            service_class=self.service_class,
            priority=self.priority,
            slo=self.slo,
            timeline=timeline,
            instance=instance,
            migrations=max(0, self.dispatches - 1) + self.migrations,
        )
