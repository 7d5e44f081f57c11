"""What the rivals that change the size of the fleet share: all else is ours, so that only the scaling is compared.

Requests are dispatched, ordered and computed as under our policy. Running requests stay where they are when an instance
is to end, because none of these systems is published with such moves. Every rule is timed by the clock and not by how
often it is asked.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.control import Policy
from hyperflexis.core.due_work import WorkHistory
from hyperflexis.core.scaling import Scaler, fleet_state
from hyperflexis.core.sizing import STARTING, Sizing, Wanted
from hyperflexis.policies import hyperflexis

SHARE_MIN = 0.05
"""Of a pace, what is left for work beside the fixed part of a step at the least: where a promise is impossible."""


def policy(name: str, prefill_tokens_max: int, scaler: Scaler) -> Policy:
    """Ours but for the scaler."""
    return replace(hyperflexis.policy(prefill_tokens_max), name=name, scaler=scaler, relief=None)


def above(**numbers: float) -> None:
    """Check that tunings are positive.

    Raises:
        ValueError: one is not.
    """
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}")


def wanted(sizing: Sizing, count: int, **numbers: float) -> Wanted:
    """So many instances, and why."""
    return Wanted(sizing.split(max(0, count)), Reason(Why.DEMAND, tuple(numbers.items())))


def first(cluster: Cluster, sizing: Sizing) -> Wanted | None:
    """One, where there is none and somebody waits: no rival is published with an answer to that."""
    if not cluster.requests or sizing.wanted:
        return None
    return Wanted(sizing.split(1), Reason(Why.FIRST))


def is_open(sizing: Sizing) -> bool:
    """Whether a start is under way."""
    return sizing.count(STARTING) > 0


class Ticks:
    """Every so often."""

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self._last_s = -math.inf

    def due(self, now: float) -> bool:
        """Whether the next one has come; it is then taken."""
        if now < self._last_s + self.interval_s:
            return False
        self._last_s = now
        return True


class Spell:
    """How long something has been as it is; from the first look on, for nothing is known before."""

    def __init__(self) -> None:
        self._since_s = math.nan

    def begin(self, now: float) -> None:
        """It is so from now on."""
        self._since_s = now

    def seconds(self, now: float) -> float:
        if math.isnan(self._since_s):
            self._since_s = now
        return now - self._since_s


class Window:
    """Samples of the last while, with their mean; or of a sum that only grows, by how much it grew."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[float, float]] = deque()

    def add(self, value: float, now: float) -> None:
        """Instants come in order."""
        self._samples.append((now, value))
        while self._samples[0][0] < now - self._window_s:
            self._samples.popleft()

    @property
    def mean(self) -> float:
        return sum(value for _, value in self._samples) / len(self._samples)

    @property
    def growth(self) -> float:
        return self._samples[-1][1] - self._samples[0][1]


class Usage:
    """How many instances' time, or memory, what is here takes: 3.5 of 5 is a utilisation of .7."""

    def __init__(self, window_s: float) -> None:
        """Prefill is the mean of so long; decodes and memory are as they are now."""
        self._window_s = window_s
        self._work = WorkHistory()

    def instances(self, cluster: Cluster, now: float) -> float:
        """Not a whole number. There has to be a ready instance."""
        self._work.observe(cluster.due_work.by_term, now)
        state = fleet_state(cluster, cluster.ready[0])
        busy = (self._work.rate(self._window_s, now) + state.decode_share) / max(SHARE_MIN, 1 - state.fixed_share)
        return max(busy, state.kv_tokens / state.kv_capacity)


def late(cluster: Cluster, now: float) -> int:
    """Requests that wait for their first token, and will not have it in time where they are."""
    count = 0
    for instance in cluster.ready:
        done_s = now
        for deadline_s, work_s in instance.due_work():
            done_s += work_s
            count += done_s > deadline_s
    return count
