"""Brings the fleet to the size that is wanted: who is started and from where, who is taken back, who goes.

More, by the quickest remedy first: an instance that drains is taken back, one that sleeps is woken, then one is started
with its weights from a live peer, from the host's page cache, from disk. A source whose start failed or hung is passed
over for a while, the longer the oftener. Fewer, one at a time: what has not started yet is given up, then the instance
that is emptied soonest drains; it sleeps or ends when it holds nothing.

Knows what there is and what is wanted, not why that is wanted (`scaling`), and not how an instance is emptied
(`relief`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Command, Launch, Reason, Resize, Retain, Wake, Why
from hyperflexis.core.fleet import Bill, FleetBounds, StartupTimes
from hyperflexis.core.instance import Instance, InstanceState, InstanceStep, Role, StartSource, Tenure

SHRINK_S = 0.5
"""Between one instance that goes and the next."""
AVOIDED_S = 10.0
"""How long a source is passed over after its first failure in a row; doubles with each further one."""
FAILURES_MAX = 8
"""Beyond which waits grow no more."""

SERVING = frozenset({InstanceState.STARTING, InstanceState.LINKING, InstanceState.READY})
"""Of those that serve, or will."""
STARTING = frozenset({InstanceState.STARTING, InstanceState.LINKING})
ASLEEP = frozenset({InstanceState.ASLEEP})
AWAKE = SERVING | {InstanceState.DRAINING}


class Wanted(NamedTuple):
    """How many instances there should be."""

    counts: Mapping[Role, int]
    """By the role with which they are launched. Roles that change afterwards change nothing of their sum."""
    reason: Reason
    asleep: int = 0


class Sizing:
    """Counts, starts and picks. Makes the commands that need nothing else; the control plane makes the others."""

    def __init__(self, fleet: FleetBounds, cluster: Cluster) -> None:
        self.fleet = fleet
        self.startup = StartupTimes(fleet.startup_s)
        self.bill = Bill(fleet.prices)
        self._cluster = cluster
        self._wanted: dict[Role, int] = {role: each.min for role, each in fleet.ranges.items()}
        self._reason = Reason(Why.FLEET_SHORT)
        self._asleep_wanted = 0
        self._proposed: dict[Role, int] = {}
        self._next_id = 0
        self._inherited = 0
        """Instances that were there when bounds became narrower, as far as they still are."""
        self._failed_launches = 0
        self._launch_at_s = 0.0
        self._shrink_at_s = -math.inf
        self._failures: Counter[StartSource] = Counter()
        self._avoided_until_s: dict[StartSource, float] = {}
        self._is_short = self.wanted > 0
        self._late_at_s: float | None = None
        """When the first of those that start will have taken too long."""
        self.is_at_rest = False
        """Whether there is nothing above the fewest, and nothing is missing: what `note` saw."""

    # -- what there is

    def note(self, now: float) -> None:
        """Look at what there is now. To be called whenever an instance has come, gone or changed its state."""
        awake = self.count(AWAKE)
        self.bill.count(awake, self.count(ASLEEP), now)
        self._is_short = self.missing() > 0
        self._inherited = min(self._inherited, awake)
        starting = [each for each in self._cluster.instances.values() if each.state in STARTING]
        first_s = min((each.tenure.launched_s for each in starting), default=math.inf)
        late_s = first_s + self.fleet.start_timeout_s
        self._late_at_s = late_s if late_s < math.inf else None
        self.is_at_rest = not self._is_short and awake <= self.fleet.instances_min

    def count(self, states: frozenset[InstanceState], role: Role | None = None) -> int:
        """Instances in these states, of one role or of all."""
        return sum(
            each.state in states and (role is None or each.role is role) for each in self._cluster.instances.values()
        )

    def have(self, role: Role) -> int:
        """Those that serve in a role, or will; all of them in a fleet that is launched in one role."""
        return self.count(SERVING, role if len(self._wanted) > 1 else None)

    @property
    def wanted(self) -> int:
        return sum(self._wanted.values())

    def wanted_of(self, role: Role) -> int:
        return self._wanted.get(role, 0)

    def missing(self) -> int:
        """How many may be started: what still drains takes up room."""
        return min(self.wanted - self.count(SERVING), self.fleet.instances_max - self.count(AWAKE))

    def startup_s(self) -> float:
        """Believed time to ready of the next start."""
        sleeps = self.count(ASLEEP) > 0
        source = StartSource.SLEEPER if sleeps else self._source(math.inf)[0]
        return self.startup.seconds(source)

    def start_s(self) -> float:
        """The same of an instance that does not sleep."""
        return self.startup.seconds(self._source(math.inf)[0])

    def is_startable(self) -> bool:
        """Whether the last starts have not all failed: with none that serves, launching is then given up."""
        return self._failed_launches < self.fleet.launch_attempts_max

    def _tries(self) -> bool:
        """As long as some serve, others go on being tried, ever more rarely."""
        return self.is_startable() or bool(self._cluster.ready)

    def next_wakeup(self) -> float | None:
        """When a start could be tried again, or has taken too long."""
        if self._is_short and self._tries():
            return self._launch_at_s if self._late_at_s is None else min(self._launch_at_s, self._late_at_s)
        return self._late_at_s

    # -- what is wanted

    def want(self, wanted: Wanted) -> list[Command]:
        """Take a decision over, within bounds and budget; says so if it changes anything."""
        counts = self._affordable(
            {role: each.clamp(wanted.counts.get(role, 0)) for role, each in self.fleet.ranges.items()}
        )
        commands: list[Command] = []
        known = self._proposed if self.fleet.is_dry else self._wanted
        for role, count in counts.items():
            if count != known.get(role):
                commands.append(Resize(role, self.have(role), count, wanted.reason, self.fleet.is_dry))
        if self.fleet.is_dry:
            self._proposed = counts
        else:
            self._wanted, self._reason = counts, wanted.reason
            self._asleep_wanted = min(wanted.asleep, self.fleet.affordable_asleep(self.wanted))
        return commands

    def change(self, fleet: FleetBounds, now: float) -> None:
        """Be within these bounds from now on; what is wanted is the fewest, and starts are tried anew."""
        self.fleet = fleet
        self._wanted = {role: each.min for role, each in fleet.ranges.items()}
        self._failed_launches = 0
        self._inherited = self.count(AWAKE)
        self.note(now)

    def _affordable(self, counts: dict[Role, int]) -> dict[Role, int]:
        """No more than the budget pays for; what is too much goes from the role that has most above its minimum."""
        ranges = self.fleet.ranges
        while sum(counts.values()) > self.fleet.affordable:
            most = max(counts, key=lambda role: counts[role] - ranges[role].min)
            counts[most] -= 1
        return counts

    def split(self, count: int) -> dict[Role, int]:
        """So many instances of a fleet that is launched in one role."""
        (role,) = self._wanted
        return {role: count}

    # -- more

    def grow(self, now: float) -> list[Command]:
        """Start what is missing, unless the last starts have failed and it is too early to try again."""
        commands: list[Command] = []
        while self.wanted > self.count(SERVING) and (drained := self._draining()) is not None:
            drained.step(InstanceStep.RETAIN)
            commands.append(Retain(drained.id, self._reason))
        while self.missing() > 0 and now >= self._launch_at_s and self._tries():
            commands.append(self._start(now))
        return commands

    def _draining(self) -> Instance | None:
        """The instance that could be taken back with most to do."""
        draining = [
            each
            for each in self._cluster.instances.values()
            if each.state is InstanceState.DRAINING and each.tenure.is_retainable
        ]
        return max(draining, key=lambda each: (each.planned_tokens, each.id), default=None)

    def _start(self, now: float) -> Command:
        numbers = (("have", float(self.count(SERVING))), ("want", float(self.wanted)))
        reason = Reason(self._reason.why, (*numbers, *self._reason.numbers))
        role = self._lacking_role()
        asleep = [each for each in self._cluster.instances.values() if each.state is InstanceState.ASLEEP]
        if asleep:
            woken = min(asleep, key=lambda each: (each.role is not role, each.id))
            woken.step(InstanceStep.WAKE)
            woken.role, woken.tenure = role, Tenure(now, StartSource.SLEEPER)
            return Wake(woken.id, role, reason)
        source, donor = self._source(now)
        instance = self._cluster.launch(self._next_id, role)
        self._next_id += 1
        instance.tenure = Tenure(now, source)
        return Launch(instance.id, role, reason, source, None if donor is None else donor.id)

    def _lacking_role(self) -> Role:
        """The first role of which there are fewer than there should be."""
        return next((role for role, count in self._wanted.items() if self.count(SERVING, role) < count), Role.MIXED)

    def _source(self, now: float) -> tuple[StartSource, Instance | None]:
        """The best that has not failed lately; the last one if all have."""
        donor = min(self._cluster.ready, key=_interference, default=None)
        for source in self.fleet.sources:
            is_avoided = now < self._avoided_until_s.get(source, -math.inf) and now < math.inf
            if not is_avoided and (source is not StartSource.PEER or donor is not None):
                return source, donor if source is StartSource.PEER else None
        return self.fleet.sources[-1], None

    # -- fewer

    def surplus(self, now: float) -> Instance | None:
        """The one that should go now, if any: it has not started yet, or else is emptied soonest."""
        if now < self._shrink_at_s:
            return None
        serving = [each for each in self._cluster.instances.values() if each.state in SERVING]
        if len(serving) <= self.wanted:
            return None
        self._shrink_at_s = now + SHRINK_S
        excess = self._excess(serving)
        return _last_to_be_ready(excess) or min(excess, key=_effort_to_empty)

    def _excess(self, serving: list[Instance]) -> list[Instance]:
        """Of these, those with a role of which there are too many; all, where all were launched in one."""
        if len(self._wanted) == 1:
            return serving
        counts = Counter(each.role for each in serving)
        return [each for each in serving if counts[each.role] > self._wanted.get(each.role, 0)]

    def may_sleep(self) -> bool:
        """Whether an instance that holds nothing is to sleep rather than end."""
        return self.count(ASLEEP) < self._asleep_wanted

    def needless_sleepers(self) -> list[Instance]:
        """Those that sleep beyond what is wanted asleep; the ones that began last."""
        asleep = [each for each in self._cluster.instances.values() if each.state is InstanceState.ASLEEP]
        return asleep[self._asleep_wanted :]

    # -- how starts end

    def on_ready(self, instance: Instance, now: float) -> None:
        """It could compute."""
        self._failed_launches = 0
        self._failures[instance.tenure.source] = 0
        if instance.tenure.launched_s > -math.inf:
            self.startup.observe(instance.tenure.source, now - instance.tenure.launched_s)

    def on_lost(self, instance: Instance, now: float) -> None:
        """Pause before the next launch where the last one came to nothing."""
        backoff_s = self.fleet.launch_backoff_s
        if instance.state is not InstanceState.STARTING:
            if now - instance.tenure.ready_s < backoff_s:
                self._launch_at_s = now + backoff_s
            return
        source = instance.tenure.source
        self._avoided_until_s[source] = now + AVOIDED_S * 2 ** min(self._failures[source], FAILURES_MAX)
        self._failures[source] += 1
        if source in self.fleet.sources[:-1]:  # There is another one, which may be tried at once.
            return
        if now >= self._launch_at_s:  # Those that were launched together and fail together count once.
            self._launch_at_s = now + backoff_s * 2 ** min(self._failed_launches, FAILURES_MAX)
            self._failed_launches += 1

    def late(self, now: float) -> list[Instance]:
        """Those whose start has taken too long."""
        limit_s = self.fleet.start_timeout_s
        return [
            each
            for each in self._cluster.instances.values()
            if each.state in STARTING and now >= each.tenure.launched_s + limit_s
        ]

    def check(self) -> None:
        """There are no more than there may be, and what was noted is so."""
        awake = self.count(AWAKE)
        allowed = max(self.fleet.instances_max, self._inherited)
        assert awake <= allowed, f"{awake} instances, and {allowed} are allowed"
        assert self._is_short == (self.missing() > 0), "what is missing has changed unnoted"


def _interference(instance: Instance) -> tuple[float, int]:
    """How much a copy from there would disturb."""
    return (instance.waiting_s() + len(instance.arriving), instance.id)


def _last_to_be_ready(instances: list[Instance]) -> Instance | None:
    starting = [each for each in instances if each.state in STARTING]
    return max(starting, key=lambda each: (each.tenure.launched_s, each.id), default=None)


def _effort_to_empty(instance: Instance) -> tuple[float, int]:
    """How much there is to move or to end; of equals the youngest goes."""
    return (instance.planned_tokens, -instance.id)
