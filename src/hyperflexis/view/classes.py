"""Service classes: which promises were kept lately, and how long things took against what was promised."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from hyperflexis.core.commands import Command, Conclude, Reject, Why
from hyperflexis.core.slo import ServiceClass, Verdict
from hyperflexis.view.snapshot import Times

WINDOW_S = 60.0
"""Attainment and times are those of requests that ended within it."""
ENDED_MAX = 2000
"""At most so many of each class are remembered, the latest."""
CLASSES_MAX = 64
OTHERS = "others"
"""Stands for classes beyond that."""


class Ended(NamedTuple):
    """A request that ended, or was refused."""

    at_s: float
    is_kept: bool
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None


class ClassRecord:
    """What became of the requests of one class."""

    def __init__(self, given: ServiceClass) -> None:
        self.given = given
        self.ended = self.kept = self.refused = 0
        self._window: deque[Ended] = deque()
        self._window_kept = 0

    def add(self, ended: Ended) -> None:
        self.ended += 1
        self.kept += ended.is_kept
        self._window.append(ended)
        self._window_kept += ended.is_kept
        if len(self._window) > ENDED_MAX:
            self._forget()

    def window(self, now: float) -> deque[Ended]:
        """Those that ended lately."""
        while self._window and self._window[0].at_s <= now - WINDOW_S:
            self._forget()
        return self._window

    def kept_of(self, now: float) -> tuple[int, int]:
        """How many of those were kept, of how many."""
        window = self.window(now)
        return self._window_kept, len(window)

    def _forget(self) -> None:
        self._window_kept -= self._window.popleft().is_kept

    @property
    def attained_total(self) -> float | None:
        return share(self.kept, self.ended)


class Classes:
    """All of them, in the order in which they were given or heard of."""

    def __init__(self, given: Mapping[str, ServiceClass]) -> None:
        self.records = {name: ClassRecord(each) for name, each in given.items()}

    def record(self, name: str) -> ClassRecord:
        """The class of that name; as many as there may be names, there is a bound."""
        record = self.records.get(name)
        if record is None:
            if len(self.records) >= CLASSES_MAX:
                name = OTHERS
            record = self.records.setdefault(name, ClassRecord(ServiceClass(name)))
        return record

    def hear(self, now: float, command: Command, service_class: str) -> None:
        """Follow what ends a request of that class."""
        if type(command) is Reject:
            record = self.record(service_class)
            record.refused += 1
            record.add(Ended(now, is_kept=False))
        elif type(command) is Conclude and command.reason.why is not Why.CLIENT_LEFT:
            self.record(service_class).add(_ended(now, command.verdict, command.reason.why))


def _ended(now: float, verdict: Verdict | None, why: Why) -> Ended:
    if verdict is None:
        return Ended(now, is_kept=False)
    times = verdict.timeline
    return Ended(now, verdict.attained and why is not Why.FAILED, times.ttft_s, times.tpot_s, times.e2e_s)


def share(kept: int, ended: int) -> float | None:
    """Attainment; None where nothing ended."""
    return kept / ended if ended else None


def times(values: list[float | None], target_s: float | None) -> Times:
    """The metric of several requests, some of which have none."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return Times(target_s)
    return Times(target_s, _quantile(known, 0.5), _quantile(known, 0.95))


def _quantile(ordered: list[float], share_below: float) -> float:
    """Linear between the two nearest, as `sim.summary` has it."""
    place = share_below * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
