"""The fleet as it is now: which instances there are, which requests are where, who is linked with whom.

Follows what the control plane is told and what it decides, with counts of its own that a test compares with the control
plane's. What it has never heard of, because the beginning of a journal is gone or events are missing, it leaves out.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from hyperflexis.core.commands import (
    AssignRole,
    Command,
    Conclude,
    Dispatch,
    Drain,
    Hold,
    Launch,
    Link,
    Reject,
    Resize,
    Retain,
    Sleep,
    Stop,
    Unlink,
    Wake,
)
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
    RequestReturned,
)
from hyperflexis.core.fleet import Bill, Prices
from hyperflexis.core.instance import Role
from hyperflexis.journal.entries import Gap
from hyperflexis.view.instances import GONE_SHOWN_S, SeenInstance
from hyperflexis.view.requests import LiveRequest, Place

FLOW_S = 5.0
"""So long a move counts as one that is under way."""
FLOWS_MAX = 2000


class Fleet:
    """Everything that lives."""

    def __init__(self, prices: Prices) -> None:
        self.instances: dict[int, SeenInstance] = {}
        self.requests: dict[int, LiveRequest] = {}
        self.wanted: dict[Role, int] = {}
        self.bill = Bill(prices)
        self.arrivals = 0
        self.tokens = 0
        """Of all answers, as far as steps tell."""
        self.missing = 0
        self._asked: dict[tuple[int, int], int] = {}
        """The version of each link, from source to target, that was asked for last."""
        self._peers: dict[int, set[int]] = {}
        """Targets of the links that are up, by source."""
        self._flows: deque[tuple[float, int, int]] = deque(maxlen=FLOWS_MAX)
        self._events: dict[type, Callable[[Any, float], None]] = {
            RequestArrived: self._arrived,
            RequestReturned: self._returned,
            InstanceReady: self._ready,
            InstanceReported: self._reported,
            InstanceDrained: self._drained,
            InstanceLost: self._lost,
            FleetChanged: self._changed,
            Linked: self._linked,
            LinkFailed: self._link_failed,
            Gap: self._gap,
        }
        self._commands: dict[type, Callable[[Any, float], None]] = {
            Dispatch: self._dispatched,
            Hold: self._held,
            Reject: self._ended,
            Conclude: self._ended,
            Launch: self._launched,
            AssignRole: self._assigned,
            Drain: self._drained,
            Retain: self._retained,
            Sleep: self._asleep,
            Wake: self._woken,
            Stop: self._stopped,
            Resize: self._resized,
            Link: self._link,
            Unlink: self._unlink,
        }

    def hear(self, now: float, event: Event | Gap, commands: Sequence[Command]) -> None:
        """Follow one entry."""
        hear = self._events.get(type(event))
        if hear is not None:
            hear(event, now)
        for command in commands:
            hear = self._commands.get(type(command))
            if hear is not None:
                hear(command, now)

    def links(self) -> list[tuple[int, int]]:
        """From whom to whom KV may go."""
        return [(source, target) for source in sorted(self._peers) for target in sorted(self._peers[source])]

    def links_of(self, instance_id: int) -> int:
        return len(self._peers.get(instance_id, ()))

    def flows(self, now: float) -> list[tuple[int, int, int]]:
        """From whom to whom how many requests went a moment ago."""
        counts: dict[tuple[int, int], int] = {}
        for at_s, source, target in reversed(self._flows):
            if at_s <= now - FLOW_S:
                break
            counts[source, target] = counts.get((source, target), 0) + 1
        return [(*ends, count) for ends, count in sorted(counts.items())]

    def wanted_total(self) -> int | None:
        """How many instances there are to be; None where none was said."""
        if not self.wanted:
            return None
        awake = Counter(i.role for i in self.instances.values() if not i.is_gone and i.state != "asleep")
        return sum(self.wanted.get(role, awake[role]) for role in Role)

    def forget_gone(self, now: float) -> None:
        """Those that went some time ago can be seen no more."""
        for instance in [each for each in self.instances.values() if each.is_gone]:
            if now > instance.since_s + GONE_SHOWN_S:
                del self.instances[instance.id]

    # -- requests

    def _arrived(self, event: RequestArrived, now: float) -> None:
        self.arrivals += 1
        self.requests[event.request_id] = LiveRequest(
            event.request_id, event.service_class, event.slo, now, event.prompt_tokens
        )

    def _dispatched(self, command: Dispatch, now: float) -> None:
        instance = self.instances.get(command.instance_id)
        request = self._leave(command.request_id)
        if instance is not None and request is not None:
            instance.take(request, Place.WAITING)

    def _held(self, command: Hold, now: float) -> None:
        self._leave(command.request_id)

    def _returned(self, event: RequestReturned, now: float) -> None:
        request = self.requests.get(event.request_id)
        if request is not None and request.instance_id == event.instance_id:
            self._leave(event.request_id)
            request.tokens_before = event.emitted_tokens

    def _ended(self, command: Reject | Conclude, now: float) -> None:
        self._leave(command.request_id)
        self.requests.pop(command.request_id, None)

    def _leave(self, request_id: int) -> LiveRequest | None:
        """It is at no instance from now on."""
        request = self.requests.get(request_id)
        if request is not None and request.instance_id is not None:
            self.instances[request.instance_id].release(request)
        return request

    # -- steps

    def _reported(self, event: InstanceReported, now: float) -> None:
        instance = self.instances.get(event.instance_id)
        if instance is None:
            return
        instance.report(event, now)
        self.tokens += event.steps * len(instance.decoding)
        instance.steps += event.steps - 1
        for request_id in event.resumed:
            self._move_within(instance, request_id, instance.standing, Place.DECODING)
        for arrival in event.arrived:
            self._moved(instance, arrival, now)
        for request_id in event.preempted:
            self._preempt(instance, request_id)
        instance.steps += 1
        for request_id in event.started:
            if request_id in instance.waiting:
                instance.waiting[request_id].has_kv = True
        for request_id in event.began:
            self._begin(instance, request_id, now)
        for request_id in event.suspended:
            self._move_within(instance, request_id, instance.decoding, Place.STANDING)

    def _begin(self, instance: SeenInstance, request_id: int, now: float) -> None:
        """Its prefill has ended, and brought a token."""
        request = instance.waiting.get(request_id)
        if request is None:
            return
        if request.first_token_s is None:
            request.first_token_s = now
        self.tokens += 1
        request.tokens_before += 1
        request.has_kv = True
        self._move_within(instance, request_id, instance.waiting, Place.DECODING)

    def _preempt(self, instance: SeenInstance, request_id: int) -> None:
        request = self.requests.get(request_id)
        if request is not None and request.instance_id == instance.id:
            instance.release(request)
            instance.take(request, Place.WAITING)

    def _move_within(
        self, instance: SeenInstance, request_id: int, source: dict[int, LiveRequest], place: Place
    ) -> None:
        request = source.get(request_id)
        if request is not None:
            request.tokens_before = int(request.emitted(instance.steps))
            del source[request_id]
            instance.take(request, place)

    def _moved(self, target: SeenInstance, arrival: Arrival, now: float) -> None:
        self._flows.append((now, arrival.source_id, target.id))
        request = self._leave(arrival.request_id)
        if request is None:
            return
        request.tokens_before = arrival.emitted_tokens
        has_all = arrival.computed_tokens >= request.prompt_tokens + arrival.emitted_tokens - 1
        request.has_kv = arrival.computed_tokens > 0
        target.take(request, Place.DECODING if has_all and request.first_token_s is not None else Place.WAITING)

    # -- instances

    def _launched(self, command: Launch, now: float) -> None:
        self.instances[command.instance_id] = SeenInstance(command.instance_id, command.role, now)
        self._count(now)

    def _ready(self, event: InstanceReady, now: float) -> None:
        instance = self.instances.get(event.instance_id)
        if instance is None:  # Its launch is in a part that is gone.
            instance = self.instances[event.instance_id] = SeenInstance(event.instance_id, Role.MIXED, now)
        instance.capacity = event.capacity
        instance.become("ready", now)
        self._count(now)

    def _assigned(self, command: AssignRole, now: float) -> None:
        if instance := self.instances.get(command.instance_id):
            instance.role = command.role

    def _drained(self, told: InstanceDrained | Drain, now: float) -> None:
        instance = self.instances.get(told.instance_id)
        if instance is not None and instance.state == "ready":
            instance.become("draining", now)

    def _retained(self, command: Retain, now: float) -> None:
        self._become(command.instance_id, "ready", now)

    def _asleep(self, command: Sleep, now: float) -> None:
        self._become(command.instance_id, "asleep", now)
        self._cut(command.instance_id)

    def _woken(self, command: Wake, now: float) -> None:
        self._become(command.instance_id, "starting", now)
        if instance := self.instances.get(command.instance_id):
            instance.role = command.role

    def _stopped(self, command: Stop, now: float) -> None:
        self._go(command.instance_id, "stopped", now)

    def _lost(self, event: InstanceLost, now: float) -> None:
        if instance := self.instances.get(event.instance_id):
            self.tokens += event.untold_steps * len(instance.decoding)
            instance.steps += event.untold_steps
        self._go(event.instance_id, "lost", now)

    def _go(self, instance_id: int, state: str, now: float) -> None:
        instance = self.instances.get(instance_id)
        if instance is None:
            return
        for request in (*instance.waiting.values(), *instance.decoding.values(), *instance.standing.values()):
            instance.release(request)
        self._cut(instance_id)
        self._become(instance_id, state, now)
        self.forget_gone(now)

    def _become(self, instance_id: int, state: str, now: float) -> None:
        if instance := self.instances.get(instance_id):
            instance.become(state, now)
            self._count(now)

    def _resized(self, command: Resize, now: float) -> None:
        if not command.is_proposal:
            self.wanted[command.role] = command.want

    def _changed(self, event: FleetChanged, now: float) -> None:
        self.wanted.clear()

    def _count(self, now: float) -> None:
        awake = sum(not each.is_gone and each.state != "asleep" for each in self.instances.values())
        asleep = sum(each.state == "asleep" for each in self.instances.values())
        self.bill.count(awake, asleep, now)

    # -- links, and what is missing

    def _link(self, command: Link, now: float) -> None:
        self._asked[command.source_id, command.target_id] = command.version
        self._peers.get(command.source_id, set()).discard(command.target_id)

    def _linked(self, event: Linked, now: float) -> None:
        if self._asked.get((event.source_id, event.target_id)) == event.version:
            self._peers.setdefault(event.source_id, set()).add(event.target_id)

    def _link_failed(self, event: LinkFailed, now: float) -> None:
        if self._asked.get((event.source_id, event.target_id)) == event.version:
            self._peers.get(event.source_id, set()).discard(event.target_id)

    def _unlink(self, command: Unlink, now: float) -> None:
        self._asked.pop((command.source_id, command.target_id), None)
        self._peers.get(command.source_id, set()).discard(command.target_id)

    def _cut(self, instance_id: int) -> None:
        self._peers.pop(instance_id, None)
        self._asked = {ends: version for ends, version in self._asked.items() if instance_id not in ends}
        for peers in self._peers.values():
            peers.discard(instance_id)

    def _gap(self, gap: Gap, now: float) -> None:
        """What lived may have ended meanwhile: only what is heard of from now on is known."""
        self.missing += gap.events
        self.requests.clear()
        for instance in self.instances.values():
            for held in (instance.waiting, instance.decoding, instance.standing):
                held.clear()
