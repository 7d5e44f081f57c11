"""The virtual driver: jobs and modelled instances on one side, the control plane on the other, a virtual clock between.

As dumb as the live driver: it turns what happens into events and performs commands, in order. Whatever is decided is
decided by the same control plane and the same step schedulers as live.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from hyperflexis.core.commands import (
    Abandon,
    AssignRole,
    Cancel,
    Command,
    Conclude,
    Dispatch,
    Launch,
    Link,
    Migrate,
    Reject,
    Resize,
    Sleep,
    Stay,
    Stop,
    Wake,
)
from hyperflexis.core.control import ControlPlane, Policy
from hyperflexis.core.events import Event, InstanceDrained, InstanceLost, InstanceReady, Linked, RequestArrived, Wakeup
from hyperflexis.core.fleet import SECONDS_PER_HOUR, FleetBounds
from hyperflexis.core.instance import Capacity, Role, StartSource
from hyperflexis.core.latency import LatencyModel
from hyperflexis.core.slo import ServiceClass, Verdict
from hyperflexis.core.step import Sequence
from hyperflexis.sim.errors import InputError
from hyperflexis.sim.fabric import Fabric, FabricSpec
from hyperflexis.sim.instance import SimInstance, in_ticks
from hyperflexis.sim.job import Job
from hyperflexis.sim.kernel import Kernel, to_ticks_s
from hyperflexis.sim.moves import Parting, Taking
from hyperflexis.sim.outcome import Outcome, Usage
from hyperflexis.sim.startup import Starts, StartupSpec

REQUESTS_MAX = 10_000_000
"""A simulation turns nobody away for want of memory."""
LOSSES = 1
"""What tells the chance of losses from that of an instance's steps."""


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """The instances of a simulation, all alike."""

    instances: int
    capacity: Capacity
    latency: LatencyModel
    """What budgets are made with."""
    truth: LatencyModel | None = None
    """What steps really take; None: just that."""
    noise: float = 0.0
    """Standard deviation of a step's time, as a share of it."""
    max_tokens: int = 2048
    """Longest answer that clients allow, unless the true one is longer."""
    losses_s: tuple[float, ...] = ()
    """Instants at which the oldest instance dies."""
    drains_s: tuple[float, ...] = ()
    """Instants at which the oldest instance is taken out of service; another takes its place."""
    startup: StartupSpec = field(default_factory=StartupSpec)
    bounds: FleetBounds | None = None
    """Of a fleet whose size changes, in place of `instances` and `roles`."""
    loss_per_hour: float = 0.0
    """How often each instance dies, at random, as instances do that are lent for less."""
    hanging_starts: frozenset[int] = frozenset()
    """Instances that never become ready."""
    runs_through: bool = True
    """Whether like steps are run through in one. The outcome is the same."""
    roles: tuple[Role, ...] = ()
    """Of the instances; mixed where nothing is said."""
    fabric: FabricSpec = field(default_factory=FabricSpec)
    """The network between them."""


@dataclass(slots=True)
class _Live:
    """What a driver remembers of a request that has not ended."""

    number: int
    job: Job
    service_class: ServiceClass
    arrived_s: float
    max_tokens: int
    emitted: int = 0
    """Tokens of its answer that its client had when its last instance died."""
    first_token_s: float | None = None
    """When its client had the first of these."""


Observer = Callable[[float, Event, list[Command]], None]
"""Sees every event with the commands that it led to."""


def simulate(
    jobs: Iterable[Job],
    classes: Mapping[str, ServiceClass],
    policy: Policy,
    fleet: FleetSpec,
    *,
    seed: int = 0,
    observe: Observer | None = None,
    checks: bool = False,
) -> Outcome:
    """Run all jobs, which must be in order of arrival, to their end.

    With `checks` every invariant is checked after every event, which is slow.

    Raises:
        InputError: a job is of an unknown class, longer than an instance can hold, or beyond the
            horizon.
    """
    simulation = Simulation(jobs, classes, policy, fleet, seed=seed, observe=observe, checks=checks)
    return simulation.run()


class Simulation:
    """One run. Made once, run once."""

    def __init__(
        self,
        jobs: Iterable[Job],
        classes: Mapping[str, ServiceClass],
        policy: Policy,
        fleet: FleetSpec,
        *,
        seed: int = 0,
        observe: Observer | None = None,
        checks: bool = False,
    ) -> None:
        bounds = fleet.bounds or FleetBounds.fixed(fleet.instances, fleet.roles)
        self.control = ControlPlane(policy, bounds, REQUESTS_MAX)
        self._jobs: Iterator[Job] = iter(jobs)
        self._classes = classes
        self._fleet = fleet
        self._seed = seed
        self._observe = observe
        self._checks = checks
        self._kernel = Kernel()
        self._fabric = Fabric(fleet.fabric)
        self._starts = Starts(fleet.startup, self._kernel)
        self._instances: dict[int, SimInstance] = {}
        self._role_changes = self._resizes = 0
        self._has_more = True
        """Whether the workload may not be at its end."""
        self._coming = 0
        """Arrivals that are known of and have not happened."""
        self._begun: tuple[float, float, float] | None = None
        """Seconds awake and asleep, and their cost, when the first request arrived."""
        self._ended = (0.0, 0.0, 0.0)
        """The same when the last one that has ended did."""
        self._live: dict[int, _Live] = {}
        self._rows = Rows(tuple(classes))
        self._wakeup_s: float | None = None
        self._performers: dict[type, Callable[..., None]] = {
            Dispatch: self._dispatch,
            Cancel: self._cancel,
            Conclude: self._conclude,
            Reject: self._reject,
            Launch: self._launch,
            Migrate: self._migrate,
            Abandon: self._abandon,
            Stay: self._stay,
            AssignRole: self._assign_role,
            Link: self._link,
            Resize: self._resize,
            Sleep: self._sleep,
            Wake: self._wake_up,
            Stop: self._stop,
        }

    def run(self) -> Outcome:
        """Go on until everything has ended."""
        self._arm(0.0)
        for instant_s in self._fleet.losses_s:
            self._kernel.at(to_ticks_s(instant_s), self._lose_oldest)
        for instant_s in self._fleet.drains_s:
            self._kernel.at(to_ticks_s(instant_s), self._drain_oldest)
        self._expect_next()
        self._kernel.run()
        assert not self._live, f"{len(self._live)} requests never ended"
        usage = Usage(*(end - begun for end, begun in zip(self._ended, self._begun or self._ended, strict=True)))
        return self._rows.outcome(usage, self._role_changes, self._resizes)

    def _billed(self, now: float) -> tuple[float, float, float]:
        bill = self.control.sizing.bill
        return (*bill.seconds(now), bill.cost(now))

    # -- arrivals

    def _expect_next(self) -> None:
        job = next(self._jobs, None)
        self._has_more = job is not None
        if job is not None:
            self._coming += 1
            at_s = max(self._kernel.now, to_ticks_s(job.at_s))
            self._kernel.at(at_s, lambda: self._arrive_and_expect(job))

    def _arrive_and_expect(self, job: Job) -> None:
        self._arrive(job)
        self._expect_next()

    def _arrive(self, job: Job) -> None:
        service_class = self._classes.get(job.service_class)
        if service_class is None:
            raise InputError(f"there is no service class {job.service_class!r}")
        now, fleet = self._kernel.now, self._fleet
        self._coming -= 1
        if self._begun is None:
            self._begun = self._billed(now)
        max_tokens = max(job.max_tokens or fleet.max_tokens, job.output_tokens)
        room = fleet.capacity.blocks * fleet.capacity.block_tokens - job.prompt_tokens
        if job.output_tokens > room:
            tokens = job.prompt_tokens + job.output_tokens
            raise InputError(
                f"a request of {tokens} tokens cannot be held by an instance of {job.prompt_tokens + room}"
            )
        max_tokens = min(max_tokens, room)
        number = self._rows.begin(job.service_class, now)
        self._live[number] = _Live(number, job, service_class, now, max_tokens)
        event = RequestArrived(
            number,
            job.prompt_tokens,
            max_tokens,
            service_class.slo,
            service_class.priority,
            service_class.name,
            job.block_hashes,
            service_class.refuses_late,
        )
        self._feed(event)

    # -- the core, and what it decides

    def _feed(self, event: Event) -> None:
        now = self._kernel.now
        commands = self.control.handle(event, now)
        if self._observe is not None:
            self._observe(now, event, commands)
        if self._checks:
            self.control.check()
        for command in commands:
            performer = self._performers.get(type(command))
            if performer is not None:
                performer(command)
        # A fleet that changes size is thought about for ever; one that does not comes to rest by itself.
        is_over = self.control.sizing.fleet.is_elastic and not (self._live or self._coming or self._has_more)
        self._arm(None if is_over else self.control.next_wakeup())

    def _arm(self, wakeup_s: float | None) -> None:
        if wakeup_s != self._wakeup_s:
            self._wakeup_s = wakeup_s
            if wakeup_s is not None:
                self._kernel.at(max(self._kernel.now, to_ticks_s(wakeup_s)), partial(self._wake, wakeup_s))

    def _wake(self, wakeup_s: float) -> None:
        if wakeup_s == self._wakeup_s:  # Else another instant was asked for since, or none.
            self._wakeup_s = None
            self._feed(Wakeup())

    def _dispatch(self, command: Dispatch) -> None:
        live = self._live[command.request_id]
        parting = Parting(live.emitted, live.first_token_s)
        sequence = _sequence(live, command.expected_tokens, parting)
        self._instances[command.instance_id].submit(sequence, live.job.output_tokens)

    def _migrate(self, command: Migrate) -> None:
        live = self._live[command.request_id]
        source, target = self._instances[command.source_id], self._instances[command.target_id]
        job, make = live.job, partial(_sequence, live, command.expected_tokens)
        taking = Taking(source, make, job.output_tokens, job.block_hashes)
        target.moves.take(command, job.prompt_tokens + live.max_tokens, taking)

    def _abandon(self, command: Abandon) -> None:
        self._instances[command.target_id].moves.abandon(command.request_id)

    def _stay(self, command: Stay) -> None:
        self._instances[command.instance_id].moves.stay(command.request_id, command.move)

    def _assign_role(self, command: AssignRole) -> None:
        self._instances[command.instance_id].configure(command.rules, command.version)
        self._role_changes += command.version > 1

    def _stop(self, command: Stop) -> None:
        instance = self._instances.pop(command.instance_id, None)
        if instance is not None:  # Else it sleeps.
            instance.lose()

    def _link(self, command: Link) -> None:
        linked = Linked(command.source_id, command.target_id, command.version)
        up_s = to_ticks_s(self._kernel.now + self._fabric.spec.link_s)
        self._kernel.at(up_s, partial(self._feed, linked))

    def _cancel(self, command: Cancel) -> None:
        instance = self._instances.get(command.instance_id)
        if instance is not None:
            instance.cancel(command.request_id)

    def _conclude(self, command: Conclude) -> None:
        self._rows.end(command.request_id, command.verdict)
        self._end(command.request_id)

    def _reject(self, command: Reject) -> None:
        self._rows.reject(command.request_id)
        self._end(command.request_id)

    def _end(self, request_id: int) -> None:
        self._ended = self._billed(self._kernel.now)
        job = self._live.pop(request_id).job
        following = job.follow_up(self._kernel.now) if job.follow_up is not None else None
        if following is not None:
            self._coming += 1
            at_s = max(self._kernel.now, to_ticks_s(following.at_s))
            self._kernel.at(at_s, lambda: self._arrive(following))

    def _resize(self, command: Resize) -> None:
        self._resizes += not command.is_proposal

    def _launch(self, command: Launch) -> None:
        self._start(command.instance_id, command.source, command.donor_id)

    def _wake_up(self, command: Wake) -> None:
        self._start(command.instance_id, StartSource.SLEEPER, None)

    def _sleep(self, command: Sleep) -> None:
        self._instances.pop(command.instance_id).lose()

    def _start(self, instance_id: int, source: StartSource, donor_id: int | None) -> None:
        instance = self._instances[instance_id] = self._made(instance_id)
        self._starts.begin(source, donor_id, partial(self._announce, instance))

    def _made(self, instance_id: int) -> SimInstance:
        fleet = self._fleet
        return SimInstance(
            instance_id,
            self._kernel,
            self._feed,
            capacity=fleet.capacity,
            believed=fleet.latency,
            truth=fleet.truth or fleet.latency,
            rules=self.control.policy.rules,
            noise=fleet.noise,
            seed=self._seed,
            runs_through=fleet.runs_through,
            fabric=self._fabric,
        )

    def _announce(self, instance: SimInstance) -> None:
        if instance.is_lost or instance.id in self._fleet.hanging_starts:
            return
        self._feed(InstanceReady(instance.id, self._fleet.capacity, in_ticks(self._fleet.latency)))
        if self._fleet.loss_per_hour:
            chance = np.random.default_rng([self._seed, instance.id, LOSSES])
            at_s = self._kernel.now + chance.exponential(SECONDS_PER_HOUR / self._fleet.loss_per_hour)
            self._kernel.at(to_ticks_s(at_s), partial(self._lose, instance))

    def _drain_oldest(self) -> None:
        if self._instances:
            self._feed(InstanceDrained(min(self._instances)))

    def _lose_oldest(self) -> None:
        if self._instances:
            self._lose(self._instances[min(self._instances)])

    def _lose(self, instance: SimInstance) -> None:
        if self._instances.get(instance.id) is not instance:
            return
        for request_id, (emitted, first_token_s) in self._instances.pop(instance.id).lose().items():
            live = self._live.get(request_id)
            if live is not None:  # Else its client had left.
                live.emitted, live.first_token_s = emitted, first_token_s
        self._feed(InstanceLost(instance.id, "a planned fault", instance.untold_steps))


def _sequence(live: _Live, expected_tokens: int, parting: Parting) -> Sequence:
    """A request as an instance is told of it."""
    job = live.job
    return Sequence(
        live.number,
        [],
        job.prompt_tokens,
        live.max_tokens,
        live.service_class.slo,
        live.arrived_s,
        emitted=parting.emitted,
        hashes=list(job.block_hashes),
        priority=live.service_class.priority,
        first_token_s=parting.first_token_s,
        reuses_prefix=bool(job.block_hashes),
        expected_tokens=expected_tokens,
    )


@dataclass(slots=True)
class Rows:
    """The outcome in the making: a row per request, as columns."""

    classes: tuple[str, ...]
    service_class: array[int] = field(default_factory=lambda: array("i"))
    arrived_s: array[float] = field(default_factory=lambda: array("d"))
    ttft_s: array[float] = field(default_factory=lambda: array("d"))
    tpot_s: array[float] = field(default_factory=lambda: array("d"))
    e2e_s: array[float] = field(default_factory=lambda: array("d"))
    output_tokens: array[int] = field(default_factory=lambda: array("i"))
    state: array[int] = field(default_factory=lambda: array("b"))
    """Bits: attained, rejected, finished."""
    last_end_s: float = 0.0
    migrations: int = 0

    def begin(self, name: str, now: float) -> int:
        """A new row; returns its number."""
        self.service_class.append(self.classes.index(name))
        self.arrived_s.append(now)
        for column in (self.ttft_s, self.tpot_s, self.e2e_s):
            column.append(math.nan)
        self.output_tokens.append(0)
        self.state.append(0)
        return len(self.state) - 1

    def end(self, number: int, verdict: Verdict | None) -> None:
        if verdict is None:
            return
        timeline = verdict.timeline
        self.ttft_s[number] = timeline.ttft_s
        self.e2e_s[number] = timeline.e2e_s
        tpot_s = timeline.tpot_s
        if tpot_s is not None:
            self.tpot_s[number] = tpot_s
        self.output_tokens[number] = timeline.tokens
        self.state[number] = 4 | verdict.attained
        self.last_end_s = max(self.last_end_s, timeline.last_token_s)
        self.migrations += verdict.migrations

    def reject(self, number: int) -> None:
        self.state[number] = 2

    def outcome(self, usage: Usage, role_changes: int, resizes: int) -> Outcome:
        state = np.array(self.state, dtype=np.int64)
        sim_seconds = self.last_end_s - self.arrived_s[0] if self.arrived_s else 0.0
        return Outcome(
            classes=self.classes,
            service_class=np.array(self.service_class, dtype=np.int64),
            arrived_s=np.array(self.arrived_s),
            ttft_s=np.array(self.ttft_s),
            tpot_s=np.array(self.tpot_s),
            e2e_s=np.array(self.e2e_s),
            attained=(state & 1).astype(bool),
            rejected=(state & 2).astype(bool),
            finished=(state & 4).astype(bool),
            output_tokens=np.array(self.output_tokens, dtype=np.int64),
            usage=usage,
            migrations=self.migrations,
            role_changes=role_changes,
            scale_events=resizes,
            sim_seconds=sim_seconds,
        )
