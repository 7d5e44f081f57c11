"""The cheapest fleet that keeps a target, found with few trials: how many that do both, prefill apart, elastic bounds.

More instances keep no fewer promises: on that all of it rests, and bisection does the rest. Of instances that only
prefill and only decode the best division is climbed to, as what is short of one is plain to see in what was kept. Knows
fleets as numbers and trials as what was kept at what cost, nothing of how a trial is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

ROUNDING = 1e-9
"""By which a mean may be short of a share and still be it."""
GAIN_MIN = 1e-3
"""Twice the instances that gain less than this will gain no more, unless all are overloaded:"""
OVERLOADED = 0.5
LATENCY_SHARE = 0.01
"""then less than a half is kept, and what gains nothing in promises gains this much in median latency."""
SPARE = 1.5
"""Instances that an elastic fleet may have, over those that a fixed one needs, while its fewest are looked for."""

Row = Mapping[str, Any]
"""Of one simulation, as `simulate` tells it."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """How many instances, by what they do."""

    mixed: int = 0
    prefill: int = 0
    decode: int = 0
    mixed_max: int | None = None
    """Of a fleet whose size follows demand: `mixed` are its fewest."""

    @property
    def kind(self) -> str:
        return "elastic" if self.mixed_max is not None else "apart" if self.prefill else "mixed"

    @property
    def section(self) -> dict[str, Any]:
        """As a scenario has it."""
        if self.mixed_max is not None:
            return {"mixed": {"min": self.mixed, "max": self.mixed_max}}
        return {"prefill": self.prefill, "decode": self.decode} if self.prefill else {"mixed": self.mixed}

    def __str__(self) -> str:
        text = str(self.section)
        return text.replace("'", "")


@dataclass(frozen=True, slots=True)
class Trial:
    """What a fleet kept, with each seed."""

    fleet: Fleet
    rows: Sequence[Row]

    def by_class(self) -> dict[str, list[float]]:
        """What each class attained, seed by seed; without classes that had no request."""
        return shares(self.rows)

    @property
    def worst(self) -> float:
        """What the class attained that attained least, in the mean over the seeds."""
        return min((fmean(each) for each in self.by_class().values()), default=1.0)

    @property
    def cost_per_hour(self) -> float:
        return fmean(row["cost"] / row["sim_seconds"] * 3600 for row in self.rows)

    @property
    def instances(self) -> float:
        """On average."""
        return fmean(row["instance_seconds"] / row["sim_seconds"] for row in self.rows)

    @property
    def latency_s(self) -> float:
        return fmean(row["e2e_s"]["p50"] or 0.0 for row in self.rows)

    def keeps(self, target: float) -> bool:
        return self.worst >= target - ROUNDING


def shares(rows: Sequence[Row]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, share in row["attainment_by_class"].items():
            if share is not None:
                found.setdefault(name, []).append(share)
    return found


def can_keep(rows: Sequence[Row], target: float, seeds: int) -> bool:
    """Whether the mean could still reach it if every seed that is missing were perfect."""
    missing = seeds - len(rows)
    return all((sum(each) + missing) / (len(each) + missing) >= target - ROUNDING for each in shares(rows).values())


@dataclass(slots=True)
class Search:
    """Tries fleets, each once."""

    attempt: Callable[[Fleet], Trial]
    target: float
    instances_max: int
    trials: dict[Fleet, Trial] = field(default_factory=dict)

    def of(self, fleet: Fleet) -> Trial:
        if fleet not in self.trials:
            self.trials[fleet] = self.attempt(fleet)
        return self.trials[fleet]

    def best(self) -> Trial | None:
        """The cheapest of all that were tried and keep the target; of equals, the one that keeps more."""
        kept = [trial for trial in self.trials.values() if trial.keeps(self.target)]
        return min(kept, key=lambda trial: (round(trial.cost_per_hour, 9), -trial.worst), default=None)

    def mixed(self, start: int) -> int | None:
        """The fewest instances that do both; None if none of up to `instances_max` are enough."""
        return self._fewest(start, lambda count: self.of(Fleet(mixed=count)))

    def beside(self, count: int) -> None:
        """What one instance fewer and one more would be, whatever has been tried."""
        for other in (count - 1, count + 1):
            if 1 <= other <= self.instances_max:
                self.of(Fleet(mixed=other))

    def apart(self, count: int | None, prefill_share: float, start: int) -> int | None:
        """The fewest instances with prefill and decode apart, if they are fewer than `count`, where that is given."""
        if count is None:
            return self._fewest(max(2, start), lambda total: self._split(total, prefill_share))
        if count < 2:
            return None
        if not self._split(count, prefill_share).keeps(self.target):
            return None
        low = count
        while low > 2 and self._split(low - 1, prefill_share).keeps(self.target):
            low -= 1
        return low

    def elastic(self, count: int) -> Fleet | None:
        """The fewest that a fleet may fall to, and then the fewest that it may grow to, where `count` are enough.

        One is always there: what a fleet of none saves, and costs its first request, is another question.
        """
        roomy = min(self.instances_max, max(count + 1, math.ceil(SPARE * count)))
        if roomy <= 1 or not self.of(Fleet(mixed=count, mixed_max=roomy)).keeps(self.target):
            return None
        fewest = _bisect(0, count, lambda low: self.of(Fleet(mixed=low, mixed_max=roomy)).keeps(self.target))
        if fewest == count:
            return Fleet(mixed=count, mixed_max=roomy)
        most = _bisect(fewest, roomy, lambda high: self.of(Fleet(mixed=fewest, mixed_max=high)).keeps(self.target))
        return Fleet(mixed=fewest, mixed_max=most)

    def _fewest(self, start: int, at: Callable[[int], Trial]) -> int | None:
        """Doubles or halves from `start` until one count keeps the target and one does not, then halves between."""
        high = max(1, min(start, self.instances_max))
        trial = at(high)
        if trial.keeps(self.target):
            low = high
            while low > 1 and at(low // 2).keeps(self.target):
                low //= 2
            return low if low == 1 else _bisect(low // 2, low, lambda count: at(count).keeps(self.target))
        while not trial.keeps(self.target):
            low, before = high, trial
            high = min(2 * high, self.instances_max)
            if high == low:
                return None
            trial = at(high)
            if _is_in_vain(before, trial):
                return None
        return _bisect(low, high, lambda count: at(count).keeps(self.target))

    def _split(self, total: int, prefill_share: float) -> Trial:
        """The best division of so many instances, or the first that keeps the target."""
        if total < 2:
            return self.of(Fleet(mixed=total))
        at = max(1, min(total - 1, round(total * prefill_share)))
        best = self.of(Fleet(prefill=at, decode=total - at))
        for step in (1, -1):
            while not best.keeps(self.target) and 1 <= best.fleet.prefill + step < total:
                prefill = best.fleet.prefill + step
                trial = self.of(Fleet(prefill=prefill, decode=total - prefill))
                if trial.worst <= best.worst:
                    break
                best = trial
        return best


def _bisect(low: int, high: int, keeps: Callable[[int], bool]) -> int:
    """The least that keeps, between one that does not and one that does."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return high


def _is_in_vain(fewer: Trial, more: Trial) -> bool:
    """Whether instances are not what is missing: more of them make nothing better."""
    if more.worst - fewer.worst >= GAIN_MIN:
        return False
    return more.worst >= OVERLOADED or more.latency_s >= (1 - LATENCY_SHARE) * fewer.latency_s


def frontier(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other one beats: as much kept for less, or more for as much. The cheapest first."""
    found: list[Trial] = []
    for trial in sorted(trials, key=lambda each: (each.cost_per_hour, -each.worst)):
        if not found or trial.worst > found[-1].worst:
            found.append(trial)
    return found
