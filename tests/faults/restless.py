"""Decisions for no reason, within what may be decided: requests moved, roles changed and fleets resized by chance.

What a policy does in months of odd loads, in a second.
"""

from __future__ import annotations

import random
from dataclasses import replace

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.control import Policy
from hyperflexis.core.instance import Instance, Role
from hyperflexis.core.migration import Migrations
from hyperflexis.core.relief import MOVABLE, Move, Relief
from hyperflexis.core.request import Request
from hyperflexis.core.roles import RoleChange, RolePlanner
from hyperflexis.core.scaling import Scaler
from hyperflexis.core.sizing import Sizing, Wanted


class Whim:
    """Strikes in some share of all looks, until it is calmed."""

    def __init__(self, seed: int, share: float) -> None:
        self.chance = random.Random(seed)
        self._share = share

    def strikes(self) -> bool:
        return bool(self._share) and self.chance.random() < self._share

    def calm(self) -> None:
        self._share = 0.0


class RestlessRelief(Relief):
    """Moves what could move."""

    def __init__(self, whim: Whim) -> None:
        super().__init__()
        self._whim = whim

    def plan(self, cluster: Cluster, migrations: Migrations) -> list[Move]:
        moves = super().plan(cluster, migrations)
        moving = {move.request.id for move in moves}
        for request in cluster.requests.values():
            if request.id in moving or request.id in migrations or request.state not in MOVABLE:
                continue
            targets = self._targets(request, cluster, migrations) if self._whim.strikes() else []
            if targets:
                moves.append(Move(request, self._whim.chance.choice(targets), Reason(Why.RELIEVES)))
        return moves

    @staticmethod
    def _targets(request: Request, cluster: Cluster, migrations: Migrations) -> list[Instance]:
        assert request.instance_id is not None
        source = cluster.instances[request.instance_id]
        return [each for each in cluster.ready if each is not source and migrations.can(source, each)]


class RestlessPlanner:
    """Changes roles, but for the last instance that prefills and the last one that decodes."""

    def __init__(self, whim: Whim, planner: RolePlanner | None) -> None:
        self._whim = whim
        self._planner = planner

    def plan(self, cluster: Cluster, now: float) -> list[RoleChange]:
        changes = [] if self._planner is None else self._planner.plan(cluster, now)
        if changes or not cluster.ready or not self._whim.strikes():
            return changes
        instance, role = self._whim.chance.choice(cluster.ready), self._whim.chance.choice(list(Role))
        others = [each.role for each in cluster.ready if each is not instance]
        roles = {role, *others}
        is_whole = Role.MIXED in roles or roles == {Role.PREFILL, Role.DECODE}
        return [RoleChange(instance, role, Reason(Why.BALANCES))] if is_whole and role is not instance.role else []


class RestlessScaler:
    """Wants any number of instances that there may be."""

    def __init__(self, whim: Whim, scaler: Scaler | None) -> None:
        self._whim = whim
        self._scaler = scaler

    def plan(self, cluster: Cluster, sizing: Sizing, now: float) -> Wanted | None:
        wanted = None if self._scaler is None else self._scaler.plan(cluster, sizing, now)
        if not self._whim.strikes():
            return wanted
        chance, fleet = self._whim.chance, sizing.fleet
        counts = {role: chance.randint(each.min, each.max) for role, each in fleet.ranges.items()}
        return Wanted(counts, Reason(Why.DEMAND), chance.choice([0, fleet.asleep_max, fleet.asleep_max]))


def restless(policy: Policy, whim: Whim) -> Policy:
    """The same policy, and besides what it decides, whenever the whim strikes, anything else."""
    scaler = RestlessScaler(whim, policy.scaler)
    if policy.relief is None:
        return replace(policy, scaler=scaler)
    planner = RestlessPlanner(whim, policy.planner)
    return replace(policy, scaler=scaler, relief=RestlessRelief(whim), planner=planner)
