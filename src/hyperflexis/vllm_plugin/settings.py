"""What the operator says to the scheduler: `--additional-config '{"hyperflexis": {...}}'`, the part below that key.

profile              a file of `hyperflexis profile`, so that nothing has to be learnt first
patience_s           when work without a promise is due at the latest, after its arrival
prefill_tokens_floor tokens that the first prefill gets in every step, however tight the decodes are
starvation_s         how late the latest may become before it is let in ahead of all, by that many tokens a step
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from hyperflexis.core.latency import Sample, StepShape
from hyperflexis.core.step import StepRules

KEY = "hyperflexis"


class _Given(msgspec.Struct, forbid_unknown_fields=True):
    profile: str | None = None
    patience_s: float = 60.0
    prefill_tokens_floor: int = 64
    starvation_s: float = 30.0


class _Profile(msgspec.Struct):
    samples: list[tuple[tuple[int, int, int, int], float]] = []


class Settings(NamedTuple):
    rules: StepRules
    samples: list[Sample]


def settings(additional: Mapping[str, Any] | None, prefill_tokens_max: int) -> Settings:
    """Read them; `prefill_tokens_max` is the engine's own bound.

    Raises:
        ValueError: they, or the profile that they name, are no good; says what.
    """
    try:
        given = msgspec.convert((additional or {}).get(KEY, {}), _Given)
        rules = StepRules(
            prefill_tokens_max=prefill_tokens_max,
            prefill_tokens_floor=given.prefill_tokens_floor,
            patience_s=given.patience_s,
            starvation_s=given.starvation_s,
        )
    except (msgspec.ValidationError, ValueError) as error:
        raise ValueError(f"additional_config[{KEY!r}]: {error}") from error
    return Settings(rules, [] if given.profile is None else _samples(Path(given.profile)))


def _samples(path: Path) -> list[Sample]:
    try:
        rows = msgspec.json.decode(path.read_bytes(), type=_Profile).samples
    except (OSError, msgspec.DecodeError) as error:
        raise ValueError(f"additional_config[{KEY!r}]: {path} is no profile: {error}") from error
    if not rows:
        raise ValueError(f"additional_config[{KEY!r}]: {path} holds no measured steps")
    return [(StepShape(*shape), actual_s) for shape, actual_s in rows]
