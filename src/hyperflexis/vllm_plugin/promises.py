"""Promises as they come to vLLM: numbers beside a request's sampling parameters (`vllm_xargs` in a body over HTTP).

vLLM has no fields for them; what it does not know there, it carries along unread. All are seconds from the request's
arrival at this engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hyperflexis.core.slo import Slo
from hyperflexis.wire.promises import DEADLINE, TPOT, TTFT


def promised(extra_args: Mapping[str, Any] | None) -> Slo:
    """Read the promises; without any, an SLO without targets.

    Raises:
        ValueError: one is no positive number; says which.
    """
    if not extra_args:
        return Slo()
    return Slo(*(_seconds(name, extra_args.get(name)) for name in (TTFT, TPOT, DEADLINE)))


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{name} must be a positive number of seconds, not {value!r}")
    return seconds
