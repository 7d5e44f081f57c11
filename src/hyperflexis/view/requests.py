"""Requests that live, as far as can be seen: where each is, and how much time its promises leave."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hyperflexis.core.slo import Slo


class Place(Enum):
    """Where a request is."""

    __hash__ = object.__hash__  # Looked up for every request of every snapshot.

    HELD = "held"
    """At no instance, or on its way."""
    WAITING = "waiting"
    """At an instance, without KV or in the course of getting it."""
    DECODING = "decoding"
    STANDING = "standing"
    """At an instance, in none of its steps."""


@dataclass(slots=True, eq=False)
class LiveRequest:
    """One of them. Its tokens are counted by the steps of its instance, never one by one."""

    id: int
    service_class: str
    slo: Slo
    arrived_s: float
    prompt_tokens: int
    place: Place = Place.HELD
    instance_id: int | None = None
    has_kv: bool = False
    """Whether its prefill has begun where it is."""
    tokens_before: int = 0
    """Tokens of its answer before it decoded where it is."""
    joined: int = 0
    """Steps of its instance before it decoded there."""
    first_token_s: float | None = None

    def emitted(self, steps: float) -> float:
        """Tokens of its answer, after so many steps of its instance."""
        return self.tokens_before + steps - self.joined if self.place is Place.DECODING else self.tokens_before

    def slack_s(self, steps: float, now: float) -> float | None:
        """The time left before a promise breaks, if nothing is emitted until then; None where nothing is promised."""
        slo, slack_s = self.slo, None
        if self.first_token_s is None:
            if slo.ttft_s is not None:
                slack_s = self.arrived_s + slo.ttft_s - now
        elif slo.tpot_s is not None:
            # The mean that was promised counts from the first token: the next one is due after all there are.
            slack_s = self.first_token_s + slo.tpot_s * self.emitted(steps) - now
        if slo.e2e_s is not None:
            left_s = self.arrived_s + slo.e2e_s - now
            slack_s = left_s if slack_s is None else min(slack_s, left_s)
        return slack_s
