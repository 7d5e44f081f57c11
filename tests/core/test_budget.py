"""Paces, deadlines, and how much fits between two decodes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.builders import A100_14B, H100_8B, SIMPLE, slo
from hyperflexis.core import budget
from hyperflexis.core.latency import LatencyModel
from hyperflexis.core.slo import Slo


def test_pace_aims_a_little_below_the_promise() -> None:
    assert budget.pace_s(slo(tpot_s=0.1), 0.0, 1.0, 10) == pytest.approx(0.097)


def test_pace_of_an_end_to_end_deadline_is_what_the_first_token_left() -> None:
    pace_s = budget.pace_s(slo(e2e_s=11.0), 2.0, 3.0, 10)
    assert pace_s is not None
    assert 2 ** (-1 / 16) * 0.97 * 10.0 / 10 < pace_s <= 0.97 * 10.0 / 10, "rounded down"


@given(st.floats(0.001, 1000.0), st.floats(0.0, 10.0), st.integers(1, 5000))
def test_many_end_to_end_deadlines_make_few_paces_and_none_is_too_slow(
    e2e_s: float, first_s: float, tokens: int
) -> None:
    pace_s = budget.pace_s(slo(e2e_s=e2e_s), 0.0, first_s, tokens)
    assert pace_s is not None
    exact_s = 0.97 * max(0.0, e2e_s - first_s) / tokens
    assert 2 ** (-1 / 16) * exact_s * (1 - 1e-9) <= pace_s <= exact_s * (1 + 1e-9)
    if pace_s:
        assert 16 * math.log2(pace_s) == pytest.approx(round(16 * math.log2(pace_s)), abs=1e-6)


def test_pace_is_the_stricter_of_both() -> None:
    assert budget.pace_s(slo(tpot_s=0.1, e2e_s=100.0), 0.0, 0.0, 10) == pytest.approx(0.097)
    only_s = budget.pace_s(slo(e2e_s=0.5), 0.0, 0.0, 10)
    assert budget.pace_s(slo(tpot_s=0.1, e2e_s=0.5), 0.0, 0.0, 10) == only_s


def test_no_promise_has_no_pace_and_a_missed_deadline_leaves_none() -> None:
    assert budget.pace_s(Slo(ttft_s=1.0), 0.0, 0.0, 10) is None
    assert budget.pace_s(slo(e2e_s=1.0), 0.0, 5.0, 10) == 0.0


@pytest.mark.parametrize(
    ("now", "step_s", "is_lost"),
    [
        (0.9, 0.05, False),
        (1.0, 0.05, False),  # 50 ms late; nine tokens at 50 ms each gain 450 ms
        (1.4, 0.05, False),
        (1.41, 0.05, True),
        (1.0, 0.2, True),  # no step is as short as the pace: lateness only grows
        (0.7, 0.2, False),  # not late yet
    ],
)
def test_decode_is_lost_when_its_remaining_tokens_cannot_catch_up(now: float, step_s: float, is_lost: bool) -> None:
    assert budget.is_decode_lost(1.0, now, 0.1, 9, step_s) is is_lost


@given(st.floats(0, 10), st.floats(0.001, 1), st.integers(1, 500), st.floats(0.0001, 0.9), st.floats(0, 10))
def test_decode_that_is_lost_stays_lost(
    now: float, pace_s: float, tokens_left: int, share: float, later_s: float
) -> None:
    """Waiting does not help; neither do steps of the length that was assumed, each of which emits a token."""
    step_s = share * pace_s
    if budget.is_decode_lost(1.0, now, pace_s, tokens_left, step_s):
        assert budget.is_decode_lost(1.0, now + later_s, pace_s, tokens_left, step_s)
    elif now + step_s > 1.0 + 1e-9:
        end_s, last_due_s = now + (tokens_left + 1) * step_s, 1.0 + tokens_left * pace_s
        assert end_s <= last_due_s + 1e-9, "not lost means that the last token can still be on time"


@pytest.mark.parametrize(
    ("promise", "deadline_s"),
    [
        (Slo(), 63.0),
        (slo(ttft_s=2.0), 5.0),
        (slo(tpot_s=0.1), 63.0),
        (slo(e2e_s=4.0), 3.0 + 4.0 - 10 * 0.05),
        (slo(e2e_s=0.2), 3.0),
        (slo(ttft_s=2.0, e2e_s=2.1), 3.0 + 2.1 - 10 * 0.05),
    ],
)
def test_first_token_deadline(promise: Slo, deadline_s: float) -> None:
    """TTFT, or what an end-to-end deadline leaves before it, or patience: there always is one."""
    assert budget.first_token_deadline_s(promise, 3.0, 10, 0.05, 60.0) == pytest.approx(deadline_s)


@pytest.mark.parametrize(
    ("model", "pace_s", "tokens"),
    [(H100_8B, 0.05, 2516), (H100_8B, 0.1, 5519), (A100_14B, 0.05, 232), (A100_14B, 0.1, 733)],
)
def test_linear_step_budgets_of_known_gpus(model: LatencyModel, pace_s: float, tokens: int) -> None:
    """Prefill tokens beside 32 decodes of 1k context, derived from the same kernel-level fits (linear form)."""
    linear = LatencyModel(
        model.prefill_base_s, model.decode_base_s, model.prefill_token_s, 0.0, model.decode_seq_s, model.context_token_s
    )
    room_s = pace_s - linear.decode_step_s(32, 32 * 1024)
    assert linear.chunk_tokens(room_s, 0) == pytest.approx(tokens, rel=0.01)
    chunk = budget.chunk_between_decodes(linear, pace_s / budget.SAFETY, 32, 32 * 1024, (1, 8192))
    assert chunk == pytest.approx(tokens, rel=0.01)


MODELS = st.builds(
    LatencyModel,
    *[st.floats(0, 0.05)] * 2,
    st.floats(1e-6, 1e-3),
    st.floats(0, 1e-6),
    st.floats(0, 1e-3),
    st.floats(0, 1e-6),
)


@given(MODELS, st.floats(0.001, 1), st.integers(1, 100), st.integers(0, 2000))
def test_chunk_between_decodes_keeps_their_pace(model: LatencyModel, pace_s: float, seqs: int, each: int) -> None:
    """Above the floor, the mixed step stays within the safe share of the pace."""
    chunk = budget.chunk_between_decodes(model, pace_s, seqs, seqs * each, (64, 8192))
    assert 64 <= chunk <= 8192
    if chunk > 64:
        fixed_s = model.base_s(True, True) + model.decode_seq_s * seqs + model.context_token_s * seqs * each
        assert fixed_s + model.chunk_s(chunk, 0) <= budget.SAFETY * pace_s * (1 + 1e-9)


def test_prefill_is_stretched_by_what_each_step_pays_beside_it() -> None:
    assert budget.prefill_inflation(SIMPLE, 50, 5, 100) == pytest.approx((0.01 + 0.005 + 0.05) / 0.05)
    assert budget.prefill_inflation(LatencyModel(1, 1, 0, 0, 0, 0), 50, 5, 100) == 1.0


def test_no_promise_is_never_due() -> None:
    assert math.isinf(budget.first_token_deadline_s(Slo(), 0.0, 1, 0.1, math.inf))
