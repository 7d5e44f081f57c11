"""The state machine that owns all decisions: events in, commands out, time as an argument.

It never reads a clock, a socket, a file, a random generator or a log. A driver feeds it every event with the instant at
which it happened, performs the commands in order, and calls again at `next_wakeup`. Live and simulated drivers feed the
same class, so what wins in one is what runs in the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hyperflexis.core.admission import Admission
from hyperflexis.core.binding import Binder
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import (
    AssignRole,
    Cancel,
    Command,
    Conclude,
    Dispatch,
    Drain,
    Hold,
    Reason,
    Reject,
    Sleep,
    Stop,
    Why,
)
from hyperflexis.core.dispatch import Dispatcher, Placement
from hyperflexis.core.events import (
    Arrival,
    Event,
    FleetChanged,
    InstanceDrained,
    InstanceLost,
    InstanceReady,
    InstanceReported,
    Linked,
    LinkFailed,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    RequestReturned,
    TransferFailed,
    Wakeup,
)
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Instance, InstanceState, InstanceStep, Role
from hyperflexis.core.links import Links
from hyperflexis.core.migration import Migration, Migrations
from hyperflexis.core.relief import Move, Relief
from hyperflexis.core.request import ON_INSTANCE, Request, RequestState, RequestStep
from hyperflexis.core.roles import RoleChange, RolePlanner
from hyperflexis.core.scaling import Scaler
from hyperflexis.core.sizing import Sizing
from hyperflexis.core.step import StepRules
from hyperflexis.core.vacancy import Vacancy

TICK_S = 0.2
"""How often roles, and what waits for an instance to decode on, are looked at where nothing happens."""
_UNKEPT = frozenset({Why.LEAST_HARM, Why.BEST_EFFORT})
"""Reasons of placements that do not keep every promise."""
STANDING_MAX_S = 5.0
"""A request that no instance would decode for so long goes on where it is: it may hold the blocks that others need."""
SWITCH_MAX_S = 10.0
"""An instance that has not reported a step in its new role by then keeps the old one."""
BIND_TRIES_MAX = 8
"""So many that fit nowhere are looked at, each time that others might."""
MOVE_TRIES_MAX = 3
"""A request that could not be moved so often stays where it is."""
_LINKED_STATES = frozenset({InstanceState.LINKING, InstanceState.READY})
TRIES_MAX = 4
"""A request that was on this many instances in a row when they died is not tried again."""
PROGRESS_TOKENS = 4
"""Unless it got so much further on one of them: then it is not what kills them. What dies of one token might emit
another one each time."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A named bundle of decisions: between instances, and inside each."""

    name: str
    dispatcher: Dispatcher
    rules: StepRules = field(default_factory=StepRules)
    role_rules: Mapping[Role, StepRules] = field(default_factory=dict)
    """Of instances with a role other than mixed, where they differ."""
    binder: Binder | None = None
    """Which instance decodes what another has prefilled; without one, that one does."""
    planner: RolePlanner | None = None
    """What changes roles; without one they stay."""
    relief: Relief | None = None
    """What moves running requests; without one they stay until their instance dies."""
    scaler: Scaler | None = None
    """How many instances there are, within a fleet's bounds; without one, the fewest."""

    def rules_of(self, role: Role) -> StepRules:
        rules = self.role_rules.get(role, self.rules)
        return replace(rules, hands_off=role is Role.PREFILL) if self.binder is not None else rules


class ControlPlane:
    """All live requests and instances, and every decision about them."""

    def __init__(self, policy: Policy, fleet: FleetBounds, requests_max: int = 10_000) -> None:
        self.policy = policy
        self.cluster = Cluster()
        self._vacancy = Vacancy(self.cluster)
        self.links = Links()
        self.migrations = Migrations(self.cluster, self.links)
        self.admission = Admission(self.cluster, self.migrations, requests_max)
        self._handed_off: dict[int, Request] = {}
        """Those that stand still where they were prefilled, and are bound to no other instance yet."""
        self.sizing = Sizing(fleet, self.cluster)
        self._is_elastic = policy.scaler is not None and fleet.is_elastic
        self._tick_s = -math.inf
        self._handlers: dict[type, Callable[..., list[Command]]] = {
            RequestArrived: self._on_arrived,
            RequestCancelled: self._on_cancelled,
            RequestFinished: self._on_finished,
            RequestReturned: self._on_returned,
            InstanceReady: self._on_ready,
            InstanceReported: self._on_reported,
            FleetChanged: self._on_fleet_changed,
            InstanceDrained: self._on_drained,
            InstanceLost: self._on_lost,
            TransferFailed: self._on_transfer_failed,
            Linked: self._on_linked,
            LinkFailed: self._on_link_failed,
            Wakeup: self._on_wakeup,
        }

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event; returns what to do about it, in order."""
        return self._handlers[type(event)](event, now)

    def next_wakeup(self) -> float | None:
        """The instant at which something should be decided even if nothing happens until then."""
        link_s = self.links.next_due_s() if self._moves else None
        instants = [] if link_s is None else [max(link_s, self._tick_s + TICK_S)]
        if (start_s := self.sizing.next_wakeup()) is not None:
            instants.append(start_s)
        if (self._moves and self.cluster.requests) or self._drains or self._is_sized:
            instants.append(self._tick_s + TICK_S)
        return min(instants, default=None)

    @property
    def _moves(self) -> bool:
        """Whether requests may go from one instance to another."""
        return self.policy.binder is not None or self.policy.relief is not None

    @property
    def _drains(self) -> bool:
        """Whether an instance is to end as soon as it holds nothing."""
        instances = self.cluster.instances
        return len(self.cluster.ready) < len(instances) and any(
            instance.state is InstanceState.DRAINING for instance in instances.values()
        )

    @property
    def _is_sized(self) -> bool:
        """Whether the size of the fleet is to be thought about, or starts to be watched."""
        if not self._is_elastic:
            return False
        return bool(self.cluster.requests) or not self.sizing.is_at_rest

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
            is_part=event.is_part,
        )
        is_full = self.admission.is_full
        displaced = self.admission.displaced_by(request, now) if is_full else None
        if is_full and displaced is None:
            request.step(RequestStep.REJECT)
            return [Reject(request.id, self._fullness(Why.QUEUE_FULL), self._vacancy.wait_s(now))]
        if not self.sizing.is_startable() and not self.cluster.instances:
            request.step(RequestStep.REJECT)
            return [Reject(request.id, Reason(Why.START_FAILS))]
        self.cluster.requests[request.id] = request
        if self.policy.planner is not None or self._is_elastic:
            self.cluster.observe_arrival(request)
        self.cluster.enqueue(request)
        placed = self._dispatch_queue(now)
        if request.state is RequestState.QUEUED:
            placed.append(Hold(request.id, Reason(Why.NO_INSTANCE)))
            placed += self._resize(now)
        # Only now: it may have been refused all the same, and then nobody has to go.
        if displaced is not None and request.id in self.cluster.requests and displaced.id in self.cluster.requests:
            placed += self._displace(displaced, now)
        return placed

    def _fullness(self, why: Why) -> Reason:
        unfinished, most = len(self.cluster.requests), self.admission.requests_max
        return Reason(why, (("unfinished", float(unfinished)), ("requests_max", float(most))))

    def _displace(self, request: Request, now: float) -> list[Command]:
        """Refuse one that has waited, for a more important one."""
        reason, commands = self._fullness(Why.DISPLACED), list[Command]()
        if request.instance_id is not None:
            commands.append(Cancel(request.id, request.instance_id, reason))
            self.cluster.instances[request.instance_id].remove(request)
        else:
            self.cluster.dequeue(request)
        return [*commands, self._refuse(request, reason, self._vacancy.wait_s(now))]

    def _on_cancelled(self, event: RequestCancelled, now: float) -> list[Command]:
        request = self.cluster.requests.get(event.request_id)
        if request is None:
            return []
        reason = Reason(Why.CLIENT_LEFT)
        # Who is taking it is told before its blocks are given up: what is copied from then on is not what it was.
        commands = self.migrations.cancel(request, reason)
        name = self._instance_name(request)
        if request.instance_id is not None:
            commands.append(Cancel(request.id, request.instance_id, reason))
            self.cluster.instances[request.instance_id].remove(request)
        elif request.state is RequestState.QUEUED:
            self.cluster.dequeue(request)
        self._handed_off.pop(request.id, None)
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
        self._handed_off.pop(request.id, None)
        request.tokens_before = event.emitted_tokens
        if event.emitted_tokens:
            request.last_token_s = now
        request.step(RequestStep.FINISH)
        if not event.failed:
            self.cluster.observe_length(request)
        del self.cluster.requests[request.id]
        verdict = request.verdict(instance.name)
        self.cluster.observe_end(is_kept=verdict is not None and verdict.attained and not event.failed)
        return [Conclude(request.id, verdict, Reason(Why.FAILED if event.failed else Why.ENDED))]

    def _on_returned(self, event: RequestReturned, now: float) -> list[Command]:
        """Place it again: elsewhere, if it fits anywhere else."""
        request = self.cluster.requests.get(event.request_id)
        if request is None or request.instance_id != event.instance_id:
            return []
        instance = self.cluster.instances[event.instance_id]
        instance.remove(request)
        self._handed_off.pop(request.id, None)
        request.tokens_before = event.emitted_tokens
        if request.id in self.migrations:  # Its target has not got it yet, and never will from there.
            return self.migrations.lose_request(request)
        if event.was_refused:  # That says nothing of the request, so it is no reason to give it up.
            request.dispatches -= 1
            request.tries -= 1
        commands = [self._requeue(request, Why.RETURNED)]
        if request.state is RequestState.QUEUED and self.cluster.ready:
            commands.append(self._dispatch(request, now, avoided=instance))
        return commands

    # -- instances

    def _on_ready(self, event: InstanceReady, now: float) -> list[Command]:
        instance = self.cluster.instances[event.instance_id]
        self.sizing.on_ready(instance, now)
        instance.learn(event.capacity, event.latency)
        commands: list[Command] = []
        if instance.role is not Role.MIXED:
            commands.append(self._assign(instance, instance.role, Reason(Why.MEMBERSHIP), now))
        if self._moves:
            others = [i for i in self.cluster.instances.values() if i.state in _LINKED_STATES]
            commands += self.links.connect(instance, others, now)
            instance.step(InstanceStep.LINK)
        return [*commands, *self._open(instance, now)]

    def _open(self, instance: Instance, now: float) -> list[Command]:
        """Let an instance take work, once all its links are up or have failed, which they do if nobody answers."""
        if self.links.is_pending(instance.id):
            return []
        instance.take_work(now)
        self._note_instances(now)
        return self._dispatch_queue(now)

    def _note_instances(self, now: float) -> None:
        """An instance has come, gone or changed its state."""
        self.cluster.note_ready()
        self.sizing.note(now)

    def _on_linked(self, event: Linked, now: float) -> list[Command]:
        if not self.links.up(event.source_id, event.target_id, event.version):
            return []
        return self._open_linked(event, now)

    def _on_link_failed(self, event: LinkFailed, now: float) -> list[Command]:
        self.links.down(event.source_id, event.target_id, event.version, now)
        return self._open_linked(event, now)

    def _open_linked(self, event: Linked | LinkFailed, now: float) -> list[Command]:
        return self._open_all((event.source_id, event.target_id), now)

    def _open_all(self, instance_ids: Iterable[int], now: float) -> list[Command]:
        ends = [self.cluster.instances.get(end) for end in instance_ids]
        waiting = [end for end in ends if end is not None and end.state is InstanceState.LINKING]
        return [command for end in waiting for command in self._open(end, now)]

    def _assign(self, instance: Instance, role: Role, reason: Reason, now: float) -> AssignRole:
        """Give an instance a role: what it does from now on, and what others expect of it."""
        instance.role_before, instance.role = instance.role, role
        instance.role_since_s = now
        instance.rules_version += 1
        if instance.state is InstanceState.READY:
            self.cluster.note_ready()
        return AssignRole(instance.id, role, self.policy.rules_of(role), instance.rules_version, reason)

    def _on_reported(self, event: InstanceReported, now: float) -> list[Command]:
        instance = self.cluster.instances[event.instance_id]
        instance.advance(event.steps - 1)
        for request_id in event.resumed:
            self._go_on(instance, request_id)
        unwanted = [arrival.request_id for arrival in event.arrived if not self._arrive(instance, arrival)]
        for request_id in event.preempted:  # What has just come or gone on may be among them.
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
        instance.rules_in_force = max(instance.rules_in_force, event.rules_version)
        instance.observe_step(event.shape, event.duration_s, now)
        for request in instance.outgrown():
            instance.replan(request, request.prompt_tokens + self.cluster.expected_tokens(request))
        return self._after_moves(instance, event, unwanted, now) if self._moves else []

    def _after_moves(
        self, instance: Instance, event: InstanceReported, unwanted: Sequence[int], now: float
    ) -> list[Command]:
        """Take what a report says of moves, and go on with them."""
        for request_id in event.suspended:
            self._stand(instance, request_id, now)
        commands: list[Command] = [Cancel(i, instance.id, Reason(Why.CLIENT_LEFT)) for i in unwanted]
        commands += self._bind_early(instance, event.started, now)
        if event.arrived and self.policy.relief is not None:
            commands += self._perform(self.policy.relief.evacuate(self.cluster, self.migrations), now)
        return [*commands, *self._bind(now)]

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

    # -- from one instance to another

    def _stand(self, instance: Instance, request_id: int, now: float) -> None:
        request = self.cluster.requests.get(request_id)
        if request is None or request.id not in instance.decoding:  # Else it waits, and its state is the same.
            return
        request.step(RequestStep.STAND)
        request.standing_since_s = now
        instance.stand(request)
        if request_id not in self.migrations:
            self._handed_off[request_id] = request

    def _go_on(self, instance: Instance, request_id: int) -> None:
        request = self.cluster.requests.get(request_id)
        if request is not None and request.id in instance.standing:
            request.step(RequestStep.GO_ON)
            instance.go_on(request)
            instance.replan(request, request.prompt_tokens + self.cluster.expected_tokens(request))
            self._handed_off.pop(request_id, None)

    def _bind_early(self, instance: Instance, started: Sequence[int], now: float) -> list[Command]:
        """Send for what will be handed off, so that its KV moves while the rest of it is prefilled."""
        binder = self.policy.binder
        if binder is None or instance.role is not Role.PREFILL:
            return []
        commands: list[Command] = []
        for request_id in started:
            request = self._waiting_at(instance, request_id)
            if request is None or request_id in self.migrations:
                continue
            placement = binder.choose(request, instance, self._targets(instance), self.cluster, now)
            if placement is not None and placement.instance is not instance:
                placement = replace(placement, reason=placement.reason._replace(why=Why.PREFILLING))
                commands.append(self._hand_off(request, placement, now))
        return commands

    def _bind(self, now: float) -> list[Command]:
        """Find an instance to decode for each request that stands still; the longest waiting one first."""
        binder, commands, refused = self.policy.binder, list[Command](), 0
        for request in list(self._handed_off.values()):
            assert request.instance_id is not None
            source = self.cluster.instances[request.instance_id]
            targets = self._targets(source)
            placement = None
            is_overdue = now - request.standing_since_s > STANDING_MAX_S
            if binder is not None and request.move_failures < MOVE_TRIES_MAX and not is_overdue:
                placement = binder.choose(request, source, targets, self.cluster, now)
                if placement is None and targets:
                    refused += 1
                    if refused == BIND_TRIES_MAX:
                        break
                    continue
            del self._handed_off[request.id]
            if placement is None or placement.instance is source:
                commands.append(self.migrations.stay(request, Why.NO_DECODE))
            else:
                commands.append(self._hand_off(request, placement, now))
        return commands

    def _hand_off(self, request: Request, placement: Placement, now: float) -> Command:
        if request.predicted_tpot_s is None:
            request.predicted_tpot_s = placement.tpot_s
        return self.migrations.begin(request, placement.instance, placement.reason, now, at_first_token=True)

    def _targets(self, source: Instance) -> list[Instance]:
        """Where what is at an instance could decode."""
        return [i for i in self.cluster.ready if i.role is not Role.PREFILL and self.migrations.can(source, i)]

    def _arrive(self, target: Instance, arrival: Arrival) -> bool:
        """Count a request where it is now; False if nobody wants it there any more."""
        kv_bytes = arrival.copied_tokens * target.capacity.kv_token_bytes
        self.cluster.network.observe(arrival.source_id, target.id, kv_bytes, arrival.copied_s)
        self._handed_off.pop(arrival.request_id, None)
        return self.migrations.done(arrival, target.id)

    def _on_transfer_failed(self, event: TransferFailed, now: float) -> list[Command]:
        moved = self.migrations.failed(event.request_id, event.target_id)
        return [] if moved is None else [*self._after_failure(moved, Why.MOVE_FAILED), *self._dispatch_queue(now)]

    def _after_failure(self, moved: Migration, why: Why) -> list[Command]:
        """What becomes of a request that was to move and has not."""
        request = moved.request
        if self.cluster.requests.get(request.id) is not request:
            return []
        if request.state is RequestState.IN_TRANSIT:
            return [self._requeue(request)]
        request.move_failures += 1
        if request.state is RequestState.STANDING and moved.at_first_token:
            self._handed_off[request.id] = request
            return []
        is_standing = request.state is RequestState.STANDING
        return [self.migrations.stay(request, why, None if is_standing else moved.move)]

    def _on_lost(self, event: InstanceLost, now: float) -> list[Command]:
        """Forget the instance; what it had is dispatched again, with the tokens that its clients already have."""
        instance = self.cluster.instances[event.instance_id]
        instance.advance(event.untold_steps)
        return self._lose(instance, now)

    def _lose(self, instance: Instance, now: float) -> list[Command]:
        del self.cluster.instances[instance.id]
        self.sizing.on_lost(instance, now)
        instance.step(InstanceStep.LOSE)
        self._note_instances(now)
        commands: list[Command] = [*self.links.disconnect(instance.id), *self.migrations.lose_source(instance)]
        for request in instance.decoding.values():
            request.stop_counting()
        held = [*instance.waiting.values(), *instance.decoding.values(), *instance.standing.values()]
        for request in held:
            self._handed_off.pop(request.id, None)
        commands += [self._requeue(request) for request in held if request.id not in self.migrations]
        for moved in self.migrations.lose_target(instance):
            commands += self._after_failure(moved, Why.TARGET_LOST)
        commands += self._start_missing(now)
        if not self.sizing.is_startable() and not self.cluster.instances:
            return [*commands, *self._give_up()]
        return [*commands, *self._dispatch_queue(now)]

    def _requeue(self, request: Request, why: Why = Why.INSTANCE_LOST) -> Command:
        """Back into the queue; unless it was there when several instances died, and may be what kills them."""
        request.step(RequestStep.REQUEUE)
        request.instance_id = None
        if request.emitted_tokens - request.tokens_at_dispatch >= PROGRESS_TOKENS:
            request.tries = 0
        if request.tries >= TRIES_MAX:
            return self._refuse(request, Reason(Why.LOST_TOO_OFTEN, (("dispatches", float(request.dispatches)),)))
        self.cluster.enqueue(request)
        return Hold(request.id, Reason(why))

    def _refuse(self, request: Request, reason: Reason, retry_after_s: float | None = None) -> Reject:
        request.step(RequestStep.REJECT)
        del self.cluster.requests[request.id]
        return Reject(request.id, reason, retry_after_s)

    def _give_up(self) -> list[Command]:
        """Nothing runs and nothing will: refuse what waits, rather than hold it for ever."""
        waiting, self.cluster.queue = self.cluster.queue, []
        return [self._refuse(request, Reason(Why.START_FAILS)) for request in waiting]

    def _on_wakeup(self, event: Wakeup, now: float) -> list[Command]:
        commands = [*self._give_up_late(now), *self._start_missing(now)]
        if now < self._tick_s + TICK_S:
            return commands
        self._tick_s = now
        commands += self._resize(now)
        if not self._moves and not self._drains:
            return commands
        commands += self._open_all(sorted(self.links.expire(now)), now)
        commands += self.links.retry(now)
        commands += self._relieve(now)
        commands += self._revert(now)
        if self.policy.planner is not None:
            for change in self.policy.planner.plan(self.cluster, now):
                commands += self._change_role(change, now)
        return [*commands, *self._bind(now), *self._stop(now)]

    def _revert(self, now: float) -> list[Command]:
        """Give those their old roles back that have not said in time that the new ones are in force."""
        silent = [
            instance
            for instance in self.cluster.ready
            if instance.rules_in_force < instance.rules_version and now - instance.role_since_s > SWITCH_MAX_S
        ]
        reason = Reason(Why.SWITCH_FAILED, (("waited_s", SWITCH_MAX_S),))
        commands: list[Command] = []
        for instance in silent:
            commands.append(self._assign(instance, instance.role_before, reason, now))
            instance.role_before = instance.role
        return commands

    def _relieve(self, now: float) -> list[Command]:
        """Move what should not stay where it is, and end what holds nothing any more."""
        if self.policy.relief is None:
            return []
        return self._perform(self.policy.relief.plan(self.cluster, self.migrations), now)

    def _perform(self, moves: Sequence[Move], now: float) -> list[Command]:
        commands: list[Command] = []
        for request, target, reason in moves:
            assert request.instance_id is not None
            # They were chosen together, and one may close a circle with another.
            if self.migrations.can(self.cluster.instances[request.instance_id], target):
                commands.append(self.migrations.begin(request, target, reason, now))
        return commands

    def _on_fleet_changed(self, event: FleetChanged, now: float) -> list[Command]:
        """Start what is missing now. What is too much is drained by whoever said so, who knows which that is."""
        self.sizing.change(event.fleet, now)
        self._is_elastic = self.policy.scaler is not None and event.fleet.is_elastic
        return self._start_missing(now)

    def _on_drained(self, event: InstanceDrained, now: float) -> list[Command]:
        """Take an instance out of service for good; another takes its place if the fleet is short."""
        instance = self.cluster.instances.get(event.instance_id)
        if instance is None or instance.state is not InstanceState.READY:
            return []
        return self._drain(instance, now)

    def _drain(self, instance: Instance, now: float, *, is_retainable: bool = False) -> list[Command]:
        """What it has leaves it, or ends there."""
        instance.step(InstanceStep.DRAIN)
        instance.tenure.is_retainable = is_retainable
        self._note_instances(now)
        stay = [request for request in instance.standing.values() if request.id in self._handed_off]
        for request in stay:
            del self._handed_off[request.id]
        return [
            *(self.migrations.stay(request, Why.EVACUATES) for request in stay),
            *self._relieve(now),
            *self._stop(now),
        ]

    def _stop(self, now: float) -> list[Command]:
        """End those that were to end and hold nothing, or have them sleep; others take their places."""
        commands: list[Command] = []
        for instance in list(self.cluster.instances.values()):
            is_bare = not (instance.waiting or instance.decoding or instance.standing or instance.arriving)
            if instance.state is InstanceState.DRAINING and is_bare:
                # What has ended here while it was to move is still awaited by its target.
                commands += [*self.links.disconnect(instance.id), *self.migrations.lose_source(instance)]
                commands.append(self._rest(instance))
        if commands:
            self._note_instances(now)
        return [*commands, *self._start_missing(now)] if commands else []

    def _rest(self, instance: Instance) -> Command:
        reason = Reason(Why.DRAINED)
        if instance.tenure.is_retainable and self.sizing.may_sleep():
            instance.step(InstanceStep.SLEEP)
            return Sleep(instance.id, reason)
        instance.step(InstanceStep.STOP)
        del self.cluster.instances[instance.id]
        return Stop(instance.id, reason)

    # -- the size of the fleet

    def _resize(self, now: float) -> list[Command]:
        """Have as many instances as the scaler wants."""
        commands: list[Command] = []
        scaler, sizing = self.policy.scaler, self.sizing
        if scaler is None or not self._is_elastic:
            return commands
        wanted = scaler.plan(self.cluster, sizing, now)
        if wanted is not None:
            commands += sizing.want(wanted)
            sizing.note(now)
        commands += self._start_missing(now)
        gone = sizing.surplus(now)
        if gone is not None and gone.state is InstanceState.READY:
            commands.append(Drain(gone.id, Reason(Why.FLEET_LARGE)))
            commands += self._drain(gone, now, is_retainable=True)
        elif gone is not None:
            commands += self._give_up_start(gone, Why.FLEET_LARGE, now)
        return [*commands, *self._end_sleepers(now)]

    def _start_missing(self, now: float) -> list[Command]:
        commands = self.sizing.grow(now)
        if commands:
            self._note_instances(now)
            commands += self._dispatch_queue(now)  # To those that were taken back.
        return commands

    def _give_up_late(self, now: float) -> list[Command]:
        """Those that have not started in time are lost; others start elsewhere."""
        commands: list[Command] = []
        for instance in self.sizing.late(now):
            waited = (("waited_s", now - instance.tenure.launched_s),)
            commands += [Stop(instance.id, Reason(Why.START_LATE, waited)), *self._lose(instance, now)]
        return commands

    def _give_up_start(self, instance: Instance, why: Why, now: float) -> list[Command]:
        instance.step(InstanceStep.STOP)
        del self.cluster.instances[instance.id]
        self._note_instances(now)
        return [*self.links.disconnect(instance.id), Stop(instance.id, Reason(why))]

    def _end_sleepers(self, now: float) -> list[Command]:
        """Those that sleep although none is to."""
        commands: list[Command] = []
        for instance in self.sizing.needless_sleepers():
            instance.step(InstanceStep.STOP)
            del self.cluster.instances[instance.id]
            commands.append(Stop(instance.id, Reason(Why.FLEET_LARGE)))
        if commands:
            self._note_instances(now)
        return commands

    def _change_role(self, change: RoleChange, now: float) -> list[Command]:
        """Relabel an instance. What has begun ends there; what only waits for what it does no more goes elsewhere."""
        instance = change.instance
        commands: list[Command] = [self._assign(instance, change.role, change.reason, now)]
        if change.role is Role.DECODE:
            commands += self._send_on(instance, now)
        if change.role is not Role.PREFILL:
            stay = [request for request in instance.standing.values() if request.id in self._handed_off]
            for request in stay:
                del self._handed_off[request.id]
            commands += [self.migrations.stay(request, Why.BALANCES) for request in stay]
        return commands

    def _send_on(self, instance: Instance, now: float) -> list[Command]:
        """Let what waits at an instance that prefills no more, and has not begun, be prefilled elsewhere."""
        commands: list[Command] = []
        for request in list(instance.waiting.values()):
            if request.state is not RequestState.WAITING or request.emitted_tokens or request.id in self.migrations:
                continue
            fronts = self._large_enough(request)
            others = [each for each in fronts if each is not instance and self.migrations.can(instance, each)]
            if not others:
                continue
            placement = self.policy.dispatcher.choose(request, others, self.cluster, now)
            if placement.instance in others:  # Some policies choose among all that there are, this one included.
                reason = placement.reason._replace(why=Why.BALANCES)
                commands.append(self.migrations.begin(request, placement.instance, reason, now))
        return commands

    # -- dispatch

    def _dispatch_queue(self, now: float) -> list[Command]:
        """Place everything that waits, in order; without a ready instance, nothing."""
        if not self.cluster.ready:
            return []
        return [self._dispatch(request, now) for request in list(self.cluster.queue)]

    def _dispatch(self, request: Request, now: float, *, avoided: Instance | None = None) -> Command:
        self.cluster.dequeue(request)
        instances = self._large_enough(request)
        instances = [each for each in instances if each is not avoided] or instances
        if not instances:
            tokens = request.prompt_tokens + request.max_tokens
            return self._refuse(request, Reason(Why.TOO_LARGE, (("tokens", float(tokens)),)))
        placement = self.policy.dispatcher.choose(request, instances, self.cluster, now)
        if not request.dispatches:
            self.cluster.observe_placement(request, placement.instance, is_late=placement.reason.why in _UNKEPT)
        if request.refuses_late and not request.dispatches and placement.reason.why in _UNKEPT:
            return self._refuse(
                request, Reason(Why.TOO_LATE, placement.reason.numbers), self._excess_s(request, placement, now)
            )
        request.step(RequestStep.DISPATCH)
        request.instance_id = placement.instance.id
        request.dispatches += 1
        request.tries += 1
        request.tokens_at_dispatch = request.emitted_tokens
        if request.dispatched_s is None:
            request.dispatched_s = now
            request.predicted_ttft_s = placement.ttft_s
            request.predicted_tpot_s = placement.tpot_s
        expected = self.cluster.expected_tokens(request)
        is_prefill = placement.instance.role is Role.PREFILL
        planned = request.context_tokens + 1 if is_prefill else request.prompt_tokens + expected
        placement.instance.place(request, planned, now)
        return Dispatch(request.id, placement.instance.id, placement.reason, expected)

    def _excess_s(self, request: Request, placement: Placement, now: float) -> float:
        """Predicted time until a request like this one could be served in time: what its queue is too long by.

        Where the queue is not what keeps it from that, until one of those that are here has ended.
        """
        if request.slo.ttft_s is not None and placement.ttft_s is not None and placement.ttft_s > request.slo.ttft_s:
            return placement.ttft_s - request.slo.ttft_s
        return self._vacancy.wait_s(now)

    def _large_enough(self, request: Request) -> list[Instance]:
        tokens = request.prompt_tokens + request.max_tokens
        if tokens <= self.cluster.tokens_max:
            return self.cluster.fronts
        return [i for i in self.cluster.fronts if i.capacity.blocks_for(tokens) <= i.capacity.blocks]

    # -- looking in

    def _instance_name(self, request: Request) -> str:
        if request.instance_id is None:
            return ""
        return self.cluster.instances[request.instance_id].name

    def check(self) -> None:
        """Every invariant; an AssertionError carries the state's repr."""
        self.cluster.check()
        self.sizing.check()
        self.migrations.check()
        for request_id, request in self._handed_off.items():
            assert request.state is RequestState.STANDING, f"handed off without standing still: {request!r}"
            assert request_id not in self.migrations, f"bound twice: {request!r}"
        for request in self.cluster.requests.values():
            assert (request.instance_id is not None) == (request.state in ON_INSTANCE), repr(request)
        if self.cluster.ready:
            assert not self.cluster.queue, f"work waits although an instance is ready: {self.cluster.queue!r}"
