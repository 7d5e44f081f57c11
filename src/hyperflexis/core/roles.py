"""How many instances prefill for others, and which: from demand in seconds per second against what instances can do.

An instance that decodes spends the fixed part a of each of its steps: at the strictest pace Q there, a share f = a / Q
of its time; and h seconds for every second of decodes where blocks, and not the pace, bound how many share a step. One
that only prefills does not. With n instances of which p prefill, d = n - p others, and demand of rho seconds of prefill
and L seconds of decodes (without fixed parts) per second, demand can grow x times before a promise breaks:

    left over by decodes   t = min(d (v - f) - x L,  d v - x (L + h L))
    prefills               x rho <= p u + e t,  with t >= 0

where nobody prefills for others, strict paces have instances of their own, and f is the mean over paces. What decodes
now has to find blocks at the others, and what is prefilled for them has to come through their ways in. The p that lets
demand grow most is best, but a change has to be worth it: it is made where demand has come near what is possible, for
more than could be an error of what is known of demand, and to no instance twice within `dwell_s`.

The terms are the findings' (a / Q decides; ratios cost more than disaggregation gains; ways into the decoding instances
are a cliff), the bound on growth as the objective is ours. Knows no requests one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hyperflexis.core import budget, loads
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.demand import Demand
from hyperflexis.core.instance import Instance, Role
from hyperflexis.core.recent import Recent


@dataclass(frozen=True, slots=True)
class RoleChange:
    """Give an instance another role."""

    instance: Instance
    role: Role
    reason: Reason


class RolePlanner(Protocol):
    """One of a policy's decisions."""

    def plan(self, cluster: Cluster, now: float) -> list[RoleChange]:
        """Say which roles are to change now. Asked every `control.TICK_S` while there is work."""


@dataclass(frozen=True, slots=True)
class Means:
    """What instances can do, all alike."""

    instances: int
    fixed_s: float
    """a."""
    pace_s: float
    """Q."""
    kv_tokens: float
    """Of one instance."""
    kv_bytes_s: float
    """Of one instance's way in."""
    kv_token_bytes: float
    held_tokens: float = 0.0
    """What decodes that are there now are believed to hold in the end."""


@dataclass(frozen=True, slots=True)
class PlannerRules:
    """How near to the edge, and how fast."""

    prefill_share: float = 0.85
    """u: of a prefilling instance's time that demand may take. Prefills have to bear bursts; decodes last, and do not
    see them."""
    together_share: float = 0.9
    """e: of what decodes leave over."""
    decode_share: float = 0.97
    """v: of a decoding instance's time."""
    kv_share: float = 0.9
    way_share: float = 0.5
    near: float = 1.15
    """Nothing changes while demand could grow by more than this."""
    gain: float = 1.03
    """Nor for less than this much more room to grow, and as many times"""
    error: float = 0.5
    """the relative error of what is known of demand."""
    dwell_s: float = 2.0


class GrowthPlanner:
    """The number of prefilling instances that lets demand grow most; the others are mixed."""

    def __init__(self, rules: PlannerRules | None = None) -> None:
        self._rules = rules or PlannerRules()
        self._recent = Recent()

    def plan(self, cluster: Cluster, now: float) -> list[RoleChange]:
        ready = cluster.ready
        decoding = [instance for instance in ready if instance.role is Role.DECODE]
        if decoding:  # Whoever decodes helps with prefills that would be late otherwise: that is the mixed role.
            return [RoleChange(instance, Role.MIXED, Reason(Why.BALANCES)) for instance in decoding]
        if len(ready) < 2 or not self._recent.is_due(now):
            return []
        known = self._recent.look(cluster.asked, cluster.requests.values(), ready[0], now)
        if known is None:
            return []
        means = _means(cluster)
        have = sum(1 for instance in ready if instance.role is Role.PREFILL)
        best, room, then = self._best(known.demand, means, have)
        gain = self._rules.gain + self._rules.error / math.sqrt(known.requests)
        if best == have or room > self._rules.near or then < gain * room:
            return []
        if growth(known.lately, means, best, self._rules) < growth(known.lately, means, have, self._rules):
            return []
        numbers = (("prefilling", float(have)), ("better", float(best)), ("room", room), ("then", then))
        role = Role.PREFILL if best > have else Role.MIXED
        chosen = self._chosen(ready, role, abs(best - have), now)
        return [RoleChange(each, role, Reason(Why.BALANCES, numbers)) for each in chosen]

    def _best(self, demand: Demand, means: Means, have: int) -> tuple[int, float, float]:
        """How many had best prefill, how much demand can grow now, and how much it could then."""
        room = [growth(demand, means, p, self._rules) for p in range(means.instances)] + [0.0]  # Nobody would decode.
        best = max(range(means.instances), key=lambda p: (room[p], -abs(p - have)))
        return best, room[have], room[best]

    def _chosen(self, ready: Sequence[Instance], role: Role, count: int, now: float) -> list[Instance]:
        """Those that have the least to do that the new role does not: up to so many."""
        free = [
            each
            for each in ready
            if each.role is not role
            and each.rules_in_force == each.rules_version
            and now - each.role_since_s >= self._rules.dwell_s
        ]
        return sorted(free, key=_ties_to_role)[:count]


def growth(demand: Demand, means: Means, prefilling: int, rules: PlannerRules) -> float:
    """By how much demand could grow if so many of the instances only prefilled."""
    others = means.instances - prefilling
    prefill_s, decode_s = max(demand.prefill_s, 1e-9), max(demand.decode_s, 1e-9)
    fixed_share = min(1.0, means.fixed_s / means.pace_s)
    if not prefilling:
        fixed_share = min(fixed_share, demand.fixed_s / (prefill_s + decode_s))
    held_s = means.fixed_s * demand.context_steps / (rules.kv_share * means.kv_tokens)
    room = math.inf
    for left, used_s in (
        (others * max(0.0, rules.decode_share - fixed_share), decode_s),
        (others * rules.decode_share, decode_s + held_s),
    ):
        able = prefilling * rules.prefill_share + rules.together_share * left
        room = min(room, left / used_s, able / (prefill_s + rules.together_share * used_s))
    if means.held_tokens:
        room = min(room, rules.kv_share * means.kv_tokens * others / means.held_tokens)
    moved = min(1.0, prefilling * rules.prefill_share / (room * prefill_s)) if room else 0.0
    moved_bytes = moved * demand.prompt_tokens * means.kv_token_bytes
    return min(room, rules.way_share * means.kv_bytes_s * others / moved_bytes) if moved_bytes else room


def _means(cluster: Cluster) -> Means:
    ready = cluster.ready
    first = ready[0]
    return Means(
        instances=len(ready),
        fixed_s=first.latency.model.decode_base_s,
        pace_s=budget.AIM * min(min(loads.pace_cap_s(each), each.strictest_pace_s()) for each in ready),
        kv_tokens=first.capacity.blocks * first.capacity.block_tokens,
        kv_bytes_s=cluster.network.bytes_s,
        kv_token_bytes=first.capacity.kv_token_bytes,
        held_tokens=sum(_held_tokens(each, cluster) for each in ready),
    )


def _held_tokens(instance: Instance, cluster: Cluster) -> int:
    """What it is believed to hold in the end; of one that prefills, what decodes there or is to decode elsewhere."""
    if instance.role is not Role.PREFILL:
        return instance.planned_tokens
    standing = sum(each.prompt_tokens + cluster.expected_tokens(each) for each in instance.standing.values())
    return standing + sum(each.planned_tokens for each in instance.decoding.values())


def _ties_to_role(instance: Instance) -> tuple[float, float, int]:
    """How much an instance has to do that belongs to the role which it is to leave, less what belongs to the other."""
    if instance.role is Role.PREFILL:
        return (-len(instance.decoding), instance.waiting_s(), instance.id)
    return (len(instance.decoding), instance.planned_tokens, instance.id)
