"""Ours: dispatch by what would become of the request and its neighbours, steps sized by the tightest slack."""

from __future__ import annotations

from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import SloDispatcher
from hyperflexis.core.step import StepRules


def policy(prefill_tokens_max: int) -> Policy:
    return Policy("hyperflexis", SloDispatcher(), StepRules(prefill_tokens_max=prefill_tokens_max))
