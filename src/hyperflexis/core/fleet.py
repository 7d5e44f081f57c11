"""What a fleet may be: bounds by role, prices and a budget, and where a new instance can come from.

Limits only. How many instances there should be now is `scaling`'s, which of them come and go `sizing`'s.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hyperflexis.core.instance import Role, StartSource

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Range:
    """Fewest and most instances.

    Raises:
        ValueError: fewer than none, or a range that is empty.
    """

    min: int
    max: int

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.max:
            raise ValueError(f"a range must be 0 <= min <= max, not {self.min} and {self.max}")

    def clamp(self, count: int) -> int:
        return max(self.min, min(self.max, count))


@dataclass(frozen=True, slots=True)
class Prices:
    """Of one instance for an hour, in whatever currency; counted from its launch to its end.

    Raises:
        ValueError: a price is negative, or not a number.
    """

    active_per_hour: float = 1.0
    """While it starts, serves and drains."""
    asleep_per_hour: float = 0.25

    def __post_init__(self) -> None:
        for name in ("active_per_hour", "asleep_per_hour"):
            price = getattr(self, name)
            if not (math.isfinite(price) and price >= 0):
                raise ValueError(f"{name} must be a price from 0, not {price!r}")


DEFAULT_STARTUP_S: Mapping[StartSource, float] = {
    StartSource.SLEEPER: 0.2,
    StartSource.PEER: 3.0,
    StartSource.CACHE: 20.0,
    StartSource.DISK: 40.0,
}
"""From the decision to the first token, of an 8B model on one accelerator: calibrated, see `startup`."""


@dataclass(frozen=True, slots=True)
class FleetBounds:
    """What there may be of instances, and how hard to try to have them.

    Raises:
        ValueError: no instance at all is allowed, the budget is no cost or does not pay for the fewest, or no share of
            a class may be late, or all of it.
    """

    ranges: Mapping[Role, Range]
    """By the role with which an instance is launched."""
    prices: Prices = field(default_factory=Prices)
    cost_per_hour_max: float = math.inf
    """What instances, awake and asleep, may cost together."""
    sources: Sequence[StartSource] = (StartSource.DISK,)
    """Where starts can take weights from, the best first."""
    startup_s: Mapping[StartSource, float] = field(default_factory=lambda: DEFAULT_STARTUP_S)
    """What a start is believed to take until some have been seen."""
    asleep_max: int = 0
    """Most instances that sleep instead of ending."""
    start_timeout_s: float = 600.0
    """A start that takes longer is given up."""
    launch_attempts_max: int = 5
    """Consecutive failures to start after which no more are tried."""
    launch_backoff_s: float = 1.0
    """Pause after the first failure, which doubles with each further one; and after a death sooner than this."""
    is_dry: bool = False
    """Whether changes of size are only proposed."""
    late_shares: Mapping[str, float] = field(default_factory=dict)
    """By service class, what share of its work may be late, as cost is weighed with; for others the policy says it."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("a fleet needs a source to start instances from")
        if not self.instances_max:
            raise ValueError("a fleet must be allowed at least one instance")
        for name, share in self.late_shares.items():
            if not 0 < share < 1:
                raise ValueError(f"the share of class {name} that may be late must be between 0 and 1, not {share!r}")
        if not self.cost_per_hour_max >= 0:  # Nor is what is no number.
            raise ValueError(f"cost_per_hour_max must be a cost from 0, not {self.cost_per_hour_max!r}")
        if self.instances_min > self.affordable:
            raise ValueError(
                f"{self.instances_min} instances cost {self.instances_min * self.prices.active_per_hour:g} per hour, "
                f"and {self.cost_per_hour_max:g} are allowed"
            )

    @classmethod
    def fixed(
        cls,
        instances: int,
        roles: Sequence[Role] = (),
        *,
        launch_attempts_max: int = 5,
        launch_backoff_s: float = 1.0,
        start_timeout_s: float = math.inf,
    ) -> FleetBounds:
        """So many, always. `roles` are those of the first ones; the others are mixed."""
        counts = Counter(roles)
        counts[Role.MIXED] += instances - len(roles)
        return cls(
            {role: Range(count, count) for role, count in counts.items() if count},
            launch_attempts_max=launch_attempts_max,
            launch_backoff_s=launch_backoff_s,
            start_timeout_s=start_timeout_s,
        )

    @property
    def instances_min(self) -> int:
        return sum(each.min for each in self.ranges.values())

    @property
    def instances_max(self) -> int:
        return sum(each.max for each in self.ranges.values())

    @property
    def is_elastic(self) -> bool:
        return self.instances_min < self.instances_max

    @property
    def affordable(self) -> int:
        """How many awake instances the budget pays for, if none sleeps; no more than there may be."""
        return _paid(self.cost_per_hour_max, self.prices.active_per_hour, self.instances_max)

    def affordable_asleep(self, awake: int) -> int:
        """How many may sleep beside so many that are awake; no more than there may be."""
        left = self.cost_per_hour_max - awake * self.prices.active_per_hour
        return _paid(left, self.prices.asleep_per_hour, self.asleep_max)


def _paid(budget: float, price: float, most: int) -> int:
    return math.floor(min(most, budget / price + 1e-9)) if price else most


class StartupTimes:
    """How long starts take, by source: what was believed at first, then what was seen."""

    WEIGHT = 0.5
    """Of each new start, in the mean."""

    def __init__(self, believed_s: Mapping[StartSource, float]) -> None:
        self._seconds = dict(believed_s)

    def observe(self, source: StartSource, seconds: float) -> None:
        known_s = self._seconds.get(source, seconds)
        self._seconds[source] = known_s + self.WEIGHT * (seconds - known_s)

    def seconds(self, source: StartSource) -> float:
        """Believed time to ready; infinite where nothing is known."""
        return self._seconds.get(source, math.inf)


class Bill:
    """Instance-seconds so far, awake and asleep, each from the launch of an instance to its end."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self._active = self._asleep = 0
        self._active_s = self._asleep_s = 0.0
        self._at_s = -math.inf

    def count(self, active: int, asleep: int, now: float) -> None:
        """So many there are from now on."""
        self._active_s, self._asleep_s = self.seconds(now)
        self._active, self._asleep, self._at_s = active, asleep, now

    def seconds(self, now: float) -> tuple[float, float]:
        """Awake, asleep."""
        passed_s = max(0.0, now - self._at_s) if self._at_s > -math.inf else 0.0
        return self._active_s + self._active * passed_s, self._asleep_s + self._asleep * passed_s

    def cost(self, now: float) -> float:
        active_s, asleep_s = self.seconds(now)
        prices = self._prices
        return (active_s * prices.active_per_hour + asleep_s * prices.asleep_per_hour) / SECONDS_PER_HOUR

    def cost_per_hour(self) -> float:
        """At the present size."""
        return self._active * self._prices.active_per_hour + self._asleep * self._prices.asleep_per_hour
