"""What the deployment's checks found, as sentences: which key, where it was given, what is wrong, what was meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from hyperflexis.cli import keys
from hyperflexis.cli.entry import Source
from hyperflexis.cli.errors import OperatorError
from hyperflexis.cli.keys import Path

VALUE_CHARS_MAX = 80
_KEY_MARK = "[key]"
"""How pydantic's locations say that the name is wrong, not what it holds."""


def complain(error: ValidationError, sources: Mapping[Path, Source]) -> OperatorError:
    """Make one line of each mistake, and a hint that fits them all."""
    details = error.errors(include_url=False)
    has_unknown = any(detail["type"] == "extra_forbidden" for detail in details)
    hint = "`hyperflexis config show` prints every key and its value" if has_unknown else None
    return OperatorError("\n".join(_sentence(detail, sources) for detail in details), hint)


def _sentence(detail: Any, sources: Mapping[Path, Source]) -> str:
    path = tuple(str(part) for part in detail["loc"] if part != _KEY_MARK)
    dotted, place = ".".join(path), _place(path, sources)
    if detail["type"] == "extra_forbidden":
        near = keys.nearest(path)
        return f"unknown key '{dotted}' in {place}" + (f": did you mean '{near}'?" if near else "")
    if _KEY_MARK in detail["loc"]:
        return f"bad name '{path[-1]}' in {place}: {_reason(detail, path)}"
    return f"bad value for '{dotted}' in {place}: {_shown(detail['input'])} {_reason(detail, path)}"


def _reason(detail: Any, path: Path) -> str:
    if detail["type"] in ("model_type", "dict_type"):
        names = getattr(keys.kind_at(path), "model_fields", ())
        return f"should be a mapping of {', '.join(names)}" if names else "should be a mapping of names"
    if detail["type"] == "string_type":
        return "should be text; quote it"
    message: str = detail["msg"]
    return message.removeprefix("Value error, ").removeprefix("Input ")


def _place(path: Path, sources: Mapping[Path, Source]) -> str:
    """Where the value came from: its own source, else that of what it stands in, else that of what stands in it."""
    for known, source in sources.items():
        if known[: len(path)] == path or path[: len(known)] == known:
            return source.place
    return "the defaults"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= VALUE_CHARS_MAX else text[: VALUE_CHARS_MAX - 3] + "..."
