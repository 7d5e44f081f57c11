"""The live driver: a clock, instances and clients on one side, the control plane on the other.

Stays dumb. It turns what happens into events, performs commands in order, and holds what the core must not know: the
tokens. Because it holds prompt and emitted tokens of every live request, a lost instance costs its clients time and
nothing else: the core dispatches again, the new instance is told what was emitted, and the stream goes on.

Everything runs on the event loop's thread; nothing here blocks or awaits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict

import msgspec

from hyperflexis.adapters.contract import Adapter
from hyperflexis.core.commands import (
    Abandon,
    AssignRole,
    Cancel,
    Command,
    Conclude,
    Dispatch,
    Drain,
    Hold,
    Launch,
    Link,
    Migrate,
    Reject,
    Resize,
    Retain,
    Sleep,
    Stay,
    Stop,
    Unlink,
    Wake,
    Why,
)
from hyperflexis.core.control import ControlPlane
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
from hyperflexis.core.instance import Capacity
from hyperflexis.core.latency import LatencyModel, StepShape
from hyperflexis.core.prefix import block_hashes
from hyperflexis.core.slo import Slo
from hyperflexis.runtime.registry import InstanceStatus, Launcher, Member, status_of
from hyperflexis.runtime.streams import End, EndReason, Sink, Stream
from hyperflexis.wire import messages as wire
from hyperflexis.wire.messages import FinishReason, GenerateRequest, News, Order, Ready, StepReport

log = logging.getLogger(__name__)

_END_REASONS: dict[FinishReason, EndReason] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.FAILED: "failed",
}
_REJECTED = {Why.QUEUE_FULL: 429, Why.DISPLACED: 429, Why.TOO_LATE: 429, Why.TOO_LARGE: 400}
"""HTTP status of a refusal; what is not here is for want of instances, 503."""
_SHUT_DOWN = End("failed", message="the server is shutting down", status=503)


Observer = Callable[[float, Event, list[Command], str], None]
"""Sees every event with the commands that it led to, and what the client calls a request that arrives."""


class Driver:
    """Runs one control plane in real (or, under a virtual loop, simulated) time."""

    def __init__(
        self,
        control: ControlPlane,
        launcher: Launcher,
        block_tokens: int,
        clock: Callable[[], float] = time.monotonic,
        observers: Sequence[Observer] = (),
    ) -> None:
        """`clock` gives seconds; under a virtual loop it is that loop's. (uvloop's own clock counts milliseconds.)"""
        self._control = control
        self._launcher = launcher
        self._block_tokens = block_tokens
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._observers = observers
        self._streams: dict[int, Stream] = {}
        self._members: dict[int, Member] = {}
        self._unlaunched: dict[int, asyncio.Handle] = {}
        """Instances that could not be launched, of which that is still to be told."""
        self._next_request_id = 0
        self._wakeup_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._commands: deque[Command] = deque()
        self._is_performing = False
        self._changed = asyncio.Event()
        self._performers: dict[type, Callable[..., None]] = {
            Dispatch: self._dispatch,
            Hold: self._hold,
            Reject: self._reject,
            Cancel: self._cancel,
            Conclude: self._conclude,
            Launch: self._launch,
            Migrate: self._migrate,
            Abandon: self._abandon,
            Stay: self._stay,
            AssignRole: self._assign_role,
            Link: self._link,
            Unlink: self._unlink,
            Resize: self._resize,
            Drain: self._drain,
            Retain: self._retain,
            Sleep: self._sleep,
            Wake: self._wake_instance,
            Stop: self._stop,
        }

    def start(self) -> None:
        """Begin: the control plane launches what the fleet lacks."""
        self._feed(Wakeup())

    def close(self) -> None:
        """End every instance at once. Streams that still live hear that they failed."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for member in self._members.values():
            member.adapter.close()
        self._members.clear()
        self._commands.clear()
        for request_id in list(self._streams):
            self._end(request_id, _SHUT_DOWN)

    # -- for clients

    def submit(self, request: GenerateRequest, sink: Sink) -> int:
        """Begin a request; returns a ticket. The sink hears nothing before this returns."""
        request_id = self._next_request_id
        self._next_request_id += 1
        arrival = self._arrival(request_id, request)
        self._streams[request_id] = Stream(request, sink, arrived_s=self._clock())
        if self._closed:
            self._loop.call_soon(self._end, request_id, _SHUT_DOWN)
        else:
            self._feed(arrival, request.name)
        return request_id

    def cancel(self, ticket: int) -> None:
        """Stop the work within one step. Unknown or ended tickets are ignored."""
        stream = self._streams.get(ticket)
        if stream is not None:
            stream.ended_as = "cancelled"
            self._feed(RequestCancelled(ticket, len(stream.emitted)))

    def drain(self, instance_id: int) -> None:
        """Take an instance out of service: what it has goes on elsewhere. Unknown ones are ignored."""
        self._feed(InstanceDrained(instance_id))

    def change_fleet(self, fleet: FleetBounds) -> None:
        """Have other numbers of instances from now on; those that are too many are to be removed one by one."""
        self._feed(FleetChanged(fleet))

    def remove(self, instance_id: int) -> None:
        """Take an instance away: one that serves is drained, one that only starts is given up. Unknown are ignored."""
        member = self._members.get(instance_id)
        if member is not None and member.state == "starting":
            member.adapter.close()
            self._on_lost(instance_id, "it was taken away")
        else:
            self.drain(instance_id)

    def adapter(self, instance_id: int) -> Adapter | None:
        """What an instance is spoken to by; None if there is no such instance."""
        member = self._members.get(instance_id)
        return None if member is None else member.adapter

    def instances(self) -> list[InstanceStatus]:
        return [status_of(f"i{instance_id}", member) for instance_id, member in self._members.items()]

    def is_ready(self) -> bool:
        """Whether requests may come: an instance takes them, or is started by the first where none has to be there."""
        sizing = self._control.sizing
        starts_on_demand = sizing.fleet.instances_min == 0 and sizing.is_startable()
        return not self._closed and (self.ready_instances > 0 or starts_on_demand)

    @property
    def ready_instances(self) -> int:
        return sum(member.is_ready for member in self._members.values())

    @property
    def live_requests(self) -> int:
        return len(self._streams)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds; it is looked at whenever an instance or request comes or goes."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def has_given_up(self) -> bool:
        """Whether those that are ready now are all there will be: none is starting, none will be tried any more."""
        return not self._control.sizing.is_startable() and self.ready_instances == len(self._members)

    def _arrival(self, request_id: int, request: GenerateRequest) -> RequestArrived:
        reuses_prefix = not request.sampling.prompt_logprobs
        hashes = block_hashes(request.prompt, self._block_tokens) if reuses_prefix else []
        return RequestArrived(
            request_id=request_id,
            prompt_tokens=len(request.prompt),
            max_tokens=request.max_tokens,
            slo=Slo(request.ttft_s, request.tpot_s, request.e2e_s),
            priority=request.priority,
            service_class=request.service_class,
            block_hashes=tuple(hashes),
            refuses_late=request.refuses_late,
            is_part=request.is_part,
        )

    # -- from instances

    def _on_ready(self, instance_id: int, ready: Ready) -> None:
        member = self._members[instance_id]
        member.ready = ready
        member.adapter.configure(asdict(self._control.policy.rules))
        log.info("i%d is ready on %s: %d KV blocks", instance_id, ready.device, ready.blocks)
        self._announce(instance_id, member, ready)

    def _announce(self, instance_id: int, member: Member, ready: Ready) -> None:
        member.state = "ready"
        capacity = Capacity(ready.blocks, ready.block_tokens, ready.seqs_max, ready.kv_token_bytes)
        self._feed(InstanceReady(instance_id, capacity, LatencyModel(**ready.latency)))
        self._changed.set()

    def _on_report(self, instance_id: int, report: StepReport) -> None:
        member = self._members[instance_id]
        member.report = report
        member.note_steps(report)
        shape = StepShape(report.prefill_tokens, report.prefill_pairs, report.decode_seqs, report.context_tokens)
        latency = LatencyModel(**report.latency) if report.latency else None
        for request_id, offer in report.offers.items():
            if stream := self._streams.get(request_id):
                stream.offer = instance_id, offer
        for arrived in report.arrived:  # At once, for the core may send it back.
            self._order(arrived.source, wire.Taken(arrived.request))
        # The core hears of a first token before its client does, because a client may cancel on seeing it.
        if report.steps:
            self._feed(
                InstanceReported(
                    instance_id,
                    shape,
                    report.duration_s,
                    steps=report.steps,
                    started=report.started,
                    began=report.began,
                    preempted=report.preempted,
                    latency=latency,
                    resumed=report.resumed,
                    arrived=[Arrival(*msgspec.structs.astuple(each)) for each in report.arrived],
                    suspended=report.suspended,
                    rules_version=report.rules_version,
                )
            )
        self._hand_out(report)
        for request_id, reason in zip(report.finished, report.reasons, strict=True):
            emitted = len(stream.emitted) if (stream := self._streams.get(request_id)) else 0
            self._feed(RequestFinished(instance_id, request_id, emitted, failed=reason == FinishReason.FAILED))
        for request_id, was_refused in report.returned.items():
            emitted = len(stream.emitted) if (stream := self._streams.get(request_id)) else 0
            self._feed(RequestReturned(instance_id, request_id, emitted, was_refused))

    def _hand_out(self, report: StepReport) -> None:
        """Give each stream its tokens and remember how those that end have ended."""
        streams, logprobs = self._streams, report.logprobs
        for request_id, cached in zip(report.started, report.cached_tokens, strict=True):
            if (stream := streams.get(request_id)) and stream.first_token_s is None:
                stream.cached_tokens = cached
        for request_id, prompt_logprobs in report.prompt_logprobs.items():
            if (stream := streams.get(request_id)) and not stream.emitted:
                self._tell(request_id, stream.sink.on_prompt_logprobs, prompt_logprobs)
        for index, (request_id, token) in enumerate(zip(report.requests, report.tokens, strict=True)):
            stream = streams.get(request_id)
            if stream is None or stream.ended_as == "cancelled":
                continue
            if stream.first_token_s is None:
                stream.first_token_s = self._clock()
            stream.emitted.append(token)
            self._tell(request_id, stream.sink.on_tokens, (token,), (logprobs[index],) if index in logprobs else None)
        for request_id, reason in zip(report.finished, report.reasons, strict=True):
            if (stream := streams.get(request_id)) and stream.ended_as != "cancelled":
                stream.ended_as = _END_REASONS[FinishReason(reason)]
                stream.error = report.errors.get(request_id, "")

    def _on_news(self, instance_id: int, news: News) -> None:
        if isinstance(news, wire.ToPeer):
            self._order(news.peer, wire.FromPeer(instance_id, news.payload))
        elif isinstance(news, wire.Exposed):
            self._order(news.peer, wire.LinkTo(instance_id, news.version, news.descriptor))
        elif isinstance(news, wire.MoveFailed):
            self._feed(TransferFailed(news.request, instance_id, news.why))
        elif isinstance(news, wire.Asleep | wire.Awake):
            self._on_rest(instance_id, news)
        elif isinstance(news, wire.Linked):
            self._feed(Linked(news.peer, instance_id, news.version))
        elif isinstance(news, wire.LinkFailed):
            ends = (instance_id, news.peer) if news.is_lender else (news.peer, instance_id)
            self._feed(LinkFailed(*ends, news.version, news.why))

    def _on_rest(self, instance_id: int, news: wire.Asleep | wire.Awake) -> None:
        """An instance sleeps or is awake; or does not do as it was told, and says why."""
        member = self._members[instance_id]
        if news.why:
            log.warning("i%d: %s", instance_id, news.why)
        if member.state != "starting" or member.ready is None:
            return
        if isinstance(news, wire.Awake):
            self._announce(instance_id, member, member.ready)
        else:  # It was woken, and cannot.
            member.adapter.close()
            self._on_lost(instance_id, news.why)

    def _on_lost(self, instance_id: int, why: str) -> None:
        member = self._members.pop(instance_id, None)
        self._unlaunched.pop(instance_id, None)
        log.warning("i%d is lost: %s", instance_id, why)
        self._feed(InstanceLost(instance_id, why, 0 if member is None else member.untold_steps))
        self._changed.set()

    # -- the core, and what it decides

    def _feed(self, event: Event, name: str = "") -> None:
        if self._closed:
            return
        now, commands = self._clock(), list[Command]()
        try:
            commands = self._control.handle(event, now)
        finally:  # What the control plane failed at is to be seen, too.
            for observe in self._observers:
                observe(now, event, commands, name)
        self._commands.extend(commands)
        # A sink that hears of an end may cancel another request, of which commands wait: each in its turn.
        if not self._is_performing:
            self._perform()
            self._rearm()

    def _perform(self) -> None:
        self._is_performing = True
        try:
            while self._commands:
                command = self._commands.popleft()
                self._performers[type(command)](command)
        finally:
            self._is_performing = False

    def _rearm(self) -> None:
        wakeup_s = self._control.next_wakeup()
        if self._closed or wakeup_s == self._wakeup_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wakeup_s = wakeup_s
        delay_s = None if wakeup_s is None else max(0.0, wakeup_s - self._clock())
        self._timer = None if delay_s is None else self._loop.call_later(delay_s, self._wake)

    def _wake(self) -> None:
        self._timer = self._wakeup_s = None
        self._feed(Wakeup())

    def _dispatch(self, command: Dispatch) -> None:
        stream = self._streams[command.request_id]
        stream.offer = None
        adapter = self._members[command.instance_id].adapter
        adapter.submit(stream.submission(command.request_id, command.expected_tokens, self._clock()))

    def _hold(self, command: Hold) -> None:
        log.debug("request %d is held: %s", command.request_id, command.reason)

    def _reject(self, command: Reject) -> None:
        status = _REJECTED.get(command.reason.why, 503)
        end = End("rejected", None, str(command.reason), status, command.retry_after_s)
        if command.reason.why is Why.DISPLACED:  # At once: its instance may have sent a token that is not read yet.
            self._end(command.request_id, end)
            return
        # Not at once: `submit` may not have returned yet, and the sink is promised silence until then.
        self._loop.call_soon(self._end, command.request_id, end)

    def _cancel(self, command: Cancel) -> None:
        member = self._members.get(command.instance_id)
        if member is not None:
            member.adapter.cancel(command.request_id)

    # -- moves and links, of which instances are told; both their ends may be gone by then

    def _migrate(self, command: Migrate) -> None:
        stream = self._streams[command.request_id]
        standing_at, offer = stream.offer or (None, b"")
        stream.offer = None  # It is true as long as it stands there; should it have to move again, its source is asked.
        order = wire.TakeIn(
            submit=stream.submission(command.request_id, command.expected_tokens, self._clock()),
            source=command.source_id,
            move=command.move,
            tokens=command.tokens,
            link_version=command.link_version,
            at_first_token=command.at_first_token,
            recomputes=command.recomputes,
            offer=offer if standing_at == command.source_id else b"",
        )
        self._order(command.target_id, order)

    def _abandon(self, command: Abandon) -> None:
        self._order(command.target_id, wire.Abandon(command.request_id))

    def _stay(self, command: Stay) -> None:
        stream = self._streams.get(command.request_id)
        if stream is not None and command.move is None:
            stream.offer = None
        self._order(command.instance_id, wire.Stay(command.request_id, command.move))

    def _assign_role(self, command: AssignRole) -> None:
        if member := self._members.get(command.instance_id):
            log.info("i%d is to be %s: %s", command.instance_id, command.role.value, command.reason)
            member.role = command.role
            member.adapter.configure(asdict(command.rules), command.version)

    def _link(self, command: Link) -> None:
        self._order(command.source_id, wire.ExposeKv(command.target_id, command.version))

    def _unlink(self, command: Unlink) -> None:
        self._order(command.target_id, wire.Unlink(command.source_id, command.version))
        self._order(command.source_id, wire.Reclaim(command.target_id, command.version))

    def _order(self, instance_id: int, order: Order) -> None:
        if member := self._members.get(instance_id):
            member.adapter.order(order)

    def _conclude(self, command: Conclude) -> None:
        stream = self._streams[command.request_id]
        status = 500 if stream.ended_as == "failed" else 200
        self._end(
            command.request_id,
            End(stream.ended_as, command.verdict, stream.error, status, cached_tokens=stream.cached_tokens),
        )

    def _end(self, request_id: int, end: End) -> None:
        stream = self._streams.pop(request_id, None)
        if stream is not None:
            self._tell(request_id, stream.sink.on_end, end)
            self._changed.set()

    def _tell(self, request_id: int, hear: Callable[..., None], *news: object) -> None:
        try:
            hear(*news)
        except Exception:  # Whatever is wrong with one client must not reach the streams of the others.
            log.exception("the client of request %d fails on its news; the request is cancelled", request_id)
            self.cancel(request_id)

    # -- the size of the fleet

    def _resize(self, command: Resize) -> None:
        verb = "should" if command.is_proposal else "is to"
        role = command.role.value
        log.info(
            "the fleet %s have %d %s instances (has %d): %s", verb, command.want, role, command.have, command.reason
        )

    def _drain(self, command: Drain) -> None:
        log.info("i%d drains: %s", command.instance_id, command.reason)
        self._members[command.instance_id].state = "draining"

    def _retain(self, command: Retain) -> None:
        log.info("i%d takes work again: %s", command.instance_id, command.reason)
        self._members[command.instance_id].state = "ready"

    def _sleep(self, command: Sleep) -> None:
        log.info("i%d is to sleep: %s", command.instance_id, command.reason)
        self._members[command.instance_id].state = "asleep"
        self._order(command.instance_id, wire.Sleep())
        self._changed.set()

    def _wake_instance(self, command: Wake) -> None:
        log.info("i%d is woken: %s", command.instance_id, command.reason)
        member = self._members[command.instance_id]
        member.state, member.role = "starting", command.role
        self._order(command.instance_id, wire.Wake())

    def _stop(self, command: Stop) -> None:
        log.info("i%d is stopped: %s", command.instance_id, command.reason)
        if (telling := self._unlaunched.pop(command.instance_id, None)) is not None:
            telling.cancel()
        else:
            self._members.pop(command.instance_id).adapter.close()
        self._changed.set()

    def _launch(self, command: Launch) -> None:
        log.info("i%d is launched: %s", command.instance_id, command.reason)
        listener = _InstanceListener(self, command.instance_id)
        try:
            adapter = self._launcher.launch(command.instance_id, command.role, listener)
        except OSError as error:
            why = f"it cannot be launched: {error}"
            self._unlaunched[command.instance_id] = self._loop.call_soon(listener.on_lost, why)
            return
        self._members[command.instance_id] = Member(adapter, command.role)


class _InstanceListener:
    """Adds to what an adapter says which instance said it."""

    def __init__(self, driver: Driver, instance_id: int) -> None:
        self._driver = driver
        self._instance_id = instance_id

    def on_ready(self, ready: Ready) -> None:
        if not self._driver._closed:
            self._driver._on_ready(self._instance_id, ready)

    def on_report(self, report: StepReport) -> None:
        if not self._driver._closed:
            self._driver._on_report(self._instance_id, report)

    def on_news(self, news: News) -> None:
        if not self._driver._closed:
            self._driver._on_news(self._instance_id, news)

    def on_lost(self, why: str) -> None:
        if not self._driver._closed:
            self._driver._on_lost(self._instance_id, why)
