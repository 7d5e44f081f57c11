"""Llumnix v1 with its adaptive split: decodes are packed, and what has no decodes prefills.

From its published documentation: a decode goes to the instance with the highest predicted TPOT that is still under
its promise x threshold; a prompt to the lowest predicted TTFT among the instances without decodes; one of each is
reserved; where no decode instance can take a decode, an instance that prefills is converted, the least busy; an
instance whose decodes have ended prefills again. Apart from that nobody has a role.

Ours: predictions by the latency model, which counts what was dispatched at once; TTFT in the order in which prompts
are taken here; order and chunks. An instance without room for a request cannot take it. With fewer than two instances
nothing is split.

Simplified: conversions happen within `control.TICK_S`, for which a decode that nobody can take stands still. Not
here: its moves of running decodes, which relieve an instance from .95 of its promise on and empty those below .60.
"""

from __future__ import annotations

from collections.abc import Sequence

from hyperflexis.core import dispatch
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import Placement
from hyperflexis.core.instance import Instance, Role
from hyperflexis.core.request import Request, RequestState
from hyperflexis.core.roles import RoleChange
from hyperflexis.core.step import StepRules
from hyperflexis.policies import pools


class LowestTtft:
    """Among those that are offered, which are those without decodes."""

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        expected = cluster.expected_tokens(request)
        ttft_s, _, _, chosen = min(
            (dispatch.estimate(request, each, expected, now).ttft_s, each.dispatches, each.id, each)
            for each in instances
        )
        return Placement(chosen, Reason(Why.LEAST_LOADED, (("ttft_s", ttft_s),)), ttft_s)


class Packed:
    """The highest TPOT under the promise; `is_short` says that there was none, for whoever converts."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self.is_short = False

    def choose(
        self, request: Request, source: Instance, targets: Sequence[Instance], cluster: Cluster, now: float
    ) -> Placement | None:
        able = [(pools.decode_s(request, each), -each.id, each) for each in pools.with_room(request, targets, cluster)]
        under = [found for found in able if found[0] <= self._threshold * pools.pace_s(request, found[2])]
        if under:
            tpot_s, _, packed = max(under)
            return Placement(packed, Reason(Why.PREFILLED, (("tpot_s", tpot_s),)))
        if request.state is RequestState.STANDING:
            self.is_short = True
        if not able or len(pools.of(Role.PREFILL, cluster.ready)) > 1:
            return None
        tpot_s, _, lowest = min(able, key=lambda found: (found[0], -found[1]))
        return Placement(lowest, Reason(Why.LEAST_HARM, (("tpot_s", tpot_s),)))


class Convert:
    """Instances without decodes prefill, the others decode; one of each at least."""

    def __init__(self, packed: Packed) -> None:
        self._packed = packed

    def plan(self, cluster: Cluster, now: float) -> list[RoleChange]:
        if len(cluster.ready) < 2:
            return []
        idle = [each for each in cluster.ready if each.role is not Role.PREFILL and _has_no_decodes(each)]
        decode = [each for each in cluster.ready if each.role is not Role.PREFILL and each not in idle]
        prefill = pools.of(Role.PREFILL, cluster.ready)
        if not decode:  # One is reserved, and the one that is so already.
            reserved = next((each for each in idle if each.role is Role.DECODE), (idle or prefill)[-1])
            idle, prefill = ([each for each in among if each is not reserved] for among in (idle, prefill))
            decode = [reserved]
        prefill += idle
        is_short, self._packed.is_short = self._packed.is_short, False
        if not prefill:
            prefill.append(decode.pop(decode.index(min(decode, key=lambda each: (len(each.decoding), each.id)))))
        elif is_short and len(prefill) > 1:
            decode.append(prefill.pop(prefill.index(pools.least_waiting(prefill))))
        reason = Reason(Why.BALANCES, (("prefill", float(len(prefill))), ("decode", float(len(decode)))))
        pairs = [*((each, Role.PREFILL) for each in prefill), *((each, Role.DECODE) for each in decode)]
        return [RoleChange(each, role, reason) for each, role in pairs if each.role is not role]


def _has_no_decodes(instance: Instance) -> bool:
    return not instance.decoding and not instance.arriving and not instance.standing


def policy(prefill_tokens_max: int, *, threshold: float = 0.85) -> Policy:
    """`threshold` is the share of the promised TPOT up to which an instance is packed."""
    if threshold <= 0:
        raise ValueError(f"threshold must be above 0, not {threshold}")
    packed, rules = Packed(threshold), StepRules(prefill_tokens_max=prefill_tokens_max)
    return Policy("llumnix_pd", LowestTtft(), rules, binder=packed, planner=Convert(packed))
