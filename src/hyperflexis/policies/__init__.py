"""Policies by name. A new one is one file here and one line in `POLICIES`."""

from __future__ import annotations

from collections.abc import Callable

from hyperflexis.core.control import Policy
from hyperflexis.policies import hyperflexis, round_robin

POLICIES: dict[str, Callable[[int], Policy]] = {
    "hyperflexis": hyperflexis.policy,
    "round_robin": round_robin.policy,
}
"""Each takes the most prefill tokens that a step may have and returns a fresh policy."""


def create(name: str, prefill_tokens_max: int) -> Policy:
    """A fresh policy by its name.

    Raises:
        ValueError: there is none of that name; the message lists those there are.
    """
    try:
        return POLICIES[name](prefill_tokens_max)
    except KeyError:
        raise ValueError(f"unknown policy {name!r}; there are: {', '.join(sorted(POLICIES))}") from None
