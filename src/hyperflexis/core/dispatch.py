"""Which instance takes a request.

Of those that its pace may use (`splits`), the least score wins:

    (waiting + own + .1 alpha S) / max(.1, 1 - u')  +  3 [peak step > strictest pace]

u' is the share of an instance's time that its decodes take, the newcomer's among them, when a step is as long as the
strictest pace there allows; S the context tokens that decode there and alpha the work of one.

The score is computed for all instances at once; only the chosen one is then predicted in detail. Preferring instances
on which every promise would be kept (the three checks of PolyServe, a published system) was measured too, and lost in
every case where it mattered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hyperflexis.core import budget, loads
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.instance import Instance, Role
from hyperflexis.core.request import Request
from hyperflexis.core.splits import TOLERANCE, Splits

PEAK_PENALTY = 3.0
INDIFFERENCE = 0.01
"""Scores this near to the least count as equal: models of equal instances differ by their noise, and that must not
send everything to the one that measured itself a little faster."""
FEW = 8
"""Up to so many instances are scored one by one, which is then quicker than all at once."""
CHUNK_BOUNDS = (64, 8192)
CONVERTS_BELOW = 0.8
"""An instance that decodes for others prefills only if its steps would stay below this share of its strictest pace, and
what is planned there takes no more than this share of its blocks: decodes that are slowed down hold theirs longer."""

CONVERTS_WITHIN = 0.5
"""And only what would have its first token there within this share of the time that is promised: of what comes until
then, some goes first."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What would become of one request on one instance, seconds."""

    ttft_s: float
    """From arrival."""
    e2e_s: float
    """From arrival, with an answer of the expected length at the pace of `peak_step_s`."""
    step_s: float
    """A step of decodes with it, as loads are now."""
    peak_step_s: float
    """The same when everyone there has its expected length."""
    strictest_pace_s: float
    has_blocks: bool


def estimate(request: Request, instance: Instance, expected_tokens: int, now: float) -> Estimate:
    """Predict a request, whose answer is expected to be so long, on an instance."""
    latency = instance.latency
    seqs, context = len(instance.decoding), instance.context_tokens
    own_s = instance.prefill_work_s(request, instance.cached_tokens(request))
    work_s = _stretch(instance) * (instance.ahead_s(request) + own_s)
    ttft_s = now - request.arrived_s + instance.residual_s(now) + latency.model.prefill_base_s + work_s
    is_prefill = instance.role is Role.PREFILL
    planned = request.context_tokens + 1 if is_prefill else request.prompt_tokens + expected_tokens
    blocks = instance.planned_blocks + instance.capacity.blocks_for(planned)
    if is_prefill:  # It decodes elsewhere, on an instance that is not known yet: about as fast as it was promised.
        step_s = peak_step_s = 0.0
    else:
        step_s = latency.decode_step_s(seqs + 1, context + request.context_tokens)
        peak_step_s = latency.decode_step_s(instance.requests + 1, instance.planned_tokens + planned)
    return Estimate(
        ttft_s=ttft_s,
        e2e_s=ttft_s + max(0, expected_tokens - request.emitted_tokens) * peak_step_s,
        step_s=step_s,
        peak_step_s=peak_step_s,
        strictest_pace_s=min(loads.pace_cap_s(instance), instance.strictest_pace_s(), _tpot_s(request)),
        has_blocks=blocks <= instance.capacity.blocks,
    )


def _stretch(instance: Instance) -> float:
    """How many times its own work a prefill takes here, beside the decodes that run now."""
    factor = instance.latency.correction.factor
    if not instance.decoding:
        return factor("prefill")
    model, seqs, context = instance.latency.model, len(instance.decoding), instance.context_tokens
    pace_s = budget.AIM * min(loads.pace_cap_s(instance), instance.strictest_pace_s())
    chunk = budget.chunk_between_decodes(model, pace_s, seqs, context, CHUNK_BOUNDS)
    return budget.prefill_inflation(model, chunk, seqs, context) * factor("mixed")


def _tpot_s(request: Request) -> float:
    return request.slo.tpot_s if request.slo.tpot_s is not None else math.inf


def is_feasible(request: Request, estimate: Estimate) -> bool:
    """Whether every promise that matters here would be kept, neighbours' included."""
    if not estimate.has_blocks or estimate.peak_step_s > estimate.strictest_pace_s:
        return False
    e2e_slo_s, ttft_slo_s = request.slo.e2e_s, request.slo.ttft_s
    if e2e_slo_s is not None and estimate.e2e_s > e2e_slo_s:
        return False
    if ttft_slo_s is None or request.first_token_s is not None:
        return True
    second_slo_s = ttft_slo_s + _tpot_s(request)
    return estimate.ttft_s <= ttft_slo_s and estimate.ttft_s + estimate.step_s <= second_slo_s


@dataclass(frozen=True, slots=True)
class Placement:
    """Where, what is predicted there, and why."""

    instance: Instance
    reason: Reason
    ttft_s: float | None = None
    tpot_s: float | None = None


class Dispatcher(Protocol):
    """The first of a policy's decisions."""

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        """Pick one of `instances`, which are ready, large enough for the request, and not empty as a list."""


class SloDispatcher:
    """The least score; between equals, most of the prompt held, then fewest requests now, then fewest so far.

    `separation` says how much keeping strict paces apart is worth. With 0 every pace may use every instance, which is
    quicker on average and keeps fewer promises under bursts. Where instances prefill for others, new requests go to
    these; with `converts`, to one that decodes where they would be late otherwise.
    """

    def __init__(self, separation: float = 1.0, *, converts: bool = True) -> None:
        if not separation >= 0:
            raise ValueError(f"separation must be at least 0, not {separation}")
        self._splits = Splits(TOLERANCE / separation) if separation else None
        self._converts = converts

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        expected = cluster.expected_tokens(request)
        prefilling = [instance for instance in instances if instance.role is Role.PREFILL]
        if prefilling:
            allowed: Sequence[Instance] = prefilling
        else:
            allowed = self._splits.allowed(request, instances, cluster.ready, now) if self._splits else instances
        instance = allowed[_least(request, allowed, cluster, expected)]
        predicted = estimate(request, instance, expected, now)
        if request.refuses_late and not is_feasible(request, predicted):
            instance, predicted = _first_feasible(request, instances, expected, now) or (instance, predicted)
        why = Why.FEASIBLE if is_feasible(request, predicted) else Why.LEAST_HARM
        numbers = (("ttft_s", predicted.ttft_s), ("peak_step_s", predicted.peak_step_s))
        placement = Placement(instance, Reason(why, numbers), predicted.ttft_s, predicted.step_s or None)
        if prefilling and self._converts and why is not Why.FEASIBLE:
            return _converted(request, placement, cluster, expected, now)
        return placement


def _converted(request: Request, placement: Placement, cluster: Cluster, expected_tokens: int, now: float) -> Placement:
    """Where instances prefill for others, and none of them in time: one that decodes, if that keeps every promise.

    What decodes is slowed down by a prefill, and so only if its first token would be late otherwise.
    """
    others = [other for other in cluster.ready if other.role is not Role.PREFILL]
    found = [(estimate(request, other, expected_tokens, now), other) for other in others]
    feasible = [
        (each.ttft_s, other.id, other, each)
        for each, other in found
        if _has_time(each, other, request) and is_feasible(request, each)
    ]
    if not feasible:
        return placement
    _, _, instance, predicted = min(feasible)
    numbers = (("ttft_s", predicted.ttft_s), ("peak_step_s", predicted.peak_step_s))
    return Placement(instance, Reason(Why.FEASIBLE, numbers), predicted.ttft_s, predicted.step_s)


def _has_time(estimate: Estimate, other: Instance, request: Request) -> bool:
    """Whether an instance that decodes for others could well prefill, too."""
    within_s = math.inf if request.slo.ttft_s is None else CONVERTS_WITHIN * request.slo.ttft_s
    return (
        estimate.peak_step_s <= CONVERTS_BELOW * estimate.strictest_pace_s
        and other.planned_blocks <= CONVERTS_BELOW * other.capacity.blocks
        and estimate.ttft_s <= within_s
    )


def _first_feasible(
    request: Request, instances: Sequence[Instance], expected_tokens: int, now: float
) -> tuple[Instance, Estimate] | None:
    """Any instance that keeps every promise, for a request that is refused otherwise."""
    for instance in instances:
        predicted = estimate(request, instance, expected_tokens, now)
        if is_feasible(request, predicted):
            return instance, predicted
    return None


def _least(request: Request, instances: Sequence[Instance], cluster: Cluster, expected_tokens: int) -> int:
    """The index of the instance with the least score.

    Of those as good, the one that holds most of the prompt, then the one with the fewest requests.
    """
    if len(instances) == 1:
        return 0
    cluster.loads.refresh()
    newcomer = Newcomer(request.context_tokens, expected_tokens, _tpot_s(request))
    if len(instances) > FEW:
        table = cluster.loads.table(instances)
        held = _cached_tokens(request, instances)
        values = score(table, newcomer, held, np.minimum, np.maximum)
        equals = np.flatnonzero(values <= values.min() + INDIFFERENCE)
        return int(equals[np.lexsort((table.dispatches[equals], table.requests[equals], -held[equals]))[0]])
    columns = [cluster.loads.column(instance) for instance in instances]
    cached = [instance.cached_tokens(request) for instance in instances]
    found = [score(load, newcomer, held, min, max) for load, held in zip(columns, cached, strict=True)]
    worst = min(found) + INDIFFERENCE
    equal = [index for index, value in enumerate(found) if value <= worst]
    return min(equal, key=lambda index: (-cached[index], columns[index].requests, columns[index].dispatches))


class Newcomer(NamedTuple):
    """What a score needs to know of a request."""

    tokens: int
    answer_tokens: int
    """Believed."""
    pace_s: float
    """Promised; infinite if none."""


def score(
    load: loads.Load,
    newcomer: Newcomer,
    cached_tokens: Any,
    minimum: Callable[[Any, Any], Any],
    maximum: Callable[[Any, Any], Any],
) -> Any:
    """How much a newcomer would harm; the least is best. Of one instance, or of many at once with numpy's functions."""
    tokens, answer_tokens, own_pace_s = newcomer
    pace_s = minimum(load.pace_s, own_pace_s)
    used = (load.step_s + load.context_token_s * tokens) / pace_s
    own_s = load.prefill_token_s * (tokens - cached_tokens) + load.prefill_pair_s * (tokens**2 - cached_tokens**2)
    is_peak_late = load.peak_step_s + load.context_token_s * (tokens + answer_tokens) > pace_s
    return (load.queued_s + own_s) / maximum(0.1, 1 - used) + PEAK_PENALTY * is_peak_late


def _cached_tokens(request: Request, instances: Sequence[Instance]) -> npt.NDArray[np.float64]:
    if not request.block_hashes:
        return np.zeros(len(instances))
    return np.array([instance.cached_tokens(request) for instance in instances], dtype=np.float64)
