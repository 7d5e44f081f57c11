"""What rivals that predict would predict: first token and pace of a newcomer in an engine that takes what comes first.

With chunks of c tokens beside B decodes of S tokens of context, everything that waits before the newcomer:

    ttft = waited + rest of the step + ceil(tokens / c) (base + gamma B + delta S) + prefill work
    tpot = decode step of all requests there and the newcomer

The published systems interpolate in a measured profile (Llumnix) or train a regression online (llm-d). Here both get
the latency model that everybody gets, which is at least as good; so what is compared is rules, not predictors. Engines
of other kinds are predicted by `core.dispatch.estimate`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from hyperflexis.core import budget
from hyperflexis.core.instance import Instance
from hyperflexis.core.request import Request


class Forecast(NamedTuple):
    """Seconds, the first counted from arrival."""

    ttft_s: float
    tpot_s: float


def first_come(request: Request, instance: Instance, chunk: int, now: float) -> Forecast:
    """Of a newcomer, which goes behind all that waits."""
    model, correction = instance.latency.model, instance.latency.correction
    seqs, context = len(instance.decoding), instance.context_tokens
    cached = instance.cached_tokens(request)
    tokens = waiting_tokens(instance) + request.context_tokens - cached
    step_s = model.base_s(True, seqs > 0) + model.decode_seq_s * seqs + model.context_token_s * context
    work_s = instance.waiting_s() + instance.prefill_work_s(request, cached)
    prefill_s = math.ceil(tokens / chunk) * step_s + work_s
    prefill_s *= correction.factor("mixed" if seqs else "prefill")
    waiting = sum(other.context_tokens for other in instance.waiting.values())
    return Forecast(
        now - request.arrived_s + instance.residual_s(now) + prefill_s,
        instance.latency.decode_step_s(instance.requests + 1, context + waiting + request.context_tokens),
    )


def waiting_tokens(instance: Instance) -> int:
    """Prefill tokens left of all that waits there."""
    tokens = sum(other.context_tokens - other.cached_tokens for other in instance.waiting.values())
    return max(0, tokens - instance.progress_tokens)


def stretch(instance: Instance, chunk_max: int) -> float:
    """How many times its own work a prefill takes there in steps sized by slack, beside the decodes that run now."""
    factor = instance.latency.correction.factor
    if not instance.decoding:
        return factor("prefill")
    model, seqs, context = instance.latency.model, len(instance.decoding), instance.context_tokens
    pace_s = instance.strictest_pace_s()
    if pace_s == math.inf:
        return factor("mixed")
    chunk = budget.chunk_between_decodes(model, budget.AIM * pace_s, seqs, context, (64, max(64, chunk_max)))
    return budget.prefill_inflation(model, chunk, seqs, context) * factor("mixed")


def has_room(request: Request, instance: Instance, expected_tokens: int) -> bool:
    """Whether the KV of all that is there, at its expected lengths, leaves room for the newcomer's."""
    planned = request.prompt_tokens + expected_tokens
    return instance.planned_blocks + instance.capacity.blocks_for(planned) <= instance.capacity.blocks


def tpot_slo_s(request: Request) -> float:
    """Infinite where none was promised."""
    return request.slo.tpot_s if request.slo.tpot_s is not None else math.inf


def ttft_slo_s(request: Request) -> float:
    """Infinite where none was promised."""
    return request.slo.ttft_s if request.slo.ttft_s is not None else math.inf
