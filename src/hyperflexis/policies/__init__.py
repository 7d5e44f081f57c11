"""Policies by name. A new one is one file here and one line in `POLICIES`.

A name may carry tuning, as on a command line: `polyserve:credit_spend_max=0,chunk=512`. What can be tuned are the
keyword arguments of the policy's own function, and their defaults say of what type they are.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable

from hyperflexis.core.control import Policy
from hyperflexis.policies import (
    arrow,
    blitzscale,
    chiron,
    distserve,
    dynamo_pd,
    dynamo_planner,
    hfx_faithful,
    hfx_reactive,
    hyperflexis,
    kpa,
    least_tokens,
    llm_d,
    llm_d_saturation,
    llumnix_pd,
    llumnix_v0,
    llumnix_v1,
    polyserve,
    power_of_two,
    prefix_affinity,
    proserve,
    round_robin,
    slos_serve,
    splitwise,
    taichi,
    tokenscale,
    tokenscale_scaler,
)

POLICIES: dict[str, Callable[..., Policy]] = {
    "hyperflexis": hyperflexis.policy,
    "round_robin": round_robin.policy,
    "least_tokens": least_tokens.policy,
    "power_of_two": power_of_two.policy,
    "prefix_affinity": prefix_affinity.policy,
    "llumnix_v0": llumnix_v0.policy,
    "llumnix_v1": llumnix_v1.policy,
    "llm_d": llm_d.policy,
    "polyserve": polyserve.policy,
    "proserve": proserve.policy,
    "slos_serve": slos_serve.policy,
    "hfx_faithful": hfx_faithful.policy,
    "distserve": distserve.policy,
    "splitwise": splitwise.policy,
    "arrow": arrow.policy,
    "llumnix_pd": llumnix_pd.policy,
    "taichi": taichi.policy,
    "tokenscale": tokenscale.policy,
    "dynamo_pd": dynamo_pd.policy,
    "hfx_reactive": hfx_reactive.policy,
    "dynamo_planner": dynamo_planner.policy,
    "blitzscale": blitzscale.policy,
    "tokenscale_scaler": tokenscale_scaler.policy,
    "chiron": chiron.policy,
    "kpa": kpa.policy,
    "llm_d_saturation": llm_d_saturation.policy,
}
"""Each takes the most prefill tokens that a step may have, and its tuning by keyword; it returns a fresh policy."""

_FLAGS = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}


def create(name: str, prefill_tokens_max: int, **tuning: object) -> Policy:
    """A fresh policy by its name, which may carry tuning; what is given by keyword wins.

    Raises:
        ValueError: there is none of that name, or it cannot be tuned so; the message says what there is.
    """
    name, carried = parse(name)
    wanted = {**carried, **tuning}
    known = tunables(name)
    for key in wanted:
        if key not in known:
            raise ValueError(_unknown(name, key))
    try:
        return POLICIES[name](prefill_tokens_max, **wanted)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def tunables(name: str) -> dict[str, object]:
    """What can be tuned of a policy, and its defaults."""
    parameters = inspect.signature(POLICIES[name]).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}


def parse(text: str) -> tuple[str, dict[str, object]]:
    """Read `name` or `name:key=value,key=value`.

    Raises:
        ValueError: no such policy, no such key, or no value of its type; the message says what there is.
    """
    name, colon, pairs = text.partition(":")
    if name not in POLICIES:
        raise ValueError(f"unknown policy {name!r}; there are: {', '.join(sorted(POLICIES))}")
    tuning: dict[str, object] = {}
    for pair in pairs.split(",") if colon else []:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key and equals and value):
            raise ValueError(f"{text!r}: expected key=value after the colon, not {pair!r}")
        if key in tuning:
            raise ValueError(f"{text!r}: {key} is given twice")
        if key not in (known := tunables(name)):
            raise ValueError(_unknown(name, key))
        tuning[key] = _typed(f"{name}: {key}", value, known[key])
    return name, tuning


def split_names(text: str) -> list[str]:
    """Take a list of names apart whose tunings have commas too: what reads key=value belongs to the name before it."""
    names: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if names and ":" in names[-1] and "=" in part and ":" not in part:
            names[-1] += f",{part}"
        else:
            names.append(part)
    return names


def _typed(what: str, value: str, default: object) -> object:
    if isinstance(default, bool):
        if value.lower() not in _FLAGS:
            raise ValueError(f"{what} must be true or false, not {value!r}")
        return _FLAGS[value.lower()]
    try:
        if isinstance(default, int):
            return int(value)
        return float(value) if isinstance(default, float) else value
    except ValueError:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise ValueError(f"{what} must be {kind}, not {value!r}") from None


def _unknown(name: str, key: str) -> str:
    known = tunables(name)
    if not known:
        return f"{name} has nothing to tune, not {key!r}"
    close = difflib.get_close_matches(key, known, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known)}"
    return f"{name} has no {key!r} to tune{meant}"
