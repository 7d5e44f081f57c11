"""A request's life as phases that follow one another, and its moves beside them; of those requests that are to be told.

hold: in the control plane's queue. queue: at an instance, its prefill not begun. prefill, decode: what they say. stand:
has its first token, and waits to go on. A move's phase is transfer, and lies across the others. Made of events and
commands alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hyperflexis.core import commands as core_commands
from hyperflexis.core import events as core_events
from hyperflexis.core.commands import Abandon, Command, Conclude, Dispatch, Hold, Migrate, Reason, Reject
from hyperflexis.core.events import Arrival, Event, InstanceLost, InstanceReported, RequestArrived, TransferFailed
from hyperflexis.core.slo import Verdict

Told = dict[str, str | int | float | bool]


@dataclass(slots=True)
class Phase:
    """From an instant to another."""

    name: str
    begin_s: float
    told: Told = field(default_factory=dict)
    end_s: float | None = None


class Moment(NamedTuple):
    """Something that took no time."""

    name: str
    at_s: float
    told: Told


@dataclass(slots=True)
class Life:
    """One request's."""

    arrival: RequestArrived
    arrived_s: float
    phases: list[Phase] = field(default_factory=list)
    """In order of their beginnings."""
    moments: list[Moment] = field(default_factory=list)
    ended_s: float | None = None
    ending: Reason | None = None
    is_refused: bool = False
    verdict: Verdict | None = None
    _now: Phase | None = None
    _transfer: Phase | None = None

    def enter(self, name: str, at_s: float, told: Told) -> None:
        """Be in another phase from then on."""
        if self._now is not None:
            at_s = max(at_s, self._now.begin_s)
            self._now.end_s = at_s
        self._now = Phase(name, at_s, told)
        self.phases.append(self._now)

    def move(self, now: float, told: Told) -> None:
        """Somebody is to take it."""
        self._transfer = Phase("transfer", now, told)
        self.phases.append(self._transfer)

    def end_move(self, target_id: int, now: float, told: Told) -> None:
        """It was taken there, or will not be. Ignored where it was to go somewhere else."""
        if self._transfer is not None and self._transfer.told["target"] == f"i{target_id}":
            self._transfer.end_s = now
            self._transfer.told.update(told)
            self._transfer = None

    def end(self, now: float, ending: Reason) -> None:
        self.ended_s, self.ending = now, ending
        if self._now is not None:
            self._now.end_s = now
        if self._transfer is not None:
            self._transfer.end_s = now
            self._transfer.told["outcome"] = "needless"
        self._now = self._transfer = None


class Lives:
    """An observer that keeps the lives of requests with certain names, and looks at nothing where there are none."""

    def __init__(self) -> None:
        self._wanted: dict[str, list[Life]] = {}
        self._live: dict[int, Life] = {}
        self._events: dict[type, Callable[..., None]] = {
            core_events.InstanceReported: self._reported,
            core_events.TransferFailed: self._transfer_failed,
            core_events.InstanceLost: self._lost,
        }
        self._commands: dict[type, Callable[..., None]] = {
            core_commands.Hold: _held,
            core_commands.Dispatch: _dispatched,
            core_commands.Migrate: _moving,
            core_commands.Abandon: _abandoned,
            core_commands.Reject: self._rejected,
            core_commands.Conclude: self._concluded,
        }

    def follow(self, name: str) -> list[Life]:
        """The lives of all requests of this name that arrive from now on, as they go on."""
        return self._wanted.setdefault(name, [])

    def forget(self, name: str) -> None:
        """No more of this name arrive."""
        for life in self._wanted.pop(name, ()):
            self._live.pop(life.arrival.request_id, None)

    def observe(self, now: float, event: Event, commands: Sequence[Command], name: str = "") -> None:
        """See one event and what it led to."""
        if name and type(event) is RequestArrived and (wanted := self._wanted.get(name)) is not None:
            life = self._live[event.request_id] = Life(event, now)
            wanted.append(life)
        if not self._live:
            return
        if (happen := self._events.get(type(event))) is not None:
            happen(event, now)
        for command in commands:
            decide = self._commands.get(type(command))
            if decide is not None and (life_of := self._live.get(command.request_id)) is not None:  # type: ignore[union-attr]
                decide(life_of, now, command)

    # -- what happens

    def _reported(self, event: InstanceReported, now: float) -> None:
        live, at = self._live, {"instance": f"i{event.instance_id}"}
        for number in event.resumed:
            if number in live:
                live[number].enter("decode", now, {**at})
        for arrival in event.arrived:
            if arrival.request_id in live:
                _arrived(live[arrival.request_id], event.instance_id, arrival, now)
        for number in event.preempted:
            if number in live:
                live[number].moments.append(Moment("preempted", now - event.duration_s, {**at}))
                live[number].enter("queue", now - event.duration_s, {**at})
        for number in event.started:
            if number in live:
                live[number].enter("prefill", now - event.duration_s, {**at})
        for number in event.began:
            if number in live:
                live[number].enter("decode", now, {**at})
        for number in event.suspended:
            if number in live:
                live[number].enter("stand", now, {**at})

    def _transfer_failed(self, event: TransferFailed, now: float) -> None:
        if event.request_id in self._live:
            self._live[event.request_id].end_move(event.target_id, now, {"outcome": "failed", "why": event.why})

    def _lost(self, event: InstanceLost, now: float) -> None:
        for life in self._live.values():
            life.end_move(event.instance_id, now, {"outcome": "target_lost"})

    def _rejected(self, life: Life, now: float, command: Reject) -> None:
        life.is_refused = True
        self._end(life, now, command.reason)

    def _concluded(self, life: Life, now: float, command: Conclude) -> None:
        life.verdict = command.verdict
        self._end(life, now, command.reason)

    def _end(self, life: Life, now: float, ending: Reason) -> None:
        life.end(now, ending)
        del self._live[life.arrival.request_id]


def _arrived(life: Life, target_id: int, arrival: Arrival, now: float) -> None:
    life.end_move(
        target_id,
        now,
        {"outcome": "done", "copied_tokens": arrival.copied_tokens, "copied_s": arrival.copied_s},
    )
    computes = arrival.computed_tokens < life.arrival.prompt_tokens + arrival.emitted_tokens - 1
    life.enter("queue" if computes or not arrival.emitted_tokens else "decode", now, {"instance": f"i{target_id}"})


def _held(life: Life, now: float, command: Hold) -> None:
    life.enter("hold", now, _told(command.reason))


def _dispatched(life: Life, now: float, command: Dispatch) -> None:
    instance = f"i{command.instance_id}"
    life.moments.append(Moment("dispatch", now, {"instance": instance, **_told(command.reason)}))
    life.enter("queue", now, {"instance": instance})


def _moving(life: Life, now: float, command: Migrate) -> None:
    ends = {"source": f"i{command.source_id}", "target": f"i{command.target_id}"}
    life.move(now, {**ends, "tokens": command.tokens, "recomputes": command.recomputes, **_told(command.reason)})


def _abandoned(life: Life, now: float, command: Abandon) -> None:
    life.enter("stand", now, _told(command.reason))


def _told(reason: Reason) -> Told:
    return {"reason": reason.why.value, **{name: float(number) for name, number in reason.numbers}}
