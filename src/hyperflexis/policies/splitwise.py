"""Splitwise (ISCA 2024): a pool that prefills, a pool that decodes, and a mixed pool that grows from either.

From the paper and its published simulator: a prompt joins the shortest queue of the prefill pool, in tokens; where
that is longer than a threshold, of the mixed pool; where that is too, the least busy instance of the decode pool
joins the mixed pool and takes it. Decodes go to the decode pool's instance with the most free memory; where none has
enough, to the mixed pool's; where none has, an instance of the prefill pool joins the mixed pool and takes them. A
lent instance returns to its own pool when the other pool's work there has ended. Promises are not looked at.

Ours: the order within an instance and its chunks; the threshold, which the paper leaves to a profile; the instance
that decodes is chosen when the prefill begins and not at arrival; KV is copied as it is made, as there.

Simplified: the prefill instance that joins the mixed pool is the one that has the request, so that nothing is copied;
and a mixed instance decodes what it has prefilled. A lent instance is relabelled within `control.TICK_S`, and takes
the other pool's work at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import Placement
from hyperflexis.core.instance import Instance, Role
from hyperflexis.core.request import Request, RequestState
from hyperflexis.core.roles import RoleChange
from hyperflexis.core.step import StepRules
from hyperflexis.policies import forecast, pools


class Loans:
    """To which pool each instance belongs, and which of them the other pool has."""

    def __init__(self) -> None:
        self.lent: set[int] = set()
        self._homes: dict[int, Role] = {}

    def home(self, instance: Instance) -> Role:
        """The role that it was launched with; this policy alone gives others."""
        return self._homes.setdefault(instance.id, instance.role)

    def pool(self, role: Role, instances: Sequence[Instance]) -> list[Instance]:
        """What is in a pool now."""
        return [each for each in instances if (Role.MIXED if each.id in self.lent else each.role) is role]

    def lend(self, instance: Instance) -> None:
        if self.home(instance) is not Role.MIXED:
            self.lent.add(instance.id)

    def forget(self, instances: dict[int, Instance]) -> None:
        """Keep those only that there still are."""
        self.lent &= instances.keys()
        self._homes = {number: role for number, role in self._homes.items() if number in instances}


class ShortestQueue:
    """The prefill pool's, then the mixed pool's, then the decode pool's."""

    def __init__(self, loans: Loans, queue_tokens: int) -> None:
        self._loans = loans
        self._queue_tokens = queue_tokens

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        ready = pools.large_enough(request, cluster.ready)
        for instance in ready:
            self._loans.home(instance)
        for role in (Role.PREFILL, Role.MIXED):
            pool = self._loans.pool(role, ready)
            if pool and not self._is_long(request, shortest := _shortest(pool)):
                return _placed(shortest)
        decoders = self._loans.pool(Role.DECODE, ready)
        if not decoders:
            return _placed(_shortest(ready))
        taken = _shortest(decoders)
        self._loans.lend(taken)
        return _placed(taken)

    def _is_long(self, request: Request, instance: Instance) -> bool:
        tokens = forecast.waiting_tokens(instance) + request.context_tokens
        return bool(instance.waiting) and tokens > self._queue_tokens


def _shortest(instances: Sequence[Instance]) -> Instance:
    return min(instances, key=lambda each: (forecast.waiting_tokens(each), each.requests, each.dispatches, each.id))


def _placed(instance: Instance) -> Placement:
    tokens = float(forecast.waiting_tokens(instance))
    return Placement(instance, Reason(Why.LEAST_LOADED, (("queue_tokens", tokens),)))


class MostMemory:
    """The decode pool's, then the mixed pool's, then where it is."""

    def __init__(self, loans: Loans) -> None:
        self._loans = loans

    def choose(
        self, request: Request, source: Instance, targets: Sequence[Instance], cluster: Cluster, now: float
    ) -> Placement | None:
        able = pools.with_room(request, targets, cluster)
        for role in (Role.DECODE, Role.MIXED):
            if pool := self._loans.pool(role, able):
                chosen = min(pool, key=lambda each: (each.planned_blocks / each.capacity.blocks, each.id))
                used = chosen.planned_blocks / chosen.capacity.blocks
                return Placement(chosen, Reason(Why.PREFILLED, (("memory_used", used),)))
        if request.state is not RequestState.STANDING:  # Its prefill runs: somebody may have room when it ends.
            return None
        self._loans.lend(source)
        return Placement(source, Reason(Why.BALANCES))


class Relabel:
    """Lent instances are mixed, and are given back without the other pool's work."""

    def __init__(self, loans: Loans) -> None:
        self._loans = loans

    def plan(self, cluster: Cluster, now: float) -> list[RoleChange]:
        loans = self._loans
        loans.forget(cluster.instances)
        changes = []
        for instance in cluster.ready:
            home = loans.home(instance)
            if instance.id in loans.lent and instance.role is home:
                changes.append(RoleChange(instance, Role.MIXED, Reason(Why.BALANCES)))
            elif instance.role is not home and not _has_work_of_others(instance, home):
                loans.lent.discard(instance.id)
                changes.append(RoleChange(instance, home, Reason(Why.BALANCES)))
        return changes


def _has_work_of_others(instance: Instance, home: Role) -> bool:
    if home is Role.DECODE:
        return bool(instance.waiting)
    return bool(instance.decoding or instance.standing or instance.arriving)


def policy(prefill_tokens_max: int, *, queue_tokens: int = 8192) -> Policy:
    """`queue_tokens` is how long a queue may be before another pool helps."""
    if queue_tokens < 0:
        raise ValueError(f"queue_tokens must be at least 0, not {queue_tokens}")
    loans, rules = Loans(), StepRules(prefill_tokens_max=prefill_tokens_max)
    dispatcher = ShortestQueue(loans, queue_tokens)
    return Policy("splitwise", dispatcher, rules, binder=MostMemory(loans), planner=Relabel(loans))
