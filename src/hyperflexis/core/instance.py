"""One instance as the control plane sees it: what it may do, what it can hold, and the work it is believed to have.

The load is modelled, not read: a request counts from the moment of its dispatch, before any report can show it, because
deciding on stale reports sends the whole herd to one instance. Reports then correct the model: steps that ran, tokens
that came out, requests that ended. Knows nothing of processes, sockets or engines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from hyperflexis.core.latency import LatencyModel, OnlineLatency, StepShape
from hyperflexis.core.prefix import PrefixResidency
from hyperflexis.core.request import Request


class Role(Enum):
    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


class InstanceState(Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    """Takes no new work; ends what it has."""
    STOPPED = "stopped"
    LOST = "lost"


class InstanceStep(Enum):
    """What can happen to an instance."""

    READY = "ready"
    DRAIN = "drain"
    STOP = "stop"
    LOSE = "lose"


TRANSITIONS: dict[InstanceState, dict[InstanceStep, InstanceState]] = {
    InstanceState.STARTING: {
        InstanceStep.READY: InstanceState.READY,
        InstanceStep.STOP: InstanceState.STOPPED,
        InstanceStep.LOSE: InstanceState.LOST,
    },
    InstanceState.READY: {
        InstanceStep.DRAIN: InstanceState.DRAINING,
        InstanceStep.STOP: InstanceState.STOPPED,
        InstanceStep.LOSE: InstanceState.LOST,
    },
    InstanceState.DRAINING: {
        InstanceStep.STOP: InstanceState.STOPPED,
        InstanceStep.LOSE: InstanceState.LOST,
    },
    InstanceState.STOPPED: {},
    InstanceState.LOST: {},
}


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an instance can hold."""

    blocks: int
    block_tokens: int
    seqs_max: int

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)


class Instance:
    """Mutable, owned by the control plane alone."""

    def __init__(self, instance_id: int, role: Role = Role.MIXED) -> None:
        self.id = instance_id
        self.role = role
        self.state = InstanceState.STARTING
        self.capacity = Capacity(blocks=1, block_tokens=1, seqs_max=1)
        self.latency = OnlineLatency(LatencyModel(0, 0, 0, 0, 0, 0))
        self.resident = PrefixResidency(0)
        self.waiting: dict[int, Request] = {}
        """Dispatched here, first token not out."""
        self.work_s: dict[int, float] = {}
        """Prefill work of each of `waiting`, without fixed parts of steps."""
        self.decoding: dict[int, Request] = {}
        self.context_tokens = 0
        """Sum over `decoding`."""
        self.progress_tokens = 0
        """Prefill tokens already computed of requests that still wait."""
        self.ready_s = math.inf
        self.dispatches = 0
        self.step_end_s = 0.0
        """When the step that is running now should end."""

    @property
    def name(self) -> str:
        return f"i{self.id}"

    @property
    def requests(self) -> int:
        return len(self.waiting) + len(self.decoding)

    @property
    def is_empty(self) -> bool:
        return not self.waiting and not self.decoding

    def step(self, step: InstanceStep) -> None:
        """Move along the table.

        Raises:
            AssertionError: this step is impossible in this state.
        """
        target = TRANSITIONS[self.state].get(step)
        if target is None:
            raise AssertionError(f"instance {self.name} cannot {step.value} while {self.state.value}")
        self.state = target

    def become_ready(self, capacity: Capacity, model: LatencyModel, now: float) -> None:
        self.step(InstanceStep.READY)
        self.ready_s = now
        self.capacity = capacity
        self.latency = OnlineLatency(model)
        self.resident = PrefixResidency(capacity.blocks)

    # -- load

    def cached_tokens(self, request: Request) -> int:
        """Tokens of a newcomer that its prefill would not compute, given what the prefix cache is believed to hold."""
        # An instance always computes the last token, for its logits, and with it the block that it stands in.
        usable = (request.context_tokens - 1) // self.capacity.block_tokens
        return min(usable, self.resident.longest(request.block_hashes)) * self.capacity.block_tokens

    def prefill_work_s(self, request: Request, cached_tokens: int) -> float:
        """Its prefill here, without fixed parts of steps."""
        return self.latency.model.chunk_s(request.context_tokens - cached_tokens, cached_tokens)

    def place(self, request: Request) -> None:
        """Count a request from its dispatch on."""
        request.cached_tokens = self.cached_tokens(request)
        self.waiting[request.id] = request
        self.work_s[request.id] = self.prefill_work_s(request, request.cached_tokens)
        self.resident.add(request.block_hashes)
        self.dispatches += 1

    def begin_decoding(self, request: Request) -> None:
        """The first token (or, after a preemption, the next one) is out."""
        del self.waiting[request.id], self.work_s[request.id]
        self.decoding[request.id] = request
        self.context_tokens += request.context_tokens
        computed = request.context_tokens - 1 - request.cached_tokens
        self.progress_tokens = max(0, self.progress_tokens - computed) if self.waiting else 0

    def fall_back(self, request: Request) -> None:
        """A decode was preempted and has to be computed again."""
        del self.decoding[request.id]
        self.context_tokens -= request.context_tokens
        request.cached_tokens = 0
        self.waiting[request.id] = request
        self.work_s[request.id] = self.prefill_work_s(request, 0)

    def remove(self, request: Request) -> None:
        if self.decoding.pop(request.id, None) is not None:
            self.context_tokens -= request.context_tokens
        else:
            del self.waiting[request.id], self.work_s[request.id]
        if not self.waiting:
            self.progress_tokens = 0
        if self.is_empty:
            self.step_end_s = 0.0

    def observe_step(self, shape: StepShape, duration_s: float, now: float) -> None:
        """Learn from a step that ended; the next one is assumed to look like it."""
        self.latency.observe(shape, duration_s)
        self.progress_tokens = self.progress_tokens + shape.prefill_tokens if self.waiting else 0
        self.step_end_s = now + (0.0 if self.is_empty else self.latency.step_s(shape))

    def check(self) -> None:
        assert not (self.waiting.keys() & self.decoding.keys()), f"{self.name}: a request waits and decodes"
        assert self.waiting.keys() == self.work_s.keys(), f"{self.name}: work without a request, or the reverse"
        total = sum(request.context_tokens for request in self.decoding.values())
        assert total == self.context_tokens, f"{self.name}: context {self.context_tokens}, really {total}"
        for request in [*self.waiting.values(), *self.decoding.values()]:
            assert request.instance_id == self.id, f"{self.name} holds a request of {request.instance_id}: {request!r}"
