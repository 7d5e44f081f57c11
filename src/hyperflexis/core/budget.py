"""Slack and budgets: how much time a promise leaves, and how much work fits into it.

    next token due     due = f + k Q                      k tokens emitted, f the real first token's instant
    slack              due - now
    room of a step     safety * min over decodes of slack - decode step - what prefill adds to the fixed part

The anchor is the real first token, not the promised one. With mean TPOT as the metric, letting an early first token pay
for later prefills (credit) costs far more than it gains; measured, see the decisions in docs. Aiming at 97 % of Q and
using 95 % of the slack are the two safeguards against a model that is a little wrong.

Knows nothing of queues or instances. All times are seconds.
"""

from __future__ import annotations

import math

from hyperflexis.core.latency import LatencyModel, OnlineLatency
from hyperflexis.core.slo import Slo

AIM = 0.97
"""Share of the TPOT target that a decode is paced for."""
SAFETY = 0.95
"""Share of the tightest slack that a step may use."""


def pace_s(slo: Slo, arrived_s: float, first_token_s: float, expected_tokens: int) -> float | None:
    """Seconds between tokens that keep the promise: TPOT, or what an end-to-end deadline leaves, whichever is less.

    The latter is rounded down to a sixteenth of an octave, so that many deadlines make few paces.
    """
    paces = []
    if slo.tpot_s is not None:
        paces.append(AIM * slo.tpot_s)
    if slo.e2e_s is not None:
        pace_s = AIM * max(0.0, arrived_s + slo.e2e_s - first_token_s) / expected_tokens
        paces.append(2.0 ** (math.floor(16 * math.log2(pace_s)) / 16) if pace_s > 0 else 0.0)
    return min(paces, default=None)


def anchor_s(slo: Slo, arrived_s: float, first_token_s: float, credit_spend_max: float) -> float:
    """The instant from which the pace is counted: the first token's, later by the credit that may be spent."""
    if slo.ttft_s is None or not credit_spend_max:
        return first_token_s
    return first_token_s + credit_spend_max * max(0.0, arrived_s + slo.ttft_s - first_token_s)


def is_decode_lost(due_s: float, now: float, pace_s: float, tokens_left: int, step_s: float) -> bool:
    """Whether a late decode could not catch up even if every remaining step took only `step_s`.

    A lost decode must not bind its neighbours: nothing that they give up can save it.
    """
    lateness_s = now + step_s - due_s
    return lateness_s > 0 and lateness_s > tokens_left * (pace_s - step_s)


def first_token_deadline_s(
    slo: Slo, arrived_s: float, expected_tokens: int, decode_step_s: float, patience_s: float
) -> float:
    """The instant by which the first token must be out: TTFT, or what an end-to-end deadline leaves before it.

    Without either promise it is `patience_s` after arrival, so that unpromised work is late, never forgotten.
    """
    deadlines = []
    if slo.ttft_s is not None:
        deadlines.append(arrived_s + slo.ttft_s)
    if slo.e2e_s is not None:
        deadlines.append(arrived_s + max(0.0, slo.e2e_s - expected_tokens * decode_step_s))
    return min(deadlines, default=arrived_s + patience_s)


def chunk_between_decodes(
    model: LatencyModel, pace_s: float, seqs: int, context_tokens: float, bounds: tuple[int, int]
) -> int:
    """The prefill chunk that fits beside `seqs` decodes paced at `pace_s`, on no prior tokens, within `bounds`."""
    low, high = bounds
    room_s = SAFETY * pace_s - model.decode_step_s(seqs, context_tokens)
    room_s -= max(0.0, model.prefill_base_s - model.decode_base_s)
    return max(low, min(high, model.chunk_tokens(room_s, 0)))


def prefill_inflation(model: LatencyModel, chunk_tokens: int, seqs: int, context_tokens: float) -> float:
    """How many times longer a prefill takes than its own work, as every step also pays the fixed part and decodes."""
    work_s = model.chunk_s(chunk_tokens, 0)
    if work_s <= 0:
        return 1.0
    fixed_s = model.base_s(True, seqs > 0)
    fixed_s += model.decode_seq_s * seqs + model.context_token_s * context_tokens
    return (fixed_s + work_s) / work_s


def prefill_room_s(latency: OnlineLatency, longest_s: float, seqs: int, context_tokens: int) -> float:
    """Seconds of prefill, as the model counts them, that make a step beside these decodes take `longest_s`."""
    model = latency.model
    if not seqs:
        return longest_s / latency.correction.factor("prefill") - model.prefill_base_s
    step_s = longest_s / latency.correction.factor("mixed")
    return step_s - model.decode_step_s(seqs, context_tokens) - max(0.0, model.prefill_base_s - model.decode_base_s)


def stretch(latency: OnlineLatency, pace_s: float, seqs: int, context_tokens: int, bounds: tuple[int, int]) -> float:
    """How many times its own work a prefill takes beside decodes, of which the strictest has this pace (or none)."""
    factor = latency.correction.factor
    if pace_s == math.inf:
        return factor("mixed" if seqs else "prefill")
    chunk = chunk_between_decodes(latency.model, pace_s, seqs, context_tokens, bounds)
    return prefill_inflation(latency.model, chunk, seqs, context_tokens) * factor("mixed")
