"""A whole fleet in virtual time: the real control plane, real step schedulers, and steps that take what a model says.

`World` performs commands and turns steps into events, as the live driver and its instances do, but leaves it to the
caller when each thing happens. `Fleet` adds a clock: a heap of things to come, in order of time and then of insertion.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hyperflexis.core.blocks import BlockPool
from hyperflexis.core.commands import Cancel, Command, Conclude, Dispatch, Launch, Reject
from hyperflexis.core.control import ControlPlane
from hyperflexis.core.events import (
    Event,
    InstanceLost,
    InstanceReady,
    InstanceReported,
    RequestArrived,
    RequestFinished,
    TokensEmitted,
    Wakeup,
)
from hyperflexis.core.instance import Capacity
from hyperflexis.core.latency import LatencyModel, OnlineLatency
from hyperflexis.core.prefix import block_hashes
from hyperflexis.core.slo import Slo
from hyperflexis.core.step import Sequence as Seq
from hyperflexis.core.step import StepPlan, StepScheduler

STOP = 2**32 - 1
"""The token that ends a request whose answer is shorter than it asked for."""


@dataclass(frozen=True, slots=True)
class Job:
    """One request: what is asked, what was promised, and how long the answer really is."""

    id: int
    prompt: Sequence[int]
    max_tokens: int
    slo: Slo = field(default_factory=Slo)
    priority: int = 0
    service_class: str = "default"
    answer_tokens: int | None = None
    """None: `max_tokens`."""
    shares_prefix: bool = True


@dataclass(slots=True)
class Live:
    """What a driver remembers of a request that has not ended."""

    job: Job
    arrived_s: float
    emitted: list[int] = field(default_factory=list)
    first_token_s: float | None = None


class Body:
    """One instance. Reads its messages between steps, as a real one does."""

    def __init__(self, instance_id: int) -> None:
        self.id = instance_id
        self.scheduler: StepScheduler | None = None
        self.inbox: list[Seq | int] = []
        self.plan: StepPlan | None = None
        """The step that runs now."""

    def begin(self, now: float) -> StepPlan | None:
        """Start a step; None if there is nothing to compute."""
        assert self.scheduler is not None
        assert self.plan is None
        inbox, self.inbox = self.inbox, []
        for message in inbox:
            if isinstance(message, Seq):
                self.scheduler.add(message)
            else:
                self.scheduler.cancel(message)
        plan = self.scheduler.plan(now)
        self.plan = plan if plan.chunks else None
        return self.plan

    def end(self, duration_s: float, now: float, answers: Callable[[int], int]) -> tuple[list[Event], dict[int, int]]:
        """End the step that runs; returns the events that a driver makes of it, and its tokens by request."""
        assert self.scheduler is not None
        assert self.plan is not None
        plan, self.plan = self.plan, None
        shape = plan.shape
        sampled = {c.sequence.id: _next_token(c.sequence, answers(c.sequence.id)) for c in plan.chunks if c.samples}
        finished = self.scheduler.commit(plan, sampled, now)
        self.scheduler.observe(shape, duration_s)
        started = [sequence_id for sequence_id, _ in plan.started]
        events: list[Event] = [InstanceReported(self.id, shape, duration_s, started, plan.preempted)]
        events.append(TokensEmitted(self.id, list(sampled)))
        events += [RequestFinished(self.id, end.sequence_id) for end in finished]
        return events, sampled


def _next_token(sequence: Seq, answer_tokens: int) -> int:
    return STOP if sequence.emitted + 1 == answer_tokens else sequence.emitted


class World:
    """Control plane and bodies without a clock. `check` runs after every event if `checks` is on."""

    def __init__(self, control: ControlPlane, capacity: Capacity, model: LatencyModel, *, checks: bool = False) -> None:
        self.control = control
        self.capacity = capacity
        self.model = model
        self.checks = checks
        self.bodies: dict[int, Body] = {}
        self.live: dict[int, Live] = {}
        self.answers: dict[int, int] = {}
        """Request → the length of its answer, also of those that have ended."""
        self.ends: dict[int, Conclude | Reject] = {}
        self.tokens: dict[int, list[int]] = {}
        """Request → what its client had when it ended."""
        self.journal: list[tuple[float, Command]] = []

    def feed(self, event: Event, now: float) -> list[Command]:
        """Hand one event to the control plane and perform what it says."""
        commands = self.control.handle(event, now)
        for command in commands:
            self.journal.append((now, command))
            self._perform(command, now)
        if self.checks:
            self.control.check()
        return commands

    def arrive(self, job: Job, now: float) -> None:
        self.live[job.id] = Live(job, now)
        self.answers[job.id] = job.answer_tokens or job.max_tokens
        hashes = block_hashes(job.prompt, self.capacity.block_tokens) if job.shares_prefix else []
        event = RequestArrived(
            job.id, len(job.prompt), job.max_tokens, job.slo, job.priority, job.service_class, tuple(hashes)
        )
        self.feed(event, now)

    def become_ready(self, instance_id: int, now: float) -> None:
        body, capacity = self.bodies[instance_id], self.capacity
        pool = BlockPool(capacity.blocks, capacity.block_tokens)
        latency = OnlineLatency(self.model)
        body.scheduler = StepScheduler(pool, capacity.seqs_max, latency, self.control.policy.rules)
        self.feed(InstanceReady(instance_id, capacity, self.model), now)

    def lose(self, instance_id: int, now: float) -> None:
        del self.bodies[instance_id]
        self.feed(InstanceLost(instance_id), now)

    def end_step(self, body: Body, duration_s: float, now: float) -> None:
        events, sampled = body.end(duration_s, now, self.answers.__getitem__)
        for request_id, token in sampled.items():
            if live := self.live.get(request_id):
                live.emitted.append(token)
                live.first_token_s = now if live.first_token_s is None else live.first_token_s
        for event in events:
            self.feed(event, now)

    def has_work(self, body: Body) -> None:
        """Called when a message is put into an instance's inbox."""

    def _perform(self, command: Command, now: float) -> None:
        if isinstance(command, Launch):
            self.bodies[command.instance_id] = Body(command.instance_id)
        elif isinstance(command, Dispatch):
            self._tell(command.instance_id, self._sequence(self.live[command.request_id]))
        elif isinstance(command, Cancel):
            self._tell(command.instance_id, command.request_id)
        elif isinstance(command, Conclude | Reject):
            assert command.request_id not in self.ends, f"request {command.request_id} ended twice"
            self.ends[command.request_id] = command
            self.tokens[command.request_id] = self.live.pop(command.request_id).emitted

    def _tell(self, instance_id: int, message: Seq | int) -> None:
        self.bodies[instance_id].inbox.append(message)
        self.has_work(self.bodies[instance_id])

    def _sequence(self, live: Live) -> Seq:
        job = live.job
        return Seq(
            id=job.id,
            tokens=[*job.prompt, *live.emitted],
            prompt_tokens=len(job.prompt),
            max_tokens=job.max_tokens,
            slo=job.slo,
            arrived_s=live.arrived_s,
            priority=job.priority,
            stop_ids=frozenset({STOP}),
            first_token_s=live.first_token_s,
            reuses_prefix=job.shares_prefix,
        )


class Fleet(World):
    """A world with a clock. Instances take `startup_s` to become ready; `truth` is how long steps really take."""

    def __init__(
        self,
        control: ControlPlane,
        capacity: Capacity,
        model: LatencyModel,
        *,
        truth: LatencyModel | None = None,
        startup_s: float = 0.0,
        checks: bool = False,
    ) -> None:
        super().__init__(control, capacity, model, checks=checks)
        self.now = 0.0
        self.truth = truth or model
        self.startup_s = startup_s
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._insertions = 0
        self._wakeup_s: float | None = None
        self._awake: set[int] = set()

    def at(self, instant_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (instant_s, self._insertions, action))
        self._insertions += 1

    def arrive_at(self, instant_s: float, job: Job) -> None:
        self.at(instant_s, lambda: self.arrive(job, self.now))

    def run(self, until_s: float = float("inf")) -> None:
        """Until nothing is to come any more, or the clock passes `until_s`."""
        self.at(self.now, lambda: self._feed_wakeup(None))
        while self._heap and self._heap[0][0] <= until_s:
            self.now, _, action = heapq.heappop(self._heap)
            action()

    def feed(self, event: Event, now: float) -> list[Command]:
        commands = super().feed(event, now)
        wakeup_s = self.control.next_wakeup()
        if wakeup_s is not None and wakeup_s != self._wakeup_s:
            self._wakeup_s = wakeup_s
            self.at(max(now, wakeup_s), lambda: self._feed_wakeup(wakeup_s))
        return commands

    def lose(self, instance_id: int, now: float) -> None:
        self._awake.discard(instance_id)
        super().lose(instance_id, now)

    def has_work(self, body: Body) -> None:
        if body.id not in self._awake:
            self._awake.add(body.id)
            self.at(self.now, lambda: self._begin(body))

    def _feed_wakeup(self, wakeup_s: float | None) -> None:
        if wakeup_s == self._wakeup_s:
            self._wakeup_s = None
            self.feed(Wakeup(), self.now)

    def _perform(self, command: Command, now: float) -> None:
        super()._perform(command, now)
        if isinstance(command, Launch):
            instance_id = command.instance_id
            self.at(now + self.startup_s, lambda: self._announce(instance_id))

    def _announce(self, instance_id: int) -> None:
        if instance_id in self.bodies:
            self.become_ready(instance_id, self.now)

    def _begin(self, body: Body) -> None:
        if self.bodies.get(body.id) is not body:
            return
        plan = body.begin(self.now)
        if plan is None:
            self._awake.discard(body.id)
            return
        duration_s = self.truth.step_s(plan.shape)
        self.at(self.now + duration_s, lambda: self._end(body, duration_s))

    def _end(self, body: Body, duration_s: float) -> None:
        if self.bodies.get(body.id) is body:
            self.end_step(body, duration_s, self.now)
            self._begin(body)
