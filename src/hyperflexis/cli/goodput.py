"""`--goodput ttft:100 tpot:50 e2el:790`: promises in the words of vLLM's load tool, milliseconds, for all classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hyperflexis.cli.errors import OperatorError
from hyperflexis.core.slo import ServiceClass, Slo

FLAG = "--goodput"
FIELDS = {"ttft": "ttft_s", "tpot": "tpot_s", "e2el": "e2e_s"}


def read(words: Sequence[str]) -> Slo | None:
    """What is promised; None where no word is.

    Raises:
        OperatorError: a word is none of these, or comes twice.
    """
    targets: dict[str, float] = {}
    for word in words:
        name, _, text = word.partition(":")
        milliseconds = _number(text)
        if name not in FIELDS or milliseconds is None:
            hint = f"such as {FLAG} ttft:100 tpot:50 e2el:790, in milliseconds, after URL and SCENARIO"
            raise OperatorError(f"{word!r} is no target of {FLAG}", hint)
        if FIELDS[name] in targets:
            raise OperatorError(f"{FLAG} has {name} twice")
        targets[FIELDS[name]] = milliseconds / 1000
    return Slo(**targets) if targets else None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < math.inf else None


def promised(classes: Mapping[str, ServiceClass], slo: Slo | None) -> dict[str, ServiceClass]:
    """The classes with this in place of what each was promised, where there is such."""
    return {name: each if slo is None else replace(each, slo=slo) for name, each in classes.items()}
