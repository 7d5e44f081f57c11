"""How many instances prefill for others, and which: from demand in tokens per second against what instances can do.

An instance that also decodes spends a fixed part f = a / Q of its time on the fixed part a of its steps, Q being the
strictest pace there; one that only prefills does not. With n instances of which p prefill, demand of rho seconds of
prefill and L seconds of decodes (without fixed parts) per second can grow by the least of

    apart     p u / rho,  (n - p) (v - f) / L            prefills at p, decodes at the others
    together  (p u + e (n - p) (v - f)) / (rho + L)      as apart, and what p cannot prefill the others do

before a promise breaks; nothing is together unless p is busy. Room for KV and the ways that lead to the decoding
instances bound it too. The p that lets demand grow most is best, but a change has to be worth it: it is made where
demand has come near what is possible now, one instance at a time, and none of them twice within `dwell_s`.

The terms are the findings' (a / Q decides; ratios cost more than disaggregation gains; ways into the decoding instances
are a cliff), the bound on growth as the objective is ours. Knows no requests one by one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from hyperflexis.core import budget, loads
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.demand import Demand
from hyperflexis.core.instance import Instance, Role

KNOWN_S = 5.0
"""Demand has to be seen for so long before anything follows from it."""


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
    fixed_share: float
    """f."""
    kv_tokens: float
    """Of one instance."""
    kv_bytes_s: float
    """Of one instance's way in."""
    kv_token_bytes: float


@dataclass(frozen=True, slots=True)
class PlannerRules:
    """How near to the edge, and how fast."""

    prefill_share: float = 0.95
    """u: of a prefilling instance's time that demand may take."""
    decode_share: float = 0.92
    """v: of a decoding instance's."""
    together_share: float = 0.7
    """e: what is left of time that prefills and decodes share."""
    kv_share: float = 0.9
    way_share: float = 0.5
    near: float = 1.3
    """Nothing changes while demand could grow by more than this."""
    gain: float = 1.12
    """Nor for less than this much more room to grow."""
    dwell_s: float = 5.0
    windows_s: tuple[float, float] = (30.0, 60.0)
    """Demand is the larger of the means over these. What waits is not added: much of it may wait, and a ratio that
    follows queues starves the other role (measured: up to 20 points)."""


class GrowthPlanner:
    """The number of prefilling instances that lets demand grow most; the others are mixed."""

    def __init__(self, rules: PlannerRules | None = None) -> None:
        self._rules = rules or PlannerRules()
        self._seen: deque[tuple[float, Demand]] = deque()

    def plan(self, cluster: Cluster, now: float) -> list[RoleChange]:
        ready = cluster.ready
        decoding = [instance for instance in ready if instance.role is Role.DECODE]
        if decoding:  # Whoever decodes helps with prefills that would be late otherwise: that is the mixed role.
            return [RoleChange(instance, Role.MIXED, Reason(Why.BALANCES)) for instance in decoding]
        demand = self._demand(cluster, now)
        if len(ready) < 2 or demand is None:
            return []
        means = _means(cluster)
        have = sum(1 for instance in ready if instance.role is Role.PREFILL)
        room = [growth(demand, means, p, self._rules) for p in range(len(ready))] + [0.0]  # Nobody would decode.
        best = max(range(len(ready)), key=lambda p: (room[p], -abs(p - have)))
        if best == have or room[have] > self._rules.near or room[best] < self._rules.gain * room[have]:
            return []
        role = Role.PREFILL if best > have else Role.MIXED
        settled = [
            i for i in ready if i.rules_in_force == i.rules_version and now - i.role_since_s >= self._rules.dwell_s
        ]
        free = [i for i in settled if i.role is not role]
        if role is Role.MIXED:
            free = [i for i in free if i.role is Role.PREFILL]
        if not free:
            return []
        chosen = min(free, key=_ties_to_role)
        numbers = (("prefilling", float(have)), ("better", float(best)), ("room", room[have]), ("then", room[best]))
        return [RoleChange(chosen, role, Reason(Why.BALANCES, numbers))]

    def _demand(self, cluster: Cluster, now: float) -> Demand | None:
        """Per second; None as long as too little is known."""
        seen = self._seen
        seen.append((now, cluster.demand))
        while seen[0][0] < now - self._rules.windows_s[1]:
            seen.popleft()
        found = Demand()
        for window_s in self._rules.windows_s:
            since_s, before = next(entry for entry in seen if entry[0] >= now - window_s)
            if now - since_s < KNOWN_S:
                return None
            found = found.most(cluster.demand.rate(before, now - since_s))
        return found


def growth(demand: Demand, means: Means, prefilling: int, rules: PlannerRules) -> float:
    """By how much demand could grow if so many of the instances only prefilled."""
    others = means.instances - prefilling
    speed = others * max(0.0, rules.decode_share - means.fixed_share)
    prefill_s, decode_s = max(demand.prefill_s, 1e-9), max(demand.decode_s, 1e-9)
    apart = min(prefilling * rules.prefill_share / prefill_s, speed / decode_s)
    together = (prefilling * rules.prefill_share + rules.together_share * speed) / (prefill_s + decode_s)
    if together * prefill_s < prefilling * rules.prefill_share:
        together = speed / decode_s
    room = max(apart, together)
    if demand.kv_token_s:
        room = min(room, rules.kv_share * means.kv_tokens * others / demand.kv_token_s)
    moved = min(1.0, prefilling * rules.prefill_share / (room * prefill_s)) if room else 0.0
    moved_bytes = moved * demand.prompt_tokens * means.kv_token_bytes
    if prefilling and moved_bytes:
        room = min(room, rules.way_share * means.kv_bytes_s * others / moved_bytes)
    return room


def _means(cluster: Cluster) -> Means:
    ready = cluster.ready
    first = ready[0]
    paces_s = [min(loads.pace_cap_s(i), i.strictest_pace_s()) for i in ready]
    pace_s = budget.AIM * min(paces_s)
    return Means(
        instances=len(ready),
        fixed_share=min(1.0, first.latency.model.decode_base_s / pace_s),
        kv_tokens=first.capacity.blocks * first.capacity.block_tokens,
        kv_bytes_s=cluster.network.bytes_s,
        kv_token_bytes=first.capacity.kv_token_bytes,
    )


def _ties_to_role(instance: Instance) -> tuple[float, int]:
    """How much an instance has to do that belongs to the role which it is to leave."""
    if instance.role is Role.PREFILL:
        return (instance.waiting_s(), instance.id)
    return (float(instance.context_tokens + instance.planned_tokens), instance.id)
