"""Demand since it was last another one: over as long a time as it has stayed the same, and at most a minute.

The last requests, as many as say something, are compared with all since demand last changed. If they ask for more or
less than chance explains, what was before them is forgotten. So a shift is seen within seconds where many requests
come, and a load that stays is known better and better.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from hyperflexis.core.demand import Demand, Ledger, alike, per_second, with_running
from hyperflexis.core.instance import Instance
from hyperflexis.core.request import Request

SAMPLE_S = 0.5
"""How often it is looked at."""
ENOUGH, FIRST = 100.0, 40.0
"""So many requests of one size say something; and so many at first, when there are not more yet."""
CHANCE = 3.0
"""Standard deviations that are still explained by it."""
SHORTEST_S, LONGEST_S = 2.0, 60.0


class Known(NamedTuple):
    """What is known of demand."""

    demand: Demand
    lately: Demand
    """Of the last requests alone."""
    requests: float
    """Of one size, by which the first is known."""


class Recent:
    """Looked at every `SAMPLE_S`."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Ledger]] = deque()
        self._since_s = -math.inf
        """When demand was last another one."""

    def is_due(self, now: float) -> bool:
        return not self._seen or now >= self._seen[-1][0] + SAMPLE_S

    def look(self, ledger: Ledger, running: Iterable[Request], instance: Instance, now: float) -> Known | None:
        """Say what is known, of instances like this one; None as long as it is too little."""
        ledger, seen = with_running(ledger, running), self._seen
        seen.append((now, ledger))
        while seen[0][0] < now - LONGEST_S:
            seen.popleft()
        self._since_s = max(self._since_s, seen[0][0])
        lately_s, before = self._last(ledger, now)
        enough = alike(ledger, before)
        if enough < FIRST:
            return None
        whole_s, whole_before = next(sample for sample in seen if sample[0] >= self._since_s)
        oldest = seen[0][1]
        lately = per_second(ledger, before, oldest, now - lately_s, instance)
        whole = per_second(ledger, whole_before, oldest, now - whole_s, instance)
        if _differ(lately, whole, CHANCE / math.sqrt(enough)):
            self._since_s = lately_s
            return Known(lately, lately, enough)
        return Known(whole, lately, alike(ledger, whole_before))

    def _last(self, ledger: Ledger, now: float) -> tuple[float, Ledger]:
        """The latest instant since when enough has come, or else the one since when demand is what it is."""
        for at_s, before in reversed(self._seen):
            is_enough = now - at_s >= SHORTEST_S and alike(ledger, before) >= ENOUGH
            if is_enough or at_s <= self._since_s:
                return at_s, before
        raise AssertionError("nothing is remembered")


class Lately:
    """Demand of the last so many seconds, with answers as long as they were within `LONGEST_S`."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, Ledger]] = deque()

    def look(self, ledger: Ledger, running: Iterable[Request], instance: Instance, now: float) -> Demand:
        """Say what it is, of instances like this one. As if nothing had come before it was first looked at."""
        ledger, seen = with_running(ledger, running), self._seen
        seen.append((now, ledger))
        while seen[0][0] < now - LONGEST_S:
            seen.popleft()
        before = next(each for at_s, each in seen if at_s >= now - self._window_s)
        return per_second(ledger, before, seen[0][1], self._window_s, instance)


def _differ(lately: Demand, whole: Demand, share: float) -> bool:
    """Whether prefills or decodes are more or less than they were, by more than a share."""
    pairs = ((lately.prefill_s, whole.prefill_s), (lately.decode_s, whole.decode_s))
    return any(abs(one - two) > share * two for one, two in pairs)
