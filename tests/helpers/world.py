"""A fleet without a clock: the real control plane, real step schedulers, and a caller that says what happens when.

`World` performs commands and turns steps into events, as the live driver and its instances do. It is for tests that
want every order of events, losses in the middle of steps included; what a clock decides is tested with `sim`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyperflexis.core.blocks import BlockPool
from hyperflexis.core.cadence import STEPS_MAX, Cadence
from hyperflexis.core.commands import Cancel, Command, Conclude, Dispatch, Launch, Reject
from hyperflexis.core.control import ControlPlane
from hyperflexis.core.events import (
    Event,
    InstanceLost,
    InstanceReady,
    InstanceReported,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    RequestReturned,
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
        self._cadence = Cadence()
        self._has_changed = False

    @property
    def untold_steps(self) -> int:
        """Steps that have ended and that the control plane has not heard of."""
        return STEPS_MAX - self._cadence.steps_left

    def begin(self, now: float) -> StepPlan | None:
        """Start a step; None if there is nothing to compute and nothing to say."""
        assert self.scheduler is not None
        assert self.plan is None
        inbox, self.inbox = self.inbox, []
        for message in inbox:
            if isinstance(message, Seq):
                self.scheduler.add(message)
            else:
                self._has_changed |= self.scheduler.cancel(message)
        plan = self.scheduler.plan(now)
        self.plan = None if plan.is_empty and not self._has_changed else plan
        return self.plan

    def end(
        self, duration_s: float, now: float, answers: Callable[[int], int]
    ) -> tuple[InstanceReported | None, dict[int, int], list[int]]:
        """End the step that runs; returns its report, if there is one, its tokens by request, and who has ended."""
        assert self.scheduler is not None
        assert self.plan is not None
        plan, self.plan = self.plan, None
        shape, has_computed = plan.shape, not plan.is_empty
        sampled = {c.sequence.id: _next_token(c.sequence, answers(c.sequence.id)) for c in plan.chunks if c.samples}
        ended = [end.sequence_id for end in self.scheduler.commit(plan, sampled, now)]
        if has_computed:
            self.scheduler.observe(shape, duration_s)
        steps = self._cadence.count(1, bool(plan.prefills or plan.preempted or ended or self._has_changed))
        self._has_changed = False
        if not steps:
            return None, sampled, ended
        started, began = [number for number, _ in plan.started], [sequence.id for sequence in plan.began]
        report = InstanceReported(self.id, shape, duration_s, steps, started, began, plan.preempted)
        return report, sampled, ended


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
        self.journal: list[tuple[float, Event, list[Command]]] = []

    def feed(self, event: Event, now: float) -> list[Command]:
        """Hand one event to the control plane and perform what it says."""
        commands = self.control.handle(event, now)
        self.journal.append((now, event, commands))
        for command in commands:
            self._perform(command)
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
        body = self.bodies.pop(instance_id)
        self.feed(InstanceLost(instance_id, untold_steps=body.untold_steps), now)

    def end_step(self, body: Body, duration_s: float, now: float) -> None:
        report, sampled, ended = body.end(duration_s, now, self.answers.__getitem__)
        if report is not None:
            self.feed(report, now)
        for request_id, token in sampled.items():
            if live := self.live.get(request_id):
                live.emitted.append(token)
                live.first_token_s = now if live.first_token_s is None else live.first_token_s
        for request_id in ended:
            emitted = len(live.emitted) if (live := self.live.get(request_id)) else 0
            self.feed(RequestFinished(body.id, request_id, emitted), now)

    def give_back(self, request_id: int, now: float, *, was_refused: bool) -> None:
        """Its instance, which is between two steps, is to have it no more, and lives on."""
        instance_id = self.control.cluster.requests[request_id].instance_id
        assert instance_id is not None
        body = self.bodies[instance_id]
        assert body.plan is None
        assert body.scheduler is not None
        body.inbox = [each for each in body.inbox if not isinstance(each, Seq) or each.id != request_id]
        body.scheduler.cancel(request_id)
        self.feed(RequestReturned(instance_id, request_id, len(self.live[request_id].emitted), was_refused), now)

    def cancel(self, request_id: int, now: float) -> None:
        self.feed(RequestCancelled(request_id, len(self.live[request_id].emitted)), now)

    def _perform(self, command: Command) -> None:
        if isinstance(command, Launch):
            self.bodies[command.instance_id] = Body(command.instance_id)
        elif isinstance(command, Dispatch):
            self.bodies[command.instance_id].inbox.append(self._sequence(self.live[command.request_id]))
        elif isinstance(command, Cancel):
            self.bodies[command.instance_id].inbox.append(command.request_id)
        elif isinstance(command, Conclude | Reject):
            assert command.request_id not in self.ends, f"request {command.request_id} ended twice"
            self.ends[command.request_id] = command
            self.tokens[command.request_id] = self.live.pop(command.request_id).emitted

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


def relabelled(said: Event | Command, stretch: int) -> Any:
    """An event or a command about the request whose id is so many times as large."""
    values: dict[str, Any] = {}
    for name in said._fields:
        value = getattr(said, name)
        if name == "request_id":
            values[name] = value * stretch
        elif name in {"started", "began", "preempted"}:
            values[name] = [request_id * stretch for request_id in value]
    return said._replace(**values)
