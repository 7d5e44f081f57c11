"""What if a recorded load had met another policy, or another fleet: jobs and instances for the simulator, of a journal.

What was asked for is known exactly: instants, lengths of prompts, promises, which blocks were alike. Instances are as
long over a step as they last said of themselves. How long an answer would have become that was refused or not awaited
nobody knows; the median of its class stands for it, or what there was of it if that is longer.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from hyperflexis.core.commands import AssignRole, Command, Conclude, Launch, Reject, Resize, Sleep, Stop, Wake, Why
from hyperflexis.core.events import (
    InstanceLost,
    InstanceReady,
    InstanceReported,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
)
from hyperflexis.core.fleet import Bill
from hyperflexis.core.instance import Capacity, StartSource
from hyperflexis.core.latency import LatencyModel
from hyperflexis.core.slo import ServiceClass
from hyperflexis.journal.entries import Entry, Gap
from hyperflexis.journal.header import Header
from hyperflexis.sim.job import Job
from hyperflexis.sim.outcome import Outcome, Usage
from hyperflexis.sim.simulation import Rows
from hyperflexis.sim.startup import StartPhases, StartupSpec


@dataclass(slots=True)
class Asked:
    """One request as it was recorded."""

    row: int
    arrived_s: float
    event: RequestArrived
    emitted: int = 0
    """Tokens of its answer, as far as is known."""
    is_whole: bool = False
    """Whether that is all of it."""


@dataclass(slots=True)
class Record:
    """What a journal says, in the simulator's terms."""

    header: Header
    begun_s: float = 0.0
    """The first instant of it."""
    asked: list[Asked] = field(default_factory=list)
    capacity: Capacity | None = None
    latency: LatencyModel | None = None
    starts_s: dict[StartSource, list[float]] = field(default_factory=lambda: defaultdict(list))
    events_missing: int = 0
    outcome: Outcome | None = None

    def startup(self) -> StartupSpec:
        """What starts took on average, by source."""
        means = {source: statistics.fmean(each) for source, each in self.starts_s.items()}
        phases = {source: StartPhases(boot_s=mean) for source, mean in means.items()}
        return StartupSpec(phases) if phases else StartupSpec.constant(0.0)


def read(header: Header, entries: Iterable[Entry]) -> Record:
    """A record of all entries."""
    reader = _Reader(header)
    for entry in entries:
        reader.hear(entry)
    return reader.end()


class _Reader:
    """Hears entry after entry."""

    def __init__(self, header: Header) -> None:
        self._record = Record(header)
        self._begun = False
        self._names = list(dict.fromkeys([each.name for each in header.classes]))
        self._live: dict[int, Asked] = {}
        self._ends: list[tuple[int, Conclude | Reject]] = []
        self._launched: dict[int, tuple[float, StartSource]] = {}
        self._awake: set[int] = set()
        self._asleep: set[int] = set()
        self._bill = Bill(header.fleet.prices)
        self._first: tuple[float, float, float] | None = None
        self._last = (0.0, 0.0, 0.0)
        self._role_changes = self._resizes = 0

    def hear(self, entry: Entry) -> None:
        if not self._begun:
            self._begun, self._record.begun_s = True, entry.now
            self._standing(entry.now)
        event, now = entry.event, entry.now
        if isinstance(event, RequestArrived):
            self._arrive(event, now)
        elif isinstance(event, RequestFinished):
            self._note(event.request_id, event.emitted_tokens, is_whole=not event.failed)
        elif isinstance(event, RequestCancelled):
            self._note(event.request_id, event.emitted_tokens, is_whole=False)
        elif isinstance(event, InstanceReady):
            self._ready(event, now)
        elif isinstance(event, InstanceReported) and event.latency is not None:
            self._record.latency = event.latency
        elif isinstance(event, InstanceLost):
            self._count({event.instance_id}, None, now)
        elif isinstance(event, Gap):
            self._record.events_missing += event.events
        for command in entry.commands:
            self._decide(command, now)

    def end(self) -> Record:
        record = self._record
        names = tuple(dict.fromkeys([*self._names, *(each.event.service_class for each in record.asked)]))
        rows = Rows(names)
        for each in record.asked:
            rows.begin(each.event.service_class, each.arrived_s)
        for row, command in self._ends:
            if isinstance(command, Conclude):
                rows.end(row, command.verdict)
            else:
                rows.reject(row)
        begun = self._first or self._last
        usage = Usage(*(end - begin for end, begin in zip(self._last, begun, strict=True)))
        record.outcome = rows.outcome(usage, self._role_changes, self._resizes)
        return record

    def _standing(self, now: float) -> None:
        """Those that are there when what is left of a journal begins."""
        for _, ready in self._record.header.instances:
            self._record.capacity, self._record.latency = ready.capacity, ready.latency
            self._count({ready.instance_id}, self._awake, now)

    def _arrive(self, event: RequestArrived, now: float) -> None:
        if self._first is None:
            self._first = self._billed(now)
        self._live[event.request_id] = asked = Asked(len(self._record.asked), now, event)
        self._record.asked.append(asked)

    def _note(self, request_id: int, emitted: int, *, is_whole: bool) -> None:
        asked = self._live.get(request_id)
        if asked is not None:
            asked.emitted, asked.is_whole = max(asked.emitted, emitted), is_whole

    def _ready(self, event: InstanceReady, now: float) -> None:
        self._record.capacity, self._record.latency = event.capacity, event.latency
        launched = self._launched.pop(event.instance_id, None)
        if launched is not None:
            self._record.starts_s[launched[1]].append(now - launched[0])

    def _decide(self, command: Command, now: float) -> None:
        if isinstance(command, Launch | Wake):
            source = command.source if isinstance(command, Launch) else StartSource.SLEEPER
            self._launched[command.instance_id] = now, source
            self._count({command.instance_id}, self._awake, now)
        elif isinstance(command, Sleep):
            self._count({command.instance_id}, self._asleep, now)
        elif isinstance(command, Stop):
            self._count({command.instance_id}, None, now)
        elif isinstance(command, Conclude | Reject):
            self._conclude(command, now)
        elif isinstance(command, AssignRole):
            self._role_changes += command.version > 1
        elif isinstance(command, Resize):
            self._resizes += not command.is_proposal

    def _conclude(self, command: Conclude | Reject, now: float) -> None:
        self._last = self._billed(now)
        asked = self._live.pop(command.request_id, None)
        if asked is None:  # It arrived in a part that is gone.
            return
        self._ends.append((asked.row, command))
        if isinstance(command, Conclude) and command.verdict is not None:
            asked.emitted = max(asked.emitted, command.verdict.timeline.tokens)
            asked.is_whole = command.reason.why is Why.ENDED

    def _count(self, instances: set[int], among: set[int] | None, now: float) -> None:
        """These are among those that are awake, or asleep, or nowhere from now on."""
        self._awake -= instances
        self._asleep -= instances
        if among is not None:
            among |= instances
        self._bill.count(len(self._awake), len(self._asleep), now)

    def _billed(self, now: float) -> tuple[float, float, float]:
        return (*self._bill.seconds(now), self._bill.cost(now))


@dataclass(frozen=True, slots=True)
class Load:
    """What is simulated in place of what was recorded."""

    jobs: list[Job]
    classes: dict[str, ServiceClass]
    """By what jobs call them: one for each set of promises that was given under a name."""
    guessed: int
    """Answers whose length nobody knows."""
    left_out: int
    """Requests that no instance could hold."""


def load_of(record: Record, capacity: Capacity) -> Load:
    """Everything that was asked for, as jobs."""
    medians = _medians(record)
    tokens_max = capacity.blocks * capacity.block_tokens
    keys: dict[ServiceClass, str] = {}
    jobs: list[Job] = []
    guessed = 0
    for asked in record.asked:
        event = asked.event
        room = tokens_max - event.prompt_tokens
        if room < 1:
            continue
        promised = ServiceClass(event.service_class, event.slo, event.priority, event.refuses_late)
        key = keys.setdefault(promised, f"{event.service_class}#{len(keys)}")
        tokens = asked.emitted
        if not asked.is_whole:
            guessed += 1
            tokens = max(tokens, min(event.max_tokens, medians.get(event.service_class, 1)))
        tokens = min(room, max(1, tokens))
        at_s = asked.arrived_s - record.begun_s
        jobs.append(Job(at_s, event.prompt_tokens, tokens, key, event.block_hashes, max_tokens=event.max_tokens))
    classes = {key: promised for promised, key in keys.items()}
    return Load(jobs, classes, guessed, len(record.asked) - len(jobs))


def _medians(record: Record) -> dict[str, int]:
    lengths: dict[str, list[int]] = defaultdict(list)
    for asked in record.asked:
        if asked.is_whole:
            lengths[asked.event.service_class].append(asked.emitted)
    return {name: round(statistics.median(each)) for name, each in lengths.items()}


def by_name(outcome: Outcome, classes: dict[str, ServiceClass], names: tuple[str, ...]) -> Outcome:
    """An outcome whose classes are called as those of the journal."""
    known = tuple(dict.fromkeys([*names, *(each.name for each in classes.values())]))
    places = np.array([known.index(classes[key].name) for key in outcome.classes], dtype=np.int64)
    mapped = places[outcome.service_class] if outcome.service_class.size else outcome.service_class
    return replace(outcome, classes=known, service_class=mapped)
