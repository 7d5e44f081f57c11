"""The state machine that owns all decisions: events in, commands out, time as an argument.

It never reads a clock, a socket, a file, a random generator or a log. A driver feeds it every event with the instant at
which it happened, performs the commands in order, and calls again at `next_wakeup`. Live and simulated drivers feed the
same class, so what wins in one is what runs in the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Cancel, Command, Conclude, Dispatch, Hold, Launch, Reason, Reject, Why
from hyperflexis.core.dispatch import Dispatcher, Placement
from hyperflexis.core.events import (
    Event,
    InstanceLost,
    InstanceReady,
    InstanceReported,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    Wakeup,
)
from hyperflexis.core.instance import Instance, InstanceState, InstanceStep, Role
from hyperflexis.core.request import ON_INSTANCE, Request, RequestState, RequestStep
from hyperflexis.core.step import StepRules

_UNKEPT = frozenset({Why.LEAST_HARM, Why.BEST_EFFORT})
"""Reasons of placements that do not keep every promise."""
DISPATCHES_MAX = 4
"""A request that was on this many instances when they died is not tried again."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A named bundle of decisions: between instances, and inside each."""

    name: str
    dispatcher: Dispatcher
    rules: StepRules = field(default_factory=StepRules)


@dataclass(frozen=True, slots=True)
class FixedFleet:
    """How many instances there should be, and how hard to try to have them."""

    instances: int
    launch_attempts_max: int = 5
    """Consecutive failures to start after which no more are tried."""
    launch_backoff_s: float = 1.0
    """Pause after the first failure, which doubles with each further one; and after a death sooner than this."""


class ControlPlane:
    """All live requests and instances, and every decision about them."""

    def __init__(self, policy: Policy, fleet: FixedFleet, requests_max: int = 10_000) -> None:
        self.policy = policy
        self.fleet = fleet
        self.requests_max = requests_max
        self.cluster = Cluster()
        self._next_instance_id = 0
        self._failed_launches = 0
        self._launch_at_s = -math.inf
        self._handlers: dict[type, Callable[..., list[Command]]] = {
            RequestArrived: self._on_arrived,
            RequestCancelled: self._on_cancelled,
            RequestFinished: self._on_finished,
            InstanceReady: self._on_ready,
            InstanceReported: self._on_reported,
            InstanceLost: self._on_lost,
            Wakeup: self._on_wakeup,
        }

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event; returns what to do about it, in order."""
        return self._handlers[type(event)](event, now)

    def next_wakeup(self) -> float | None:
        """The instant at which something should be decided even if nothing happens until then."""
        if self._missing_instances() > 0 and self._failed_launches < self.fleet.launch_attempts_max:
            return self._launch_at_s
        return None

    def is_startable(self) -> bool:
        """False once launching has been given up."""
        return self._failed_launches < self.fleet.launch_attempts_max

    # -- requests

    def _on_arrived(self, event: RequestArrived, now: float) -> list[Command]:
        assert event.request_id not in self.cluster.requests, f"request {event.request_id} arrived twice"
        request = Request(
            id=event.request_id,
            arrived_s=now,
            prompt_tokens=event.prompt_tokens,
            max_tokens=event.max_tokens,
            slo=event.slo,
            priority=event.priority,
            service_class=event.service_class,
            block_hashes=event.block_hashes,
            refuses_late=event.refuses_late,
        )
        refusal = self._refusal(request)
        if refusal is not None:
            request.step(RequestStep.REJECT)
            return [refusal]
        self.cluster.requests[request.id] = request
        self.cluster.enqueue(request)
        placed = self._dispatch_queue(now)
        if request.state is RequestState.QUEUED:
            placed.append(Hold(request.id, Reason(Why.NO_INSTANCE)))
        return placed

    def _refusal(self, request: Request) -> Reject | None:
        unfinished = len(self.cluster.requests)
        if unfinished >= self.requests_max:
            numbers = (("unfinished", float(unfinished)), ("requests_max", float(self.requests_max)))
            return Reject(request.id, Reason(Why.QUEUE_FULL, numbers), self._drain_s() / max(1, unfinished))
        if not self.is_startable() and not self.cluster.instances:
            return Reject(request.id, Reason(Why.START_FAILS))
        return None

    def _drain_s(self) -> float:
        """Predicted time until the work that is here now is done, by the slowest instance."""
        drains = [0.0]
        for instance in self.cluster.ready:
            model = instance.latency.model
            work_s = instance.waiting_s()
            held = [*instance.waiting.values(), *instance.decoding.values()]
            left = max((self.cluster.expected_tokens(r) - r.emitted_tokens for r in held), default=0)
            drains.append(work_s + max(0, left) * model.decode_step_s(len(held), instance.context_tokens))
        return max(drains)

    def _on_cancelled(self, event: RequestCancelled, now: float) -> list[Command]:
        request = self.cluster.requests.get(event.request_id)
        if request is None:
            return []
        reason = Reason(Why.CLIENT_LEFT)
        commands: list[Command] = []
        name = self._instance_name(request)
        if request.instance_id is not None:
            commands.append(Cancel(request.id, request.instance_id, reason))
            self.cluster.instances[request.instance_id].remove(request)
        else:
            self.cluster.dequeue(request)
        if request.first_token_s is not None:
            request.tokens_before = max(request.tokens_before, event.emitted_tokens)
            request.last_token_s = now
        request.step(RequestStep.CANCEL)
        del self.cluster.requests[request.id]
        return [*commands, Conclude(request.id, request.verdict(name), reason)]

    def _on_finished(self, event: RequestFinished, now: float) -> list[Command]:
        request = self.cluster.requests.get(event.request_id)
        if request is None or request.instance_id != event.instance_id:
            return []
        instance = self.cluster.instances[event.instance_id]
        instance.remove(request)
        request.tokens_before = event.emitted_tokens
        if event.emitted_tokens:
            request.last_token_s = now
        request.step(RequestStep.FINISH)
        if not event.failed:
            self.cluster.observe_length(request)
        del self.cluster.requests[request.id]
        return [Conclude(request.id, request.verdict(instance.name), Reason(Why.FAILED if event.failed else Why.ENDED))]

    # -- instances

    def _on_ready(self, event: InstanceReady, now: float) -> list[Command]:
        instance = self.cluster.instances[event.instance_id]
        instance.become_ready(event.capacity, event.latency, now)
        self.cluster.note_ready()
        self._failed_launches = 0
        return self._dispatch_queue(now)

    def _on_reported(self, event: InstanceReported, now: float) -> list[Command]:
        instance = self.cluster.instances[event.instance_id]
        instance.advance(event.steps - 1)
        for request_id in event.preempted:
            self._fall_back(instance, request_id)
        instance.advance(1)
        for request_id in event.started:
            request = self._waiting_at(instance, request_id)
            if request is not None and request.state is RequestState.WAITING:
                request.step(RequestStep.START)
                if request.prefill_started_s is None:
                    request.prefill_started_s = now - event.duration_s
        for request_id in event.began:
            request = self._waiting_at(instance, request_id)
            if request is not None:
                request.step(RequestStep.TOKEN)
                if request.first_token_s is None:
                    request.first_token_s = now
                instance.begin_decoding(request)
        if event.latency is not None:
            instance.latency.adopt(event.latency)
        instance.observe_step(event.shape, event.duration_s, now)
        for request in instance.outgrown():
            instance.replan(request, request.prompt_tokens + self.cluster.expected_tokens(request))
        return []

    def _waiting_at(self, instance: Instance, request_id: int) -> Request | None:
        """Find a request that waits there; None if it was cancelled, or moved on, while the step ran."""
        request = self.cluster.requests.get(request_id)
        return request if request is not None and request.id in instance.waiting else None

    def _fall_back(self, instance: Instance, request_id: int) -> None:
        request = self.cluster.requests.get(request_id)
        if request is None or request.instance_id != instance.id or request.state is RequestState.WAITING:
            return
        if request.state is RequestState.DECODING:
            instance.fall_back(request)
        request.step(RequestStep.PREEMPT)

    def _on_lost(self, event: InstanceLost, now: float) -> list[Command]:
        """Forget the instance; what it had is dispatched again, with the tokens that its clients already have."""
        instance = self.cluster.instances.pop(event.instance_id)
        self._back_off(instance, now)
        instance.step(InstanceStep.LOSE)
        self.cluster.note_ready()
        for request in instance.decoding.values():
            request.stop_counting()
        commands = [self._requeue(r) for r in [*instance.waiting.values(), *instance.decoding.values()]]
        commands += self._launch_missing(now)
        if not self.is_startable() and not self.cluster.instances:
            return [*commands, *self._give_up()]
        return [*commands, *self._dispatch_queue(now)]

    def _back_off(self, instance: Instance, now: float) -> None:
        """Pause before the next launch where the last one came to nothing."""
        if instance.state is not InstanceState.STARTING:
            if now - instance.ready_s < self.fleet.launch_backoff_s:
                self._launch_at_s = now + self.fleet.launch_backoff_s
        elif now >= self._launch_at_s:  # Those that were launched together and fail together count once.
            self._launch_at_s = now + self.fleet.launch_backoff_s * 2**self._failed_launches
            self._failed_launches += 1

    def _requeue(self, request: Request) -> Command:
        """Back into the queue; unless it was there when several instances died, and may be what kills them."""
        request.step(RequestStep.REQUEUE)
        request.instance_id = None
        if request.dispatches >= DISPATCHES_MAX:
            return self._refuse(request, Reason(Why.LOST_TOO_OFTEN, (("dispatches", float(request.dispatches)),)))
        self.cluster.enqueue(request)
        return Hold(request.id, Reason(Why.INSTANCE_LOST))

    def _refuse(self, request: Request, reason: Reason, retry_after_s: float | None = None) -> Reject:
        request.step(RequestStep.REJECT)
        del self.cluster.requests[request.id]
        return Reject(request.id, reason, retry_after_s)

    def _give_up(self) -> list[Command]:
        """Nothing runs and nothing will: refuse what waits, rather than hold it for ever."""
        waiting, self.cluster.queue = self.cluster.queue, []
        return [self._refuse(request, Reason(Why.START_FAILS)) for request in waiting]

    def _on_wakeup(self, event: Wakeup, now: float) -> list[Command]:
        return self._launch_missing(now)

    def _missing_instances(self) -> int:
        return self.fleet.instances - len(self.cluster.instances)

    def _launch_missing(self, now: float) -> list[Command]:
        if now < self._launch_at_s or not self.is_startable():
            return []
        commands: list[Command] = []
        while self._missing_instances() > 0:
            instance = self.cluster.launch(self._next_instance_id, Role.MIXED)
            self._next_instance_id += 1
            numbers = (("have", float(len(self.cluster.instances))), ("want", float(self.fleet.instances)))
            commands.append(Launch(instance.id, instance.role, Reason(Why.FLEET_SHORT, numbers)))
        return commands

    # -- dispatch

    def _dispatch_queue(self, now: float) -> list[Command]:
        """Place everything that waits, in order; without a ready instance, nothing."""
        if not self.cluster.ready:
            return []
        return [self._dispatch(request, now) for request in list(self.cluster.queue)]

    def _dispatch(self, request: Request, now: float) -> Command:
        self.cluster.dequeue(request)
        instances = self._large_enough(request)
        if not instances:
            tokens = request.prompt_tokens + request.max_tokens
            return self._refuse(request, Reason(Why.TOO_LARGE, (("tokens", float(tokens)),)))
        placement = self.policy.dispatcher.choose(request, instances, self.cluster, now)
        if request.refuses_late and not request.dispatches and placement.reason.why in _UNKEPT:
            return self._refuse(
                request, Reason(Why.TOO_LATE, placement.reason.numbers), self._excess_s(request, placement)
            )
        request.step(RequestStep.DISPATCH)
        request.instance_id = placement.instance.id
        request.dispatches += 1
        if request.dispatched_s is None:
            request.dispatched_s = now
            request.predicted_ttft_s = placement.ttft_s
            request.predicted_tpot_s = placement.tpot_s
        expected = self.cluster.expected_tokens(request)
        placement.instance.place(request, request.prompt_tokens + expected, now)
        return Dispatch(request.id, placement.instance.id, placement.reason, expected)

    def _excess_s(self, request: Request, placement: Placement) -> float:
        """Predicted time until a request like this one could be served in time: what its queue is too long by.

        Where the queue is not what keeps it from that, until the work that is here now is done.
        """
        if request.slo.ttft_s is not None and placement.ttft_s is not None and placement.ttft_s > request.slo.ttft_s:
            return placement.ttft_s - request.slo.ttft_s
        return self._drain_s() / max(1, len(self.cluster.requests))

    def _large_enough(self, request: Request) -> list[Instance]:
        tokens = request.prompt_tokens + request.max_tokens
        if tokens <= self.cluster.tokens_max:
            return self.cluster.ready
        return [i for i in self.cluster.ready if i.capacity.blocks_for(tokens) <= i.capacity.blocks]

    # -- looking in

    def _instance_name(self, request: Request) -> str:
        if request.instance_id is None:
            return ""
        return self.cluster.instances[request.instance_id].name

    def check(self) -> None:
        """Every invariant; an AssertionError carries the state's repr."""
        self.cluster.check()
        for request in self.cluster.requests.values():
            assert (request.instance_id is not None) == (request.state in ON_INSTANCE), repr(request)
        if self.cluster.ready:
            assert not self.cluster.queue, f"work waits although an instance is ready: {self.cluster.queue!r}"
