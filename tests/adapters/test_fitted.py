"""The fit of measured steps, and what it says of its own errors."""

from __future__ import annotations

from itertools import product

import pytest

from hyperflexis.adapters.fitted import HOLD_OUT_EVERY, KINDS, Fitted
from hyperflexis.adapters.native.calibration import Trial
from hyperflexis.adapters.native.profiling import FULL
from hyperflexis.core.latency import LatencyModel, Sample, StepShape

TRUE = LatencyModel(0.004, 0.003, 3e-5, 2e-9, 5e-5, 4e-7)
SHAPES = [trial.shape for trial in FULL.trials()]


def exact(shapes: list[StepShape]) -> list[Sample]:
    return [(shape, TRUE.step_s(shape)) for shape in shapes]


def test_model_is_found_from_the_steps_that_are_shown() -> None:
    fitted = Fitted.of(exact(SHAPES))
    for name in LatencyModel.__slots__:
        assert getattr(fitted.model, name) == pytest.approx(getattr(TRUE, name), rel=1e-6)
    for held_out, kind in product((False, True), (*KINDS, None)):
        error = fitted.error(held_out=held_out, kind=kind)
        assert error is not None
        assert error.mape <= error.p90 < 1e-6


def test_every_fifth_of_each_kind_is_held_out() -> None:
    fitted = Fitted.of(exact(SHAPES))
    for kind in KINDS:
        hidden = [
            is_held_out
            for (shape, _), is_held_out in zip(fitted.samples, fitted.is_held_out, strict=True)
            if shape.kind == kind
        ]
        assert hidden == [index % HOLD_OUT_EVERY == 2 for index in range(len(hidden))]


def test_what_is_held_out_does_not_move_the_fit() -> None:
    plain = Fitted.of(exact(SHAPES))
    disturbed = Fitted.of(
        [
            (shape, actual_s * (1.5 if is_held_out else 1.0))
            for (shape, actual_s), is_held_out in zip(plain.samples, plain.is_held_out, strict=True)
        ]
    )
    assert disturbed.model == plain.model
    error = disturbed.error(held_out=True)
    assert error is not None
    assert error.mape == pytest.approx(1 / 3)
    assert error.p90 == pytest.approx(1 / 3)
    assert error.steps == sum(plain.is_held_out)


def test_without_steps_of_a_kind_it_says_nothing_of_their_error() -> None:
    fitted = Fitted.of(exact([Trial(1, 16).shape, Trial(decode_seqs=2, context_tokens=8).shape]))
    assert fitted.error(held_out=False, kind="mixed") is None
    assert fitted.error(held_out=True) is None


@pytest.mark.parametrize(
    ("trials", "missing"),
    [
        ([], "no decode and no prefill step"),
        ([Trial(1, 16), Trial(1, 32)], "no decode step"),
        ([Trial(decode_seqs=1, context_tokens=8)], "no prefill step"),
    ],
)
def test_a_model_of_half_the_steps_is_refused(trials: list[Trial], missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        Fitted.of(exact([trial.shape for trial in trials]))
