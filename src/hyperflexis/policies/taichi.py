"""TaiChi (arXiv 2508.01989): every instance takes prompts and decodes, and only the size of its chunks differs.

From the paper: instances heavy on prefill take large chunks, those heavy on decode small ones; the two sizes and the
ratio are its sliders. Where a prompt is prefilled is a matter of its TTFT, on either kind; decodes are kept where
little prefill disturbs them, and a request whose TPOT has slack may decode beside large chunks so that others need
not.

Ours: instances launched to prefill are heavy on prefill, those launched to decode heavy on decode; the order within
an instance, but not its chunks, which are fixed as there. Our reading of its two schedulers: a prompt goes where its
predicted TTFT is the least; its decode stays on a prefill-heavy instance if a step with a full chunk there keeps
`stay_share` of its TPOT, or if no decode-heavy instance has room for it, and moves to the least used of these
otherwise.

Not here: decodes that flow on later, to decode-heavy instances when their TPOT comes near its promise and from full
ones to prefill-heavy ones. Instances launched with no role take chunks by slack, as ours do.
"""

from __future__ import annotations

from collections.abc import Sequence

from hyperflexis.core.binding import LeastPace, has_room
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import Placement
from hyperflexis.core.instance import Instance, Role
from hyperflexis.core.request import Request
from hyperflexis.core.step import StepRules
from hyperflexis.policies import engines, forecast, pools


class AnyInTime:
    """The least predicted TTFT, of all instances."""

    def __init__(self, rules: dict[Role, StepRules]) -> None:
        self._chunks = {role: each.prefill_tokens_max for role, each in rules.items()}

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        expected = cluster.expected_tokens(request)
        ready = pools.large_enough(request, cluster.ready)
        able = [each for each in ready if each.role is Role.PREFILL or has_room(request, each, expected)]
        ttft_s, _, _, chosen = min(
            (self._ttft_s(request, each, now), each.dispatches, each.id, each) for each in able or ready
        )
        why = Why.FEASIBLE if ttft_s <= forecast.ttft_slo_s(request) else Why.LEAST_HARM
        return Placement(chosen, Reason(why, (("ttft_s", ttft_s),)), ttft_s)

    def _ttft_s(self, request: Request, instance: Instance, now: float) -> float:
        return forecast.first_come(request, instance, self._chunks[instance.role], now).ttft_s


class WhereSlackAllows:
    """Where it is, if its TPOT can bear that; else the least used decode-heavy instance."""

    def __init__(self, chunk_p: int, stay_share: float) -> None:
        self._chunk_p = chunk_p
        self._stay_share = stay_share
        self._elsewhere = LeastPace()

    def choose(
        self, request: Request, source: Instance, targets: Sequence[Instance], cluster: Cluster, now: float
    ) -> Placement | None:
        step_s = self.stay_s(request, source)
        stays = Placement(source, Reason(Why.FEASIBLE, (("step_s", step_s),)))
        can_stay = has_room(request, source, cluster.expected_tokens(request))
        if can_stay and step_s <= self._stay_share * forecast.tpot_slo_s(request):
            return stays
        moves = self._elsewhere.choose(request, source, targets, cluster, now)
        return moves or (stays if can_stay else None)

    def stay_s(self, request: Request, source: Instance) -> float:
        """A step of all decodes there, it among them, beside a full chunk."""
        model = source.latency.model
        step_s = model.decode_step_s(len(source.decoding) + 1, source.context_tokens + request.context_tokens)
        return step_s + max(0.0, model.prefill_base_s - model.decode_base_s) + model.chunk_s(self._chunk_p, 0)


def policy(prefill_tokens_max: int, *, chunk_p: int = 0, chunk_d: int = 128, stay_share: float = 1.0) -> Policy:
    """`chunk_p` and `chunk_d` are the chunks of prefill-heavy and decode-heavy instances; 0 is `prefill_tokens_max`."""
    if stay_share < 0:
        raise ValueError(f"stay_share must be at least 0, not {stay_share}")
    rules = StepRules(prefill_tokens_max=prefill_tokens_max)
    chunks = {
        Role.PREFILL: engines.chunk_tokens(prefill_tokens_max, chunk_p),
        Role.DECODE: engines.chunk_tokens(prefill_tokens_max, chunk_d),
    }
    fixed = {role: StepRules(sizing="fixed", prefill_tokens_max=tokens) for role, tokens in chunks.items()}
    dispatcher = AnyInTime({Role.MIXED: rules, **fixed})
    return Policy("taichi", dispatcher, rules, fixed, binder=WhereSlackAllows(chunks[Role.PREFILL], stay_share))
