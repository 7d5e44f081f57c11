"""How long a step takes: predict, fit, correct.

With N prefill tokens, A prefill pairs (sum of n^2 + 2nc over chunks of n new tokens on c prior ones), B decodes and S
tokens of their contexts:

    prefill step   t = t0p + alpha N + beta A
    decode step    t = t0d + gamma B + delta S
    mixed step     t = max(t0p, t0d) + alpha N + beta A + gamma B + delta S

n^2 + 2nc = (c+n)^2 - c^2 telescopes, so any cutting of a prompt with h cached tokens has A = p^2 - h^2 in all: only
the number of steps depends on the cutting. The shape is common to predictor-based schedulers, the coefficients are
measured.
Knows nothing of requests or promises. All times are seconds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class StepShape(NamedTuple):
    """What a step computes, in the four quantities that its time depends on."""

    prefill_tokens: int = 0
    prefill_pairs: int = 0
    decode_seqs: int = 0
    context_tokens: int = 0

    @property
    def kind(self) -> str:
        if not self.prefill_tokens:
            return "decode"
        return "mixed" if self.decode_seqs else "prefill"


def chunk_pairs(chunk_tokens: int, prior_tokens: int) -> int:
    """The A of one chunk."""
    return chunk_tokens * (chunk_tokens + 2 * prior_tokens)


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Six non-negative coefficients, seconds.

    Raises:
        ValueError: a coefficient is negative or not finite; the message names it.
    """

    prefill_base_s: float
    decode_base_s: float
    prefill_token_s: float
    prefill_pair_s: float
    decode_seq_s: float
    context_token_s: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{field.name} must be a non-negative number of seconds, not {value!r}")

    def base_s(self, has_prefill: bool, has_decode: bool) -> float:
        """The fixed part of a step."""
        if not has_prefill:
            return self.decode_base_s if has_decode else 0.0
        return max(self.prefill_base_s, self.decode_base_s) if has_decode else self.prefill_base_s

    def step_s(self, shape: StepShape) -> float:
        tokens, pairs, seqs, context = shape
        return (
            self.base_s(tokens > 0, seqs > 0)
            + self.prefill_token_s * tokens
            + self.prefill_pair_s * pairs
            + self.decode_seq_s * seqs
            + self.context_token_s * context
        )

    def decode_step_s(self, seqs: int, context_tokens: float) -> float:
        """A step of decodes alone; 0 without any."""
        if seqs <= 0:
            return 0.0
        return self.decode_base_s + self.decode_seq_s * seqs + self.context_token_s * context_tokens

    def chunk_s(self, chunk_tokens: int, prior_tokens: int) -> float:
        """What a chunk adds to a step, without the fixed part."""
        return self.prefill_token_s * chunk_tokens + self.prefill_pair_s * chunk_pairs(chunk_tokens, prior_tokens)

    def chunk_tokens(self, room_s: float, prior_tokens: int) -> int:
        """The largest chunk on `prior_tokens` that adds no more than `room_s`: the inverse of `chunk_s`."""
        if room_s <= 0:
            return 0
        linear = self.prefill_token_s + 2 * self.prefill_pair_s * prior_tokens
        square = self.prefill_pair_s
        if linear + square == 0:
            return _TOKENS_MAX
        # The larger root of square n^2 + linear n = room, in the form that does not cancel for small squares.
        divisor = linear + math.sqrt(linear * linear + 4 * square * room_s)
        tokens = 2 * room_s / divisor if divisor > 0 else 0.0
        whole = min(_TOKENS_MAX, int(tokens))
        # The root rounds either way by an ulp; a chunk must never exceed its room, nor leave room for one token more.
        if self.chunk_s(whole, prior_tokens) > room_s:
            return whole - 1
        return whole + (whole < _TOKENS_MAX and self.chunk_s(whole + 1, prior_tokens) <= room_s)

    def prefill_s(
        self, prompt_tokens: int, cached_tokens: int, chunk_tokens: int, seqs: int = 0, context_tokens: float = 0
    ) -> float:
        """A whole prefill in chunks of `chunk_tokens` beside a constant decode load."""
        fresh = prompt_tokens - cached_tokens
        steps = math.ceil(fresh / chunk_tokens)
        fixed = self.base_s(True, seqs > 0) + self.decode_seq_s * seqs + self.context_token_s * context_tokens
        pairs = prompt_tokens**2 - cached_tokens**2
        return steps * fixed + self.prefill_token_s * fresh + self.prefill_pair_s * pairs


_TOKENS_MAX = 1 << 30


class Correction:
    """How much longer steps of each kind take than predicted: an EWMA of actual / predicted, clamped.

    The clamp keeps one stalled step (a page fault, a busy neighbour) from poisoning every later budget.
    """

    WEIGHT = 0.1
    CLAMP = (0.5, 2.0)

    def __init__(self) -> None:
        self._factor = {"prefill": 1.0, "decode": 1.0, "mixed": 1.0}

    def factor(self, kind: str) -> float:
        return self._factor[kind]

    def observe(self, kind: str, predicted_s: float, actual_s: float) -> float:
        """Returns the factor that this makes."""
        factor = self._factor[kind]
        if predicted_s > 0:
            low, high = self.CLAMP
            ratio = min(high, max(low, actual_s / predicted_s))
            factor += self.WEIGHT * (ratio - factor)
            self._factor[kind] = factor
        return factor


Sample = tuple[StepShape, float]
"""A step and how long it took."""


class StepHistory:
    """The latest few steps of every shape, shapes being told apart by the powers of two of their quantities.

    A plain window would forget what a prefill costs while nothing but decodes runs; this one never does. Begins with
    the samples of a calibration, which newer steps of like shape then replace.
    """

    DEPTH = 4

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self._latest: dict[tuple[int, ...], deque[Sample]] = {}
        for shape, actual_s in samples:
            self.add(shape, actual_s)

    def add(self, shape: StepShape, actual_s: float) -> None:
        key = (shape.prefill_tokens.bit_length(), shape.decode_seqs.bit_length(), shape.context_tokens.bit_length())
        self._latest.setdefault(key, deque(maxlen=self.DEPTH)).append((shape, actual_s))

    def samples(self) -> list[Sample]:
        return [sample for latest in self._latest.values() for sample in latest]


class OnlineLatency:
    """A model and its correction: what one instance is believed to take now.

    With a history it is fitted again every `REFIT_STEPS` steps, so that a poor calibration or a changed machine does
    not stay for ever; the correction takes care of what changes faster.
    """

    REFIT_STEPS = 64

    def __init__(self, model: LatencyModel, history: StepHistory | None = None) -> None:
        self.model = model
        self.correction = Correction()
        self._history = history
        self._steps = 0

    def step_s(self, shape: StepShape) -> float:
        return self.model.step_s(shape) * self.correction.factor(shape.kind)

    def decode_step_s(self, seqs: int, context_tokens: float) -> float:
        return self.model.decode_step_s(seqs, context_tokens) * self.correction.factor("decode")

    def observe(self, shape: StepShape, actual_s: float) -> bool:
        """Learn from a step; returns whether the model is another one now."""
        self.expect_like(shape, actual_s)
        if self._history is None:
            return False
        self._history.add(shape, actual_s)
        self._steps += 1
        if self._steps % self.REFIT_STEPS:
            return False
        self.adopt(fit(self._history.samples()))
        return True

    def expect_like(self, shape: StepShape, actual_s: float) -> float:
        """Learn from a step, but for the model itself; returns what another step like it should take."""
        predicted_s = self.model.step_s(shape)
        return predicted_s * self.correction.observe(shape.kind, predicted_s, actual_s)

    def adopt(self, model: LatencyModel) -> None:
        """Believe this model from now on, and nothing of what the old one had to be corrected by."""
        self.model = model
        self.correction = Correction()


def fit(samples: Sequence[Sample]) -> LatencyModel:
    """Least squares on relative errors with non-negative coefficients.

    Mixed steps carry max(t0p, t0d), which is not linear: both cases are fitted, and the one that explains the samples
    better is taken. (A fit may well agree with the case that it assumed and be the wrong one.)

    Raises:
        ValueError: fewer than two samples, or a time that is not positive.
    """
    if len(samples) < 2:
        raise ValueError(f"a latency fit needs at least two samples, not {len(samples)}")
    if any(not (math.isfinite(actual_s) and actual_s > 0) for _, actual_s in samples):
        raise ValueError("a latency fit needs positive step times")
    models = [_fit_given(samples, decode_dominates) for decode_dominates in (True, False)]
    return min(models, key=lambda model: sum((model.step_s(shape) / actual_s - 1) ** 2 for shape, actual_s in samples))


def _fit_given(samples: Sequence[Sample], decode_dominates: bool) -> LatencyModel:
    rows = np.array([_row(shape, decode_dominates) for shape, _ in samples], dtype=np.float64)
    times = np.array([actual_s for _, actual_s in samples], dtype=np.float64)
    # Dividing each row by its time makes errors relative: a 2 ms step counts as much as a 200 ms one.
    coefficients = nonnegative_least_squares(rows / times[:, None], np.ones(len(samples)))
    return LatencyModel(*(float(value) for value in coefficients))


def _row(shape: StepShape, decode_dominates: bool) -> tuple[float, ...]:
    tokens, pairs, seqs, context = shape
    kind = shape.kind
    is_decode_base = kind == "decode" or (kind == "mixed" and decode_dominates)
    return (float(not is_decode_base), float(is_decode_base), tokens, pairs, seqs, context)


def nonnegative_least_squares(matrix: Floats, target: Floats) -> Floats:
    """Minimise |matrix x - target| over x >= 0, by the active-set method of Lawson and Hanson (1974), chapter 23.

    Shapes: matrix [m, n], target [m], result [n]. Columns are scaled to unit length first, for conditioning.
    """
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0
    scaled = matrix / scale
    count = scaled.shape[1]
    solution = np.zeros(count)
    passive = np.zeros(count, dtype=bool)
    tolerance = 1e-10 * max(1.0, float(np.abs(scaled.T @ target).max(initial=0.0)))
    for _ in range(10 * count):
        gradient = scaled.T @ (target - scaled @ solution)
        gradient[passive] = -np.inf
        entering = int(np.argmax(gradient))
        if passive.all() or gradient[entering] <= tolerance:
            break
        passive[entering] = True
        solution = _feasible_step(scaled, target, solution, passive)
    result: Floats = solution / scale
    return result


def _feasible_step(matrix: Floats, target: Floats, start: Floats, passive: npt.NDArray[np.bool_]) -> Floats:
    """Move from `start` towards the unconstrained optimum on the passive set, dropping what would turn negative."""
    solution = start
    while passive.any():
        optimum = np.zeros_like(start)
        optimum[passive] = np.linalg.lstsq(matrix[:, passive], target, rcond=None)[0]
        if (optimum[passive] > 0).all():
            return optimum
        blocking = passive & (optimum <= 0)
        shares = solution[blocking] / (solution[blocking] - optimum[blocking])
        solution = solution + float(shares.min()) * (optimum - solution)
        passive &= solution > 1e-14
        solution[~passive] = 0.0
    return np.zeros_like(start)
