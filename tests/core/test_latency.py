"""Predict, invert, fit and correct step times."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers.builders import A100_14B, H100_8B, SIMPLE
from hyperflexis.core.latency import (
    Correction,
    LatencyModel,
    OnlineLatency,
    Sample,
    StepShape,
    chunk_pairs,
    fit,
    nonnegative_least_squares,
)

COEFFICIENTS = st.one_of(st.just(0.0), st.floats(1e-9, 1e-2))
MODELS = st.builds(
    LatencyModel,
    prefill_base_s=st.floats(0, 0.1),
    decode_base_s=st.floats(0, 0.1),
    prefill_token_s=COEFFICIENTS,
    prefill_pair_s=st.one_of(st.just(0.0), st.floats(1e-12, 1e-4)),
    decode_seq_s=COEFFICIENTS,
    context_token_s=COEFFICIENTS,
)

# Predict.


@pytest.mark.parametrize(
    ("shape", "expected_s"),
    [
        (StepShape(), 0.0),
        (StepShape(prefill_tokens=10, prefill_pairs=100), 0.003 + 10 * 0.001 + 100 * 1e-5),
        (StepShape(decode_seqs=3, context_tokens=50), 0.005 + 3 * 0.002 + 50 * 1e-4),
        (StepShape(10, 100, 3, 50), 0.005 + 0.011 + 0.011),
    ],
)
def test_step_is_its_base_and_its_parts(shape: StepShape, expected_s: float) -> None:
    """A mixed step pays the larger of the two bases, once."""
    model = LatencyModel(0.003, 0.005, 0.001, 1e-5, 0.002, 1e-4)
    assert model.step_s(shape) == pytest.approx(expected_s, rel=1e-12)


def test_kind_is_what_the_step_holds() -> None:
    shapes = [StepShape(1, 1), StepShape(0, 0, 1, 5), StepShape(1, 1, 1, 5)]
    assert [shape.kind for shape in shapes] == ["prefill", "decode", "mixed"]


@pytest.mark.parametrize(
    ("seqs", "context", "measured_ms"), [(1, 1024, 6.18), (32, 1024, 8.33), (128, 1024, 12.84), (32, 4096, 12.35)]
)
def test_decode_steps_of_a_known_gpu(seqs: int, context: int, measured_ms: float) -> None:
    """The kernel database's own values for Llama-3.1-8B on H100, which the coefficients fit within 5 %."""
    assert H100_8B.decode_step_s(seqs, seqs * context) * 1000 == pytest.approx(measured_ms, rel=0.05)


@pytest.mark.parametrize(("tokens", "measured_ms"), [(128, 7.6), (512, 12.0), (2048, 43.5), (8192, 199.7)])
def test_prefills_of_a_known_gpu(tokens: int, measured_ms: float) -> None:
    """The same for a whole prompt in one step; the fit's worst point is 12 % off."""
    shape = StepShape(tokens, chunk_pairs(tokens, 0))
    assert H100_8B.step_s(shape) * 1000 == pytest.approx(measured_ms, rel=0.13)


def test_no_decodes_take_no_time() -> None:
    assert H100_8B.decode_step_s(0, 0) == 0.0


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf])
def test_coefficient_that_is_no_time_is_refused_by_name(value: float) -> None:
    with pytest.raises(ValueError, match="prefill_pair_s must be a non-negative number"):
        LatencyModel(0, 0, 0, value, 0, 0)


@given(MODELS, st.integers(0, 500), st.lists(st.integers(1, 300), min_size=1, max_size=8))
def test_cutting_a_prompt_changes_only_the_number_of_steps(model: LatencyModel, cached: int, chunks: list[int]) -> None:
    """Pairs telescope: the chunks' own parts add up to the whole prompt's, wherever it is cut."""
    prior, total_s, pairs = cached, 0.0, 0
    for tokens in chunks:
        total_s += model.chunk_s(tokens, prior)
        pairs += chunk_pairs(tokens, prior)
        prior += tokens
    assert pairs == prior**2 - cached**2
    assert total_s == pytest.approx(model.chunk_s(prior - cached, cached), rel=1e-9, abs=1e-15)


@given(MODELS, st.integers(0, 200), st.integers(1, 400), st.integers(1, 100), st.integers(0, 5))
def test_prefill_is_the_sum_of_its_steps(model: LatencyModel, cached: int, fresh: int, chunk: int, seqs: int) -> None:
    context = 30 * seqs
    total_s, prior, end = 0.0, cached, cached + fresh
    while prior < end:
        tokens = min(chunk, end - prior)
        total_s += model.step_s(StepShape(tokens, chunk_pairs(tokens, prior), seqs, context))
        prior += tokens
    assert model.prefill_s(end, cached, chunk, seqs, context) == pytest.approx(total_s, rel=1e-9, abs=1e-12)


# Invert.


@settings(max_examples=1000)
@given(MODELS, st.floats(0, 10), st.integers(0, 100_000))
@example(SIMPLE, 0.081, 0)
@example(SIMPLE, 0.003, 0)
@example(LatencyModel(0, 0, 0.1, 0, 0, 0), 0.3, 0)
def test_chunk_is_the_largest_that_fits(model: LatencyModel, room_s: float, prior: int) -> None:
    """It never exceeds the room, and one token more would."""
    tokens = model.chunk_tokens(room_s, prior)
    assert tokens >= 0
    if tokens:
        assert model.chunk_s(tokens, prior) <= room_s
    if tokens < 1 << 30:
        assert room_s == 0 or model.chunk_s(tokens + 1, prior) > room_s


@settings(max_examples=500)
@given(MODELS, st.integers(1, 100_000), st.integers(0, 100_000))
def test_room_of_exactly_one_chunk_holds_that_chunk(model: LatencyModel, tokens: int, prior: int) -> None:
    room_s = model.chunk_s(tokens, prior)
    if room_s > model.chunk_s(tokens - 1, prior):
        assert model.chunk_tokens(room_s, prior) == tokens


def test_free_prefill_has_no_bound_and_no_room_has_no_chunk() -> None:
    free = LatencyModel(0, 0, 0, 0, 0, 0)
    assert free.chunk_tokens(1.0, 0) == 1 << 30
    assert SIMPLE.chunk_tokens(0.0, 0) == 0
    assert SIMPLE.chunk_tokens(-1.0, 0) == 0


# Fit.


def shapes(rng: np.random.Generator, count: int = 40) -> list[StepShape]:
    """Steps of all three kinds, as a calibration runs them."""
    made = []
    for i in range(count):
        tokens, prior = int(rng.integers(1, 2048)), int(rng.integers(0, 2048))
        seqs = int(rng.integers(1, 64))
        context = seqs * int(rng.integers(16, 2048))
        prefill = (tokens, chunk_pairs(tokens, prior)) if i % 3 != 1 else (0, 0)
        decode = (seqs, context) if i % 3 != 0 else (0, 0)
        made.append(StepShape(*prefill, *decode))
    return made


def random_model(rng: np.random.Generator) -> LatencyModel:
    """Sizes as on real devices; every coefficient may be nothing."""
    sizes = np.array([2e-2, 2e-2, 1e-4, 1e-8, 1e-4, 1e-7])
    return LatencyModel(*(float(x) for x in sizes * rng.random(6) * (rng.random(6) > 0.2)))


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1))
def test_fit_recovers_a_model_from_exact_times(seed: int) -> None:
    """Whichever of the two bases is the larger one, which mixed steps alone can tell."""
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    samples = [(shape, model.step_s(shape)) for shape in shapes(rng)]
    if any(time_s <= 0 for _, time_s in samples):
        return
    fitted = fit(samples)
    for shape, time_s in samples:
        assert fitted.step_s(shape) == pytest.approx(time_s, rel=1e-6)
    assert astuple(fitted) == pytest.approx(astuple(model), rel=1e-4, abs=1e-11)


@given(st.integers(0, 2**32 - 1))
def test_fit_of_noisy_times_is_near_and_never_negative(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    samples: list[Sample] = [
        (shape, model.step_s(shape) * float(rng.uniform(0.97, 1.03)) + 1e-4) for shape in shapes(rng, 90)
    ]
    fitted = fit(samples)
    assert min(astuple(fitted)) >= 0
    errors = [abs(fitted.step_s(shape) / time_s - 1) for shape, time_s in samples]
    assert float(np.mean(errors)) < 0.03


def test_fit_finds_the_bases_of_real_devices() -> None:
    for model in (H100_8B, A100_14B):
        rng = np.random.default_rng(1)
        samples = [(shape, model.step_s(shape)) for shape in shapes(rng)]
        assert astuple(fit(samples)) == pytest.approx(astuple(model), rel=1e-6)


def test_fit_refuses_what_it_cannot_use() -> None:
    shape = StepShape(1, 1)
    with pytest.raises(ValueError, match="at least two samples, not 1"):
        fit([(shape, 1.0)])
    for time_s in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive step times"):
            fit([(shape, 1.0), (shape, time_s)])


def check_optimal(matrix: np.ndarray, target: np.ndarray, solution: np.ndarray) -> None:
    """Karush, Kuhn, Tucker: feasible, no gradient where free, none that would help where bound."""
    assert (solution >= 0).all()
    gradient = matrix.T @ (target - matrix @ solution)
    scale = np.linalg.norm(matrix, axis=0) * max(1.0, float(np.linalg.norm(target))) + 1e-30
    assert (gradient / scale <= 1e-7).all()
    assert (np.abs(gradient / scale)[solution > 0] <= 1e-7).all()


@settings(max_examples=300)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.integers(1, 6),
    st.sampled_from(["plain", "scaled", "equal columns", "zero column", "small integers"]),
)
def test_nonnegative_least_squares_is_optimal(seed: int, rows: int, columns: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(rows, columns))
    if kind == "scaled":
        matrix = np.abs(matrix) * 10.0 ** rng.integers(-4, 9, size=columns)
    elif kind == "equal columns":
        matrix[:, -1] = matrix[:, 0]
    elif kind == "zero column":
        matrix[:, 0] = 0
    elif kind == "small integers":
        matrix = rng.integers(-1, 3, size=(rows, columns)).astype(float)
    target = rng.normal(size=rows) if kind != "small integers" else rng.integers(-2, 3, size=rows).astype(float)
    check_optimal(matrix, target, nonnegative_least_squares(matrix, target))


# Correct.


def test_correction_moves_a_tenth_of_the_way() -> None:
    correction = Correction()
    correction.observe("decode", 1.0, 1.5)
    assert correction.factor("decode") == pytest.approx(1.05)
    assert correction.factor("mixed") == correction.factor("prefill") == 1.0


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1e6)), max_size=50))
def test_correction_stays_within_its_clamp(observations: list[tuple[float, float]]) -> None:
    correction = Correction()
    for predicted_s, actual_s in observations:
        correction.observe("mixed", predicted_s, actual_s)
        assert 0.5 <= correction.factor("mixed") <= 2.0


def test_one_stalled_step_changes_little() -> None:
    correction = Correction()
    correction.observe("mixed", 0.01, 60.0)
    assert correction.factor("mixed") == pytest.approx(1.1)


def test_online_latency_learns_each_kind_by_itself() -> None:
    latency = OnlineLatency(SIMPLE)
    shape = StepShape(0, 0, 4, 100)
    for _ in range(200):
        latency.observe(shape, 1.3 * SIMPLE.step_s(shape))
    assert latency.step_s(shape) == pytest.approx(1.3 * SIMPLE.step_s(shape))
    assert latency.decode_step_s(4, 100) == pytest.approx(1.3 * SIMPLE.decode_step_s(4, 100))
    assert latency.step_s(StepShape(5, 25)) == SIMPLE.step_s(StepShape(5, 25))
