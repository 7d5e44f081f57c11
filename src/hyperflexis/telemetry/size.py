"""Metrics of the fleet: who is there and for how long, what that costs, and every decision to change it."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from hyperflexis.core.commands import AssignRole, Drain, Launch, Resize, Retain, Sleep, Stop, Wake
from hyperflexis.core.events import InstanceDrained, InstanceLost, InstanceReady
from hyperflexis.core.fleet import Prices
from hyperflexis.core.instance import InstanceState, Role, StartSource
from hyperflexis.telemetry.presence import Presence
from hyperflexis.telemetry.tally import Tally, spelled

_START_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0)


class Size:
    """All instances, and how many there are to be."""

    def __init__(self, prices: Prices) -> None:
        self.presence = Presence(prices)
        self._starts: dict[int, tuple[StartSource, float]] = {}
        """Of those that start: from where, and since when."""
        self._wanted: dict[Role, int] = {}
        self.resizes = Tally(
            "hyperflexis_scale_decisions",
            "Decisions that the fleet is to have another size; proposed ones are told, and not carried out.",
            ("role", "direction", "reason", "proposed"),
        )
        self.launches = Tally(
            "hyperflexis_launches",
            "Starts of instances, by where their weights were to come from; sleeper: one was woken.",
            ("source", "role", "reason"),
        )
        self.switches = Tally("hyperflexis_role_switches", "Instances given another role.", ("role", "reason"))
        self.drains = Tally(
            "hyperflexis_drains", "Instances told to take no new work, as the fleet was too large.", ("reason",)
        )
        self.stops = Tally("hyperflexis_stops", "Instances ended.", ("reason",))
        self.losses = Tally("hyperflexis_losses", "Instances lost, by the state that they were in.", ("state",))
        self._start_s = Histogram(
            "hyperflexis_start_seconds",
            "Time from the decision to start an instance until it could compute.",
            ("source",),
            buckets=_START_S,
            registry=None,
        )

    # -- what happens

    def ready(self, event: InstanceReady, now: float) -> None:
        if (start := self._starts.pop(event.instance_id, None)) is not None:
            source, since_s = start
            self._start_s.labels(spelled(source)).observe(now - since_s)
        self.presence.change(event.instance_id, now, state=InstanceState.READY)

    def lost(self, event: InstanceLost, now: float) -> None:
        self._starts.pop(event.instance_id, None)
        state = self.presence.end(event.instance_id, now)
        if state is not None:
            self.losses.add(state)

    def drained(self, event: InstanceDrained, now: float) -> None:
        """Somebody else's decision."""
        if self.presence.state(event.instance_id) is InstanceState.READY:
            self.presence.change(event.instance_id, now, state=InstanceState.DRAINING)

    # -- what is decided

    def resize(self, command: Resize, now: float) -> None:
        direction = "up" if command.want > command.have else "down"
        self.resizes.add(command.role, direction, command.reason.why, "true" if command.is_proposal else "false")
        if not command.is_proposal:
            self._wanted[command.role] = command.want

    def launch(self, command: Launch, now: float) -> None:
        self.launches.add(command.source, command.role, command.reason.why)
        self._starts[command.instance_id] = command.source, now
        self.presence.begin(command.instance_id, command.role, now)

    def wake(self, command: Wake, now: float) -> None:
        self.launches.add(StartSource.SLEEPER, command.role, command.reason.why)
        self._starts[command.instance_id] = StartSource.SLEEPER, now
        self.presence.change(command.instance_id, now, state=InstanceState.STARTING, role=command.role)

    def assign(self, command: AssignRole, now: float) -> None:
        if self.presence.role(command.instance_id) is not command.role:
            self.switches.add(command.role, command.reason.why)
            self.presence.change(command.instance_id, now, role=command.role)

    def drain(self, command: Drain, now: float) -> None:
        self.drains.add(command.reason.why)
        self.presence.change(command.instance_id, now, state=InstanceState.DRAINING)

    def retain(self, command: Retain, now: float) -> None:
        self.presence.change(command.instance_id, now, state=InstanceState.READY)

    def sleep(self, command: Sleep, now: float) -> None:
        self.presence.change(command.instance_id, now, state=InstanceState.ASLEEP)

    def stop(self, command: Stop, now: float) -> None:
        self.stops.add(command.reason.why)
        self._starts.pop(command.instance_id, None)
        self.presence.end(command.instance_id, now)

    # -- what is told

    def families(self, now: float) -> Iterator[Metric]:
        for tally in (self.resizes, self.launches, self.switches, self.drains, self.stops, self.losses):
            yield tally.family()
        yield from self._start_s.collect()
        wanted = GaugeMetricFamily(
            "hyperflexis_instances_wanted", "Instances that there are to be, once that was decided.", labels=("role",)
        )
        for role, count in self._wanted.items():
            wanted.add_metric([spelled(role)], count)
        yield wanted
        yield from self._present(now)

    def _present(self, now: float) -> Iterator[Metric]:
        labels = ("role", "state")
        there = GaugeMetricFamily("hyperflexis_instances", "Instances that there are.", labels=labels)
        seconds = CounterMetricFamily("hyperflexis_instance_seconds", "Time that instances were there.", labels=labels)
        counts = self.presence.counts()
        for standing, passed_s in self.presence.seconds(now).items():
            spelling = [spelled(each) for each in standing]
            there.add_metric(spelling, counts[standing])
            seconds.add_metric(spelling, passed_s)
        cost = CounterMetricFamily("hyperflexis_cost", "What instances have cost, in the currency of scaling.prices.")
        cost.add_metric((), self.presence.cost(now))
        yield from (there, seconds, cost)
