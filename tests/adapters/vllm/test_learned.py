"""A model of steps learned from outside: from a guess towards what is, and from many sizes to a fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.builders import H100_8B
from hyperflexis.adapters.vllm.learned import GUESS, RELEARN_STEPS, Learned
from hyperflexis.core.latency import LatencyModel, StepShape


def taught(learned: Learned, truth: LatencyModel, shapes: list[StepShape]) -> bool:
    """Whether one of so many lessons changed the model."""
    return sum(learned.observe(shape, truth.step_s(shape)) for shape in shapes) > 0


def decode(seqs: int, context: int = 400) -> StepShape:
    return StepShape(0, 0, seqs, seqs * context)


def test_guess_is_scaled_by_the_steps_that_were_seen() -> None:
    learned = Learned()
    assert learned.is_guess
    truth = replace(
        GUESS, decode_base_s=GUESS.decode_base_s / 4, decode_seq_s=GUESS.decode_seq_s / 4, context_token_s=0
    )
    assert not taught(learned, truth, [decode(8)] * (RELEARN_STEPS - 1))
    assert learned.model == GUESS
    assert taught(learned, truth, [decode(8)])
    assert learned.model.step_s(decode(8)) == pytest.approx(truth.step_s(decode(8)))
    prompt = StepShape(1000, 1_000_000)
    assert learned.model.step_s(prompt) == GUESS.step_s(prompt), "nothing was seen of prefills"


def test_many_sizes_are_fitted() -> None:
    learned, shapes = Learned(), []
    for power in range(5, 12):
        shapes += [StepShape(2**power, 4**power)] * 3 + [decode(2 ** (power - 4), 100 * power)] * 3
    shapes = shapes * (2 * RELEARN_STEPS // len(shapes) + 1)
    assert taught(learned, H100_8B, shapes)
    for shape in (StepShape(700, 490_000), decode(20, 700)):
        assert learned.model.step_s(shape) == pytest.approx(H100_8B.step_s(shape), rel=0.1)


def test_profile_is_fitted_from_the_start() -> None:
    samples = [(StepShape(n, n * n), H100_8B.step_s(StepShape(n, n * n))) for n in (64, 512, 2048)]
    samples += [(decode(n), H100_8B.step_s(decode(n))) for n in (1, 8, 64)]
    learned = Learned(samples)
    assert not learned.is_guess
    assert learned.model.step_s(decode(8)) == pytest.approx(H100_8B.step_s(decode(8)), rel=0.05)


def test_lesson_without_time_is_none() -> None:
    learned = Learned()
    assert not any(learned.observe(decode(1), 0.0) for _ in range(2 * RELEARN_STEPS))
