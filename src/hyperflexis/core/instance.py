"""One instance as the control plane sees it: what it may do, what it can hold, and the work it is believed to have.

The load is modelled, not read: a request counts from the moment of its dispatch, before any report can show it, because
deciding on stale reports sends the whole herd to one instance. Reports then correct the model: steps that ran, tokens
that came out, requests that ended. Knows nothing of processes, sockets or engines.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from dataclasses import dataclass
from enum import Enum

from hyperflexis.core.latency import LatencyModel, OnlineLatency, StepShape
from hyperflexis.core.prefix import PrefixResidency
from hyperflexis.core.request import Request


class Role(Enum):
    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


class StartSource(Enum):
    """Where a start takes what it needs from; the quickest first."""

    SLEEPER = "sleeper"
    """An instance that sleeps: nothing to load."""
    PEER = "peer"
    """The memory of a live instance."""
    CACHE = "cache"
    """The page cache of the host."""
    DISK = "disk"


class InstanceState(Enum):
    STARTING = "starting"
    LINKING = "linking"
    """Could compute, and is being linked with the others first."""
    READY = "ready"
    DRAINING = "draining"
    """Takes no new work; ends what it has."""
    ASLEEP = "asleep"
    """Holds nothing, and what it would need to start again quickly."""
    STOPPED = "stopped"
    LOST = "lost"


class InstanceStep(Enum):
    """What can happen to an instance."""

    LINK = "link"
    READY = "ready"
    DRAIN = "drain"
    RETAIN = "retain"
    SLEEP = "sleep"
    WAKE = "wake"
    STOP = "stop"
    LOSE = "lose"


TRANSITIONS: dict[InstanceState, dict[InstanceStep, InstanceState]] = {
    InstanceState.STARTING: {
        InstanceStep.LINK: InstanceState.LINKING,
        InstanceStep.READY: InstanceState.READY,
        InstanceStep.STOP: InstanceState.STOPPED,
        InstanceStep.LOSE: InstanceState.LOST,
    },
    InstanceState.LINKING: {
        InstanceStep.READY: InstanceState.READY,
        InstanceStep.STOP: InstanceState.STOPPED,
        InstanceStep.LOSE: InstanceState.LOST,
    },
    InstanceState.READY: {
        InstanceStep.DRAIN: InstanceState.DRAINING,
        InstanceStep.LOSE: InstanceState.LOST,
    },
    InstanceState.DRAINING: {
        InstanceStep.RETAIN: InstanceState.READY,
        InstanceStep.SLEEP: InstanceState.ASLEEP,
        InstanceStep.STOP: InstanceState.STOPPED,
        InstanceStep.LOSE: InstanceState.LOST,
    },
    InstanceState.ASLEEP: {
        InstanceStep.WAKE: InstanceState.STARTING,
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
    kv_token_bytes: int = 0
    """What moving a token's KV moves; 0 where nothing is known."""

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)


@dataclass(slots=True)
class Tenure:
    """From the decision to have an instance to its end."""

    launched_s: float = -math.inf
    """When it was decided to start it, or to wake it."""
    source: StartSource = StartSource.DISK
    """Where that takes what it needs from."""
    ready_s: float = math.inf
    is_retainable: bool = False
    """Whether, while it drains, it may be told to stay after all."""


class Instance:
    """Mutable, owned by the control plane alone."""

    def __init__(self, instance_id: int, role: Role = Role.MIXED, changed: set[Instance] | None = None) -> None:
        """`changed` is where it notes that its load is another one than it was."""
        self.id = instance_id
        self.role = role
        self.state = InstanceState.STARTING
        self.capacity = Capacity(blocks=1, block_tokens=1, seqs_max=1)
        self.latency = OnlineLatency(LatencyModel(0, 0, 0, 0, 0, 0))
        self.resident = PrefixResidency(0)
        self.waiting: dict[int, Request] = {}
        """Dispatched here, first token not out."""
        self.decoding: dict[int, Request] = {}
        self.standing: dict[int, Request] = {}
        """Here, but in no step any more: to go on elsewhere."""
        self.arriving: dict[int, tuple[Request, int]] = {}
        """On their way here, and what each is planned for. They count from the moment they were sent for."""
        self.rules_version = 0
        """Of the rules that were assigned last."""
        self.rules_in_force = 0
        """Of those, the last that it has reported."""
        self.role_before = role
        self.role_since_s = -math.inf
        self.decode_steps = 0
        """Steps so far, in each of which every one of `decoding` emitted a token."""
        self.context_tokens = 0
        """Sum over `decoding`."""
        self.progress_tokens = 0
        """Prefill tokens already computed of requests that still wait."""
        self.planned_tokens = 0
        self.planned_blocks = 0
        """Sums over all requests here, of what each is believed to have to hold in the end."""
        self.tenure = Tenure()
        self.dispatches = 0
        self.step_end_s = 0.0
        """When the step that is running now should end."""
        self.row = -1
        """Its place in the table of loads."""
        self._changed: set[Instance] = set() if changed is None else changed
        self._deadlines: list[tuple[float, int]] = []
        """(deadline, id) of `waiting`, in order."""
        self._works_s: list[float] = []
        """Prefill work of each, without fixed parts of steps."""
        self._paces_s: dict[float, int] = {}
        """How many requests here were promised each time per token."""
        self._strictest_pace_s = math.inf
        """The least of these."""
        self._bound_until_s: dict[float, float] = {}
        """For each of these, when the last of its requests should have ended."""
        self._outgrowing: list[tuple[int, int]] = []
        """(decode step at which an answer is longer than planned, id), the first one first; some have left."""

    @property
    def name(self) -> str:
        return f"i{self.id}"

    @property
    def requests(self) -> int:
        """All that takes part in steps here, or will."""
        return len(self.waiting) + len(self.decoding) + len(self.arriving)

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

    def learn(self, capacity: Capacity, model: LatencyModel) -> None:
        """Know what it can hold and how fast it is."""
        self.capacity = capacity
        self.latency = OnlineLatency(model)
        self.resident = PrefixResidency(capacity.blocks)

    def become_ready(self, capacity: Capacity, model: LatencyModel, now: float) -> None:
        self.learn(capacity, model)
        self.take_work(now)

    def take_work(self, now: float) -> None:
        """Be ready from now on."""
        self.step(InstanceStep.READY)
        self.tenure.ready_s = now

    # -- load

    def cached_tokens(self, request: Request) -> int:
        """Tokens of a newcomer that its prefill would not compute, given what the prefix cache is believed to hold."""
        if not request.block_hashes:
            return 0
        # An instance always computes the last token, for its logits, and with it the block that it stands in.
        usable = (request.context_tokens - 1) // self.capacity.block_tokens
        return min(usable, self.resident.longest(request.block_hashes)) * self.capacity.block_tokens

    def prefill_work_s(self, request: Request, cached_tokens: int) -> float:
        """Its prefill here, without fixed parts of steps."""
        return self.latency.model.chunk_s(request.context_tokens - cached_tokens, cached_tokens)

    def waiting_s(self) -> float:
        """Prefill work left of everything that waits here."""
        return max(0.0, sum(self._works_s) - self._progress_s())

    def ahead_s(self, request: Request) -> float:
        """Prefill work left of what waits here with an earlier deadline."""
        ahead = bisect_left(self._deadlines, (request.first_deadline_s, request.id))
        return max(0.0, sum(self._works_s[:ahead]) - self._progress_s())

    def due_work(self) -> list[tuple[float, float]]:
        """(deadline, seconds of prefill left) of what waits here, in order of deadlines."""
        progress_s, found = self._progress_s(), []
        for (deadline_s, _), work_s in zip(self._deadlines, self._works_s, strict=True):
            left_s = max(0.0, work_s - progress_s)
            progress_s -= work_s - left_s
            found.append((deadline_s, left_s))
        return found

    def _progress_s(self) -> float:
        return self.latency.model.prefill_token_s * self.progress_tokens

    def strictest_pace_s(self) -> float:
        """Least promised time per token of what is here; infinite where none was promised."""
        return self._strictest_pace_s

    def pace_shares(self, otherwise_s: float) -> dict[float, float]:
        """Of the requests here, by promised time per token; a looser one, or none, counts as `otherwise_s`."""
        requests = self.requests + len(self.standing)
        shares = {otherwise_s: 1.0} if requests else {}
        for pace_s, count in self._paces_s.items():
            if pace_s < otherwise_s:
                shares[pace_s] = count / requests
                shares[otherwise_s] -= count / requests
        return shares

    def residual_s(self, now: float) -> float:
        """Predicted rest of the step that runs now. Steps of decodes alone are reported several at a time."""
        if self.is_empty:
            return 0.0
        if now <= self.step_end_s:
            return self.step_end_s - now
        step_s = self.latency.decode_step_s(len(self.decoding), self.context_tokens)
        return step_s - (now - self.step_end_s) % step_s if step_s > 0 else 0.0

    def bound_until_s(self) -> float:
        """When the last request of the strictest pace here should have ended; the past where there is none."""
        return self._bound_until_s.get(self._strictest_pace_s, -math.inf)

    def place(self, request: Request, planned_tokens: int, now: float) -> None:
        """Count a request from its dispatch on. `planned_tokens` are its prompt and the answer to be expected."""
        request.cached_tokens = self.cached_tokens(request)
        self.resident.add(request.block_hashes)
        self.dispatches += 1
        self._queue(request, request.cached_tokens)
        request.planned_tokens = planned_tokens
        self._plan(planned_tokens)
        self._promise(request, planned_tokens, now)

    def expect(self, request: Request, planned_tokens: int, now: float) -> None:
        """Count a request that is to be taken from another instance."""
        self.arriving[request.id] = (request, planned_tokens)
        self.dispatches += 1
        self._plan(planned_tokens)
        self._promise(request, planned_tokens, now)

    def unexpect(self, request_id: int) -> None:
        """It does not come."""
        request, planned_tokens = self.arriving.pop(request_id)
        self._unplan(planned_tokens)
        self._unpromise(request)

    def arrive(self, request: Request, computed_tokens: int) -> None:
        """An expected request is here. One that is to decode is in `standing`, and goes on with `go_on`."""
        _, request.planned_tokens = self.arriving.pop(request.id)
        self.resident.add(request.block_hashes)
        if request.first_token_s is not None and computed_tokens == request.context_tokens - 1:
            self.standing[request.id] = request
        else:
            request.cached_tokens = computed_tokens
            self._queue(request, computed_tokens)
        self._changed.add(self)

    def stand(self, request: Request) -> None:
        """A decode takes part in no step any more."""
        self._stop_decoding(request)
        self.standing[request.id] = request

    def go_on(self, request: Request) -> None:
        """It does again."""
        del self.standing[request.id]
        self._start_decoding(request)

    def _promise(self, request: Request, planned_tokens: int, now: float) -> None:
        pace_s = request.slo.tpot_s
        if pace_s is not None:
            self._paces_s[pace_s] = self._paces_s.get(pace_s, 0) + 1
            self._strictest_pace_s = min(self._strictest_pace_s, pace_s)
            step_s = self.latency.decode_step_s(self.requests, self.planned_tokens)
            end_s = now + (planned_tokens - request.context_tokens) * step_s
            self._bound_until_s[pace_s] = max(end_s, self._bound_until_s.get(pace_s, end_s))

    def _unpromise(self, request: Request) -> None:
        pace_s = request.slo.tpot_s
        if pace_s is not None:
            self._paces_s[pace_s] -= 1
            if not self._paces_s[pace_s]:
                del self._paces_s[pace_s], self._bound_until_s[pace_s]
                self._strictest_pace_s = min(self._paces_s, default=math.inf)

    def replan(self, request: Request, planned_tokens: int) -> None:
        """Expect another length of a request's answer."""
        self._unplan(request.planned_tokens)
        request.planned_tokens = planned_tokens
        self._plan(planned_tokens)
        if request.counter is self:
            self._watch(request)

    def outgrown(self) -> list[Request]:
        """Those whose answers have become as long as was planned for. The caller is to replan each of them."""
        found = []
        while self._outgrowing and self._outgrowing[0][0] <= self.decode_steps:
            _, request_id = heapq.heappop(self._outgrowing)
            request = self.decoding.get(request_id)
            if request is not None and request.context_tokens >= request.planned_tokens:
                found.append(request)
        return found

    def begin_decoding(self, request: Request) -> None:
        """The first token (or, after a preemption, the next one) is out."""
        computed = request.context_tokens - request.cached_tokens
        self._unqueue(request)
        request.tokens_before += 1
        self._start_decoding(request)
        self.progress_tokens = max(0, self.progress_tokens - computed) if self.waiting else 0

    def fall_back(self, request: Request) -> None:
        """A decode was preempted and has to be computed again."""
        self._stop_decoding(request)
        request.cached_tokens = 0
        self._queue(request, 0)

    def remove(self, request: Request) -> None:
        if request.id in self.decoding:
            self._stop_decoding(request)
        elif self.standing.pop(request.id, None) is None:
            self._unqueue(request)
        self._unplan(request.planned_tokens)
        self._unpromise(request)
        if not self.waiting:
            self.progress_tokens = 0
        if self.is_empty:
            self.step_end_s = 0.0

    def advance(self, steps: int) -> None:
        """Everything that decodes here has emitted so many tokens more."""
        self.decode_steps += steps
        self.context_tokens += steps * len(self.decoding)
        self._changed.add(self)

    def observe_step(self, shape: StepShape, duration_s: float, now: float) -> None:
        """Learn from a step that ended; the next one is assumed to look like it."""
        expected_s = self.latency.expect_like(shape, duration_s)
        self.progress_tokens = self.progress_tokens + shape.prefill_tokens if self.waiting else 0
        self.step_end_s = now + (0.0 if self.is_empty else expected_s)
        self._changed.add(self)

    def _queue(self, request: Request, cached_tokens: int) -> None:
        self.waiting[request.id] = request
        key = (request.first_deadline_s, request.id)
        index = bisect_left(self._deadlines, key)
        self._deadlines.insert(index, key)
        self._works_s.insert(index, self.prefill_work_s(request, cached_tokens))
        self._changed.add(self)

    def _unqueue(self, request: Request) -> None:
        del self.waiting[request.id]
        index = bisect_left(self._deadlines, (request.first_deadline_s, request.id))
        del self._deadlines[index], self._works_s[index]
        self._changed.add(self)

    def _start_decoding(self, request: Request) -> None:
        request.begin_counting(self)
        self.decoding[request.id] = request
        self.context_tokens += request.context_tokens
        self._watch(request)
        self._changed.add(self)

    def _stop_decoding(self, request: Request) -> None:
        del self.decoding[request.id]
        self.context_tokens -= request.context_tokens
        request.stop_counting()
        self._changed.add(self)

    def _watch(self, request: Request) -> None:
        left = max(1, request.planned_tokens - request.context_tokens)
        heapq.heappush(self._outgrowing, (self.decode_steps + left, request.id))

    def _plan(self, tokens: int) -> None:
        self.planned_tokens += tokens
        self.planned_blocks += self.capacity.blocks_for(tokens)
        self._changed.add(self)

    def _unplan(self, tokens: int) -> None:
        self.planned_tokens -= tokens
        self.planned_blocks -= self.capacity.blocks_for(tokens)
        self._changed.add(self)

    def check(self) -> None:
        assert not (self.waiting.keys() & self.decoding.keys()), f"{self.name}: a request waits and decodes"
        assert [key[1] for key in self._deadlines] == [
            r.id for r in sorted(self.waiting.values(), key=lambda r: (r.first_deadline_s, r.id))
        ], f"{self.name}: work without a request, or the reverse"
        assert len(self._works_s) == len(self._deadlines)
        total = sum(request.context_tokens for request in self.decoding.values())
        assert total == self.context_tokens, f"{self.name}: context {self.context_tokens}, really {total}"
        held = [*self.waiting.values(), *self.decoding.values(), *self.standing.values()]
        arriving = list(self.arriving.values())
        planned = sum(request.planned_tokens for request in held) + sum(planned for _, planned in arriving)
        assert planned == self.planned_tokens, f"{self.name}: planned {self.planned_tokens}, really {planned}"
        counted = [*held, *(request for request, _ in arriving)]
        paces = [request.slo.tpot_s for request in counted if request.slo.tpot_s is not None]
        assert sorted(paces) == sorted(pace for pace, count in self._paces_s.items() for _ in range(count))
        assert self._strictest_pace_s == min(paces, default=math.inf)
        for request in held:
            assert request.instance_id == self.id, f"{self.name} holds a request of {request.instance_id}: {request!r}"
            assert (request.counter is self) == (request.id in self.decoding), repr(request)
