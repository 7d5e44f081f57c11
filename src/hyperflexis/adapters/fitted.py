"""A latency model fitted to measured steps, and how far it is off, also on steps that it has not seen.

Every fifth step of each kind is held out of the fit. Knows neither what measured the steps nor where the result goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hyperflexis.core.latency import LatencyModel, Sample, fit

KINDS = ("prefill", "decode", "mixed")
HOLD_OUT_EVERY = 5


class Error(NamedTuple):
    """Relative errors of some predictions, as shares of what was measured."""

    mape: float
    """Their mean."""
    p90: float
    steps: int
    median: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """Make with `of`."""

    model: LatencyModel
    samples: Sequence[Sample]
    is_held_out: Sequence[bool]
    """For each sample."""

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Fitted:
        """Fit a model to all samples but those that are held out.

        Raises:
            ValueError: without steps of prefill or of decode it would say nothing of them.
        """
        missing = {"prefill", "decode"} - {shape.kind for shape, _ in samples}
        if missing:
            raise ValueError(f"no {' and no '.join(sorted(missing))} step was measured")
        is_held_out = _hold_out(samples)
        shown = [sample for sample, is_hidden in zip(samples, is_held_out, strict=True) if not is_hidden]
        return cls(fit(shown), samples, is_held_out)

    def error(self, *, held_out: bool, kind: str | None = None) -> Error | None:
        """The errors on one part of the samples, of one kind or of all; None where there are none."""
        errors = [
            abs(self.model.step_s(shape) / actual_s - 1)
            for (shape, actual_s), is_hidden in zip(self.samples, self.is_held_out, strict=True)
            if is_hidden == held_out and kind in (None, shape.kind)
        ]
        if not errors:
            return None
        return Error(float(np.mean(errors)), float(np.quantile(errors, 0.9)), len(errors), float(np.median(errors)))


def _hold_out(samples: Sequence[Sample]) -> list[bool]:
    """The middle one of every five of a kind: neither the first nor, mostly, the last, which would extrapolate."""
    seen: Counter[str] = Counter()
    held_out = []
    for shape, _ in samples:
        held_out.append(seen[shape.kind] % HOLD_OUT_EVERY == HOLD_OUT_EVERY // 2)
        seen[shape.kind] += 1
    return held_out
