"""How long the steps of a vLLM server take, learned from outside: only from what can have been nothing but one step.

A black box does not say what is in its steps. Two kinds of them can be told all the same: the interval between two
tokens of all streams while none of them waited for its first one was a step of decodes, of a size that we know; and the
time to the first token of a request that was there alone was its prefill. Everything else teaches nothing.

Begins with a profile's samples, or with a guess. A guess is not fitted again from a few kinds of steps: it is scaled,
prefills and decodes each by what they were found to take.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from hyperflexis.core.latency import LatencyModel, Sample, StepHistory, StepShape, fit

GUESS = LatencyModel(
    prefill_base_s=0.015,
    decode_base_s=0.015,
    prefill_token_s=60e-6,
    prefill_pair_s=1e-9,
    decode_seq_s=60e-6,
    context_token_s=60e-9,
)
"""Believed of an unknown server, until it has shown better: about an 8B model on one A100, and rather slower."""
RELEARN_STEPS = 64
"""So many lessons after each other make a new model."""
KINDS_MIN = 6
"""So many different sizes of prefills, and of decodes, are needed to fit all six coefficients."""


class Learned:
    """The present model, and the lessons so far."""

    def __init__(self, samples: Sequence[Sample] = ()) -> None:
        """`samples` are a profile's."""
        self.model = fit(samples) if samples else GUESS
        self._profile = list(samples)
        self._history = StepHistory(samples)
        self._lessons = 0

    @property
    def is_guess(self) -> bool:
        return not self._profile

    def observe(self, shape: StepShape, actual_s: float) -> bool:
        """Take a lesson; returns whether the model is another one now."""
        if actual_s <= 0:
            return False
        self._history.add(shape, actual_s)
        self._lessons += 1
        if self._lessons % RELEARN_STEPS:
            return False
        self.model = self._relearned()
        return True

    def _relearned(self) -> LatencyModel:
        samples = self._history.samples()
        sizes = {kind: {_size(shape) for shape, _ in samples if shape.kind == kind} for kind in ("prefill", "decode")}
        if min(map(len, sizes.values())) >= KINDS_MIN:
            return fit(samples)
        return _scaled(self.model, samples)


def _size(shape: StepShape) -> tuple[int, ...]:
    return tuple(quantity.bit_length() for quantity in shape)


def _scaled(model: LatencyModel, samples: Sequence[Sample]) -> LatencyModel:
    """The model with each kind of step as much slower or faster as it was found to be."""
    ratios: dict[str, list[float]] = {"prefill": [], "decode": []}
    for shape, actual_s in samples:
        if shape.kind in ratios:
            ratios[shape.kind].append(actual_s / model.step_s(shape))
    prefill, decode = (statistics.median(found) if found else 1.0 for found in ratios.values())
    return replace(
        model,
        prefill_base_s=model.prefill_base_s * prefill,
        prefill_token_s=model.prefill_token_s * prefill,
        prefill_pair_s=model.prefill_pair_s * prefill,
        decode_base_s=model.decode_base_s * decode,
        decode_seq_s=model.decode_seq_s * decode,
        context_token_s=model.context_token_s * decode,
    )
