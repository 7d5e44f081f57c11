"""Counts what the control plane was fed and what it decided: an observer of a driver, of a simulation, or of a journal.

Takes events and commands and nothing else, so all three give the same numbers. An event costs about a microsecond; a
token costs nothing, for no event is about one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from hyperflexis.core import commands as core_commands
from hyperflexis.core import events as core_events
from hyperflexis.core.commands import Command
from hyperflexis.core.events import Event, InstanceLost, InstanceReported, TransferFailed
from hyperflexis.core.fleet import Prices
from hyperflexis.core.slo import ServiceClass
from hyperflexis.telemetry.asked import Asked
from hyperflexis.telemetry.moved import Moved
from hyperflexis.telemetry.size import Size
from hyperflexis.telemetry.tally import Tally


class Decisions(Collector):
    """Everything that is counted of one control plane."""

    def __init__(
        self,
        classes: Mapping[str, ServiceClass],
        attainment_min: Mapping[str, float],
        prices: Prices,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`clock` is the driver's; without one, now is when the last event was, as in a journal."""
        self.asked = Asked(classes, attainment_min)
        self.moved = Moved()
        self.size = Size(prices)
        self._clock = clock
        self._now = 0.0
        self._preemptions = Tally(
            "hyperflexis_preemptions", "Requests that lost their KV to others and had it computed again.", ()
        )
        self._preemptions.add(by=0)
        self._events: dict[type, Callable[..., None]] = {
            core_events.RequestArrived: self.asked.arrived,
            core_events.InstanceReported: self._reported,
            core_events.InstanceReady: self.size.ready,
            core_events.InstanceDrained: self.size.drained,
            core_events.InstanceLost: self._lost,
            core_events.TransferFailed: self._transfer_failed,
        }
        self._commands: dict[type, Callable[..., None]] = {
            core_commands.Dispatch: self.asked.dispatched,
            core_commands.Hold: self.asked.held,
            core_commands.Reject: self.asked.rejected,
            core_commands.Conclude: self.asked.concluded,
            core_commands.Migrate: self._migrating,
            core_commands.Resize: self.size.resize,
            core_commands.Launch: self.size.launch,
            core_commands.Wake: self.size.wake,
            core_commands.AssignRole: self.size.assign,
            core_commands.Drain: self.size.drain,
            core_commands.Retain: self.size.retain,
            core_commands.Sleep: self.size.sleep,
            core_commands.Stop: self.size.stop,
        }

    def observe(self, now: float, event: Event, commands: Sequence[Command], name: str = "") -> None:
        """Count one event and what it led to."""
        self._now = now
        if (happen := self._events.get(type(event))) is not None:
            happen(event, now)
        for command in commands:
            if (decide := self._commands.get(type(command))) is not None:
                decide(command, now)

    def describe(self) -> Iterable[Metric]:
        """Without this a registry would call `collect` at registration."""
        return self.collect()

    def collect(self) -> Iterable[Metric]:
        """All that was counted, as of now."""
        now = self._now if self._clock is None else self._clock()
        yield from self.asked.families(now)
        yield from self.moved.families()
        yield from self.size.families(now)
        yield self._preemptions.family()

    def _reported(self, event: InstanceReported, now: float) -> None:
        if event.preempted:
            self._preemptions.add(by=len(event.preempted))
        for arrival in event.arrived:
            self.moved.arrived(event.instance_id, arrival, self.asked.live)

    def _migrating(self, command: core_commands.Migrate, now: float) -> None:
        self.moved.begun(command)

    def _transfer_failed(self, event: TransferFailed, now: float) -> None:
        self.moved.failed(event, self.asked.live)

    def _lost(self, event: InstanceLost, now: float) -> None:
        self.moved.lost(event)
        self.size.lost(event, now)
