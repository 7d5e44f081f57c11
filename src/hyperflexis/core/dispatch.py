"""Which instance takes a request.

Three checks per instance, after PolyServe (published system): (i) predicted first token within F; (ii) predicted second
token within F + Q; (iii) a step at peak KV within the strictest pace there, the newcomer's included. Also blocks.

Among instances that pass, and among all when none does, the least score wins:

    10 max(0, s - s' - .02)  +  alpha (waiting + own + .1 S) / max(.1, s')  +  3 [peak step > strictest pace]

with s = 1 - decode step / strictest pace before, and s' after adding the request: the share of an instance's time that
is left for prefills. The first term is prefill capacity that the newcomer would cost by binding an instance to its
pace, so that strict and loose work separate softly, without partitions. Ranked by measurement under load; sending at
once to the least score beat holding work back in that study. What capacity is worth depends on how much of it is used:
the weight 10 shrinks with the fleet's prefill load, so that a fleet with time to spare shares work evenly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hyperflexis.core import budget
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.instance import Instance
from hyperflexis.core.request import Request

PACE_CAP_S = 0.2
"""Looser paces than this bind an instance no less than this one."""
LOST_CAPACITY_WEIGHT = 10.0
FULL_LOAD = 0.5
"""Share of the fleet's time spent on prefills from which on lost capacity counts in full."""
FREE_LOSS = 0.02
PEAK_PENALTY = 3.0
INDIFFERENCE = 0.01
CHUNK_BOUNDS = (64, 8192)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What would become of one request on one instance, seconds."""

    ttft_s: float
    """From arrival."""
    step_s: float
    """A step of decodes with it, as loads are now."""
    peak_step_s: float
    """The same when everyone there has its expected length."""
    strictest_pace_s: float
    has_blocks: bool
    score: float


ExpectedTokens = Callable[[Request], int]


def estimate(
    request: Request,
    instance: Instance,
    expected_tokens: ExpectedTokens,
    now: float,
    capacity_weight: float = LOST_CAPACITY_WEIGHT,
) -> Estimate:
    """Predict a request on an instance. Costs time linear in the requests dispatched there."""
    load = _load(request, instance, expected_tokens)
    model = instance.latency.model
    # An idle instance would pay the fixed part of a step too: having none now is no capacity to lose.
    step_before_s = instance.latency.decode_step_s(max(1, load.seqs), load.context)
    step_s = instance.latency.decode_step_s(load.seqs + 1, load.context + request.context_tokens)
    peak_step_s = instance.latency.decode_step_s(load.seqs_peak, load.context_peak)
    residual_s = max(0.0, instance.step_end_s - now)
    own_s = instance.prefill_work_s(request, instance.cached_tokens(request))
    prefill_s = model.prefill_base_s + _stretch(instance, load) * (load.ahead_s + own_s)
    ttft_s = now - request.arrived_s + residual_s + prefill_s
    share_before = 1.0 - step_before_s / load.pace_before_s
    share = 1.0 - step_s / load.pace_s
    queued_s = load.waiting_s + own_s + 0.1 * model.prefill_token_s * load.context
    score = capacity_weight * max(0.0, share_before - share - FREE_LOSS)
    score += queued_s / max(0.1, share)
    score += PEAK_PENALTY * (peak_step_s > load.pace_s)
    return Estimate(
        ttft_s=ttft_s,
        step_s=step_s,
        peak_step_s=peak_step_s,
        strictest_pace_s=load.pace_s,
        has_blocks=load.blocks_peak <= instance.capacity.blocks,
        score=score,
    )


def _stretch(instance: Instance, load: _Load) -> float:
    """How many times its own work a prefill takes here, beside the decodes that run now."""
    if not load.seqs:
        return instance.latency.correction.factor("prefill")
    model, pace_s = instance.latency.model, budget.AIM * load.pace_before_s
    chunk = budget.chunk_between_decodes(model, pace_s, load.seqs, load.context, CHUNK_BOUNDS)
    inflation = budget.prefill_inflation(model, chunk, load.seqs, load.context)
    return inflation * instance.latency.correction.factor("mixed")


@dataclass(slots=True)
class _Load:
    """What an instance has, with one request more where it says peak or pace_s."""

    seqs: int
    context: int
    seqs_peak: int
    context_peak: int
    blocks_peak: int
    waiting_s: float
    ahead_s: float
    pace_before_s: float
    pace_s: float


def _load(request: Request, instance: Instance, expected_tokens: ExpectedTokens) -> _Load:
    cap_s = max(PACE_CAP_S, 4 * instance.latency.model.decode_base_s)
    load = _Load(
        seqs=len(instance.decoding),
        context=instance.context_tokens,
        seqs_peak=len(instance.decoding) + len(instance.waiting) + 1,
        context_peak=0,
        blocks_peak=0,
        waiting_s=0.0,
        ahead_s=0.0,
        pace_before_s=cap_s,
        pace_s=cap_s,
    )
    for other in instance.decoding.values():
        _add_peak(load, other, instance, expected_tokens)
        load.pace_before_s = min(load.pace_before_s, _tpot_s(other))
    for other in instance.waiting.values():
        _add_peak(load, other, instance, expected_tokens)
        load.pace_before_s = min(load.pace_before_s, _tpot_s(other))
        work_s = instance.work_s[other.id]
        load.waiting_s += work_s
        if other.queue_key < request.queue_key:
            load.ahead_s += work_s
    done_s = instance.latency.model.prefill_token_s * instance.progress_tokens
    load.waiting_s = max(0.0, load.waiting_s - done_s)
    load.ahead_s = max(0.0, load.ahead_s - done_s)
    _add_peak(load, request, instance, expected_tokens)
    load.pace_s = min(load.pace_before_s, _tpot_s(request))
    return load


def _add_peak(load: _Load, request: Request, instance: Instance, expected_tokens: ExpectedTokens) -> None:
    tokens = request.prompt_tokens + max(request.emitted_tokens, expected_tokens(request))
    load.context_peak += tokens
    load.blocks_peak += instance.capacity.blocks_for(tokens)


def _tpot_s(request: Request) -> float:
    return request.slo.tpot_s if request.slo.tpot_s is not None else math.inf


def is_feasible(request: Request, estimate: Estimate) -> bool:
    """Whether every promise that matters here would be kept, neighbours' included."""
    if not estimate.has_blocks or estimate.peak_step_s > estimate.strictest_pace_s:
        return False
    ttft_slo_s = request.slo.ttft_s
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

    def choose(
        self, request: Request, instances: Sequence[Instance], expected_tokens: ExpectedTokens, now: float
    ) -> Placement:
        """Pick one of `instances`, which are ready and not empty as a list."""


class PrefillLoad:
    """Prefill work dispatched per second, as a share of what the fleet could do: a decaying sum of recent work."""

    MEMORY_S = 10.0

    def __init__(self) -> None:
        self._work_s = 0.0
        self._at_s = 0.0

    def add(self, work_s: float, now: float) -> None:
        self._work_s = self._decayed(now) + work_s
        self._at_s = now

    def share(self, instances: int, now: float) -> float:
        return self._decayed(now) / self.MEMORY_S / instances

    def _decayed(self, now: float) -> float:
        return self._work_s * math.exp(min(0.0, self._at_s - now) / self.MEMORY_S)


class SloDispatcher:
    """Feasible first, then the least score; between equals, fewest requests now, then fewest so far.

    Scores within `INDIFFERENCE` count as equal: models of equal instances differ by their noise, and that must not
    send everything to the one that measured itself a little faster.
    """

    def __init__(self) -> None:
        self._load = PrefillLoad()

    def choose(
        self, request: Request, instances: Sequence[Instance], expected_tokens: ExpectedTokens, now: float
    ) -> Placement:
        best: tuple[tuple[bool, int, int, int, int], Instance, Estimate] | None = None
        weight = LOST_CAPACITY_WEIGHT * min(1.0, self._load.share(len(instances), now) / FULL_LOAD)
        for instance in instances:
            predicted = estimate(request, instance, expected_tokens, now, weight)
            grade = round(predicted.score / INDIFFERENCE)
            is_harmful = not is_feasible(request, predicted)
            rank = (is_harmful, grade, instance.requests, instance.dispatches, instance.id)
            if best is None or rank < best[0]:
                best = (rank, instance, predicted)
        assert best is not None, "a dispatcher needs at least one instance"
        (is_harmful, *_), instance, predicted = best
        self._load.add(instance.prefill_work_s(request, instance.cached_tokens(request)), now)
        numbers = (("ttft_s", predicted.ttft_s), ("peak_step_s", predicted.peak_step_s), ("score", predicted.score))
        reason = Reason(Why.LEAST_HARM if is_harmful else Why.FEASIBLE, numbers)
        return Placement(instance, reason, predicted.ttft_s, predicted.step_s)
