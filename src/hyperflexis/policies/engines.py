"""What runs inside the instances under policies that say nothing about it, by name.

    first_come   as vLLM by default: decodes, then prefill chunks in order of arrival, up to a fixed number of tokens
    priority     as vLLM with its priority scheduling: the same, higher priorities first
    ours         fewest late, and chunks as large as the tightest decode can bear

The published rivals that only choose an instance were all shown on engines of the first kind, so that is their default;
the third kind tells what their choice of an instance is worth by itself. Knows nothing of that choice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hyperflexis.core.step import StepRules

Value = TypeVar("Value")

ENGINES: dict[str, Callable[[int], StepRules]] = {
    "first_come": lambda tokens: StepRules("arrival", "fixed", prefill_tokens_max=tokens),
    "priority": lambda tokens: StepRules("priority", "fixed", prefill_tokens_max=tokens),
    "ours": lambda tokens: StepRules(prefill_tokens_max=tokens),
}


def rules(engine: str, prefill_tokens_max: int, chunk: int) -> StepRules:
    """The rules of an engine, of which a step takes up to `chunk` prefill tokens; 0 is `prefill_tokens_max`.

    Raises:
        ValueError: there is no engine of that name, or the chunk is negative.
    """
    return named("engine", engine, ENGINES)(chunk_tokens(prefill_tokens_max, chunk))


def chunk_tokens(prefill_tokens_max: int, chunk: int) -> int:
    """The prefill tokens of a step where a tuning may say another number than the deployment.

    Raises:
        ValueError: the number is negative.
    """
    if chunk < 0:
        raise ValueError(f"chunk must be at least 0, not {chunk}")
    return chunk or prefill_tokens_max


def named(what: str, name: str, values: dict[str, Value]) -> Value:
    """One of a few by name.

    Raises:
        ValueError: there is none of that name; the message lists those there are.
    """
    if name not in values:
        raise ValueError(f"{what} must be one of {', '.join(values)}, not {name!r}")
    return values[name]
