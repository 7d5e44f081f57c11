"""Arrow (arXiv 2505.11916): prefill and decode instances that change sides when the other side needs them.

The rules of its published implementation, with P and D the numbers of prefill and decode instances:

    prefill   to the prefill instance with the least accumulated prefill time; if that is beyond the TTFT target, to the
              quickest decode instance, if a step there is below target (D-1)/D and its prefill backlog smaller
    decode    to the first decode instance whose step stays under the TPOT target; else to the quickest
    P → D     where no decode instance stays under it, and either the average prefill time is below target (P-1)/P or
              D < P: the instance that has prefilled the request
    D → P     a decode instance whose last request has ended
    always    one of each stays; what an instance has when it changes ends there

Ours: targets are each request's own promises and not one number for all; the instance that decodes is chosen when the
prefill begins; order and chunks. An instance without room for a request is not feasible, which its published rules do
not test: there, a decode instance queues what it cannot hold, while here such a move would fail.

Simplified: a prompt that overflows to a decode instance decodes there too; sides are changed within `control.TICK_S`,
one to decode at a time, and not at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import Placement
from hyperflexis.core.instance import Instance, Role
from hyperflexis.core.request import Request
from hyperflexis.core.roles import RoleChange
from hyperflexis.core.step import StepRules
from hyperflexis.policies import forecast, pools


class Wanted:
    """Prefill instances that are to decode, by the rules for decodes."""

    def __init__(self) -> None:
        self.decoders: list[int] = []


class LeastPrefill:
    """The least accumulated prefill time, with the overflow to decode instances."""

    def __init__(self, target_share: float) -> None:
        self._target_share = target_share

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        chosen = pools.least_waiting(instances)
        if chosen.waiting_s() > self._target_share * forecast.ttft_slo_s(request):
            decoders = pools.of(Role.DECODE, pools.large_enough(request, cluster.ready))
            chosen = self._light(request, decoders, chosen.waiting_s()) or chosen
        return Placement(chosen, Reason(Why.LEAST_LOADED, (("prefill_s", chosen.waiting_s()),)))

    def _light(self, request: Request, decoders: Sequence[Instance], prefill_s: float) -> Instance | None:
        if not decoders:
            return None
        step_s, _, quickest = min((pools.decode_s(request, each), each.id, each) for each in decoders)
        target_s = self._target_share * forecast.tpot_slo_s(request) * (len(decoders) - 1) / len(decoders)
        return quickest if step_s < target_s and quickest.waiting_s() < prefill_s else None


class FirstUnderTarget:
    """The first decode instance under the target, else the quickest; and who is to change sides."""

    def __init__(self, wanted: Wanted, target_share: float) -> None:
        self._wanted = wanted
        self._target_share = target_share

    def choose(
        self, request: Request, source: Instance, targets: Sequence[Instance], cluster: Cluster, now: float
    ) -> Placement | None:
        steps = [(pools.decode_s(request, each), each) for each in pools.with_room(request, targets, cluster)]
        for step_s, each in steps:
            if step_s <= self._target_share * forecast.tpot_slo_s(request):
                return Placement(each, Reason(Why.PREFILLED, (("step_s", step_s),)))
        if self._may_change(request, cluster):
            self._wanted.decoders.append(source.id)
        if not steps:
            return None
        step_s, quickest = min(steps, key=lambda found: (found[0], found[1].id))
        return Placement(quickest, Reason(Why.LEAST_HARM, (("step_s", step_s),)))

    def _may_change(self, request: Request, cluster: Cluster) -> bool:
        prefill, decode = pools.of(Role.PREFILL, cluster.ready), pools.of(Role.DECODE, cluster.ready)
        if len(prefill) < 2:
            return False
        mean_s = sum(each.waiting_s() for each in prefill) / len(prefill)
        target_s = self._target_share * forecast.ttft_slo_s(request) * (len(prefill) - 1) / len(prefill)
        return mean_s < target_s or len(decode) < len(prefill)


class Sides:
    """At most one instance at a time to decode, and those without requests to prefill."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._used: set[int] = set()
        """Decode instances that have had requests."""

    def plan(self, cluster: Cluster, now: float) -> list[RoleChange]:
        prefill, decode = pools.of(Role.PREFILL, cluster.ready), pools.of(Role.DECODE, cluster.ready)
        changes = self._to_prefill(decode)
        wanted = [each for each in prefill if each.id in self._wanted.decoders]
        self._wanted.decoders.clear()
        if wanted and len(prefill) > 1:
            changes.append(RoleChange(wanted[0], Role.DECODE, Reason(Why.BALANCES, (("prefill", len(prefill) - 1.0),))))
        return changes

    def _to_prefill(self, decode: Sequence[Instance]) -> list[RoleChange]:
        self._used &= {each.id for each in decode}
        left, changes = len(decode), list[RoleChange]()
        for each in decode:
            if not pools.is_idle(each):
                self._used.add(each.id)
            elif each.id in self._used and left > 1:
                left -= 1
                changes.append(RoleChange(each, Role.PREFILL, Reason(Why.BALANCES, (("decode", float(left)),))))
        return changes


def policy(prefill_tokens_max: int, *, target_share: float = 1.0) -> Policy:
    """`target_share` is the share of a promise that counts as its target."""
    if target_share <= 0:
        raise ValueError(f"target_share must be above 0, not {target_share}")
    wanted, rules = Wanted(), StepRules(prefill_tokens_max=prefill_tokens_max)
    binder = FirstUnderTarget(wanted, target_share)
    return Policy("arrow", LeastPrefill(target_share), rules, binder=binder, planner=Sides(wanted))
