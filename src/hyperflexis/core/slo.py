"""Promises: what a request was promised, what it got, and whether that kept the promise.

Metrics are the field's own. With arrival a, first token f, last token l and n tokens:

    ttft = f - a        tpot = (l - f) / (n - 1), undefined for one token        e2e = l - a

A request attains its SLO if every target that exists is met. Knows nothing of how promises are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Slo:
    """Targets in seconds; None means that nothing was promised.

    Raises:
        ValueError: a target is not a positive finite number.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s", "e2e_s"):
            target = getattr(self, name)
            if target is not None and not (math.isfinite(target) and target > 0):
                raise ValueError(f"{name} must be a positive number of seconds, not {target!r}")


@dataclass(frozen=True, slots=True)
class ServiceClass:
    """A named SLO and priority that many requests share. Higher priorities are more important."""

    name: str
    slo: Slo = field(default_factory=Slo)
    priority: int = 0
    refuses_late: bool = False
    """Whether its clients rather hear no at once than yes too late."""


class Timeline(NamedTuple):
    """The instants of one finished request, seconds on the core's clock, and what had been predicted of it."""

    arrived_s: float
    dispatched_s: float
    prefill_started_s: float
    first_token_s: float
    last_token_s: float
    tokens: int
    predicted_ttft_s: float | None
    predicted_tpot_s: float | None

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.arrived_s

    @property
    def tpot_s(self) -> float | None:
        if self.tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.tokens - 1)

    @property
    def e2e_s(self) -> float:
        return self.last_token_s - self.arrived_s


class Verdict(NamedTuple):
    """What a client is told about its request: promised, predicted, actual, and where the time went."""

    service_class: str
    priority: int
    slo: Slo
    timeline: Timeline
    instance: str
    migrations: int = 0
    """Times the request was moved, or dispatched again after it had begun."""

    @property
    def ttft_met(self) -> bool | None:
        return _met(self.timeline.ttft_s, self.slo.ttft_s)

    @property
    def tpot_met(self) -> bool | None:
        return _met(self.timeline.tpot_s, self.slo.tpot_s)

    @property
    def e2e_met(self) -> bool | None:
        return _met(self.timeline.e2e_s, self.slo.e2e_s)

    @property
    def attained(self) -> bool:
        """Whether no promise was broken. A request without promises attains."""
        return False not in (self.ttft_met, self.tpot_met, self.e2e_met)


def _met(actual_s: float | None, target_s: float | None) -> bool | None:
    """None where nothing was promised; a one-token answer has no tpot and so keeps any."""
    if target_s is None:
        return None
    return actual_s is None or actual_s <= target_s
