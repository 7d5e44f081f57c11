"""What an instance of some model on some hardware takes and holds: a shipped table, and files of the same fields.

Names are `model/hardware/tpN/dtype`; those that end in `/splitwise` were fitted to end-to-end times of 2023, all others
are composed of kernel times (the table's head says of whose, and what they are worth). The table is made by
scripts/derive_profiles.py. Knows nothing of YAML: who reads that hands the fields to `from_fields`.
"""

from __future__ import annotations

import csv
import difflib
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from hyperflexis.core.latency import LatencyModel

COEFFICIENTS = tuple(field.name for field in fields(LatencyModel))
REQUIRED = ("latency", "kv_tokens")
KNOWN = (*REQUIRED, "kv_token_bytes", "name", "source", "mape", "samples")
"""Fields of a file. What was measured (`samples`) is there for people and other programs; it is not read here."""

HELD_OUT = "held_out"


@dataclass(frozen=True, slots=True)
class Profile:
    """One instance's step times and KV memory."""

    name: str
    latency: LatencyModel
    kv_tokens: int
    source: str
    mape: float | None = None
    """Mean relative error of the model against what it was fitted to, where that is known."""
    kv_token_bytes: int | None = None
    """What moving the KV of a token moves, where the file says so."""


def names() -> tuple[str, ...]:
    """All names in the shipped table, sorted."""
    return tuple(sorted(_table()))


def load_profile(name_or_path: str) -> Profile:
    """A profile by its name in the table, or from a JSON file.

    Raises:
        ValueError: there is no such profile, or the file is not one; the message says why.
    """
    if name_or_path in _table():
        return _table()[name_or_path]
    path = Path(name_or_path)
    if path.suffix == ".json" or path.is_file():
        return _from_json(path)
    longer = [name for name in names() if name.startswith(name_or_path)]
    close = longer[:3] or difflib.get_close_matches(name_or_path, names(), n=3, cutoff=0.4)
    meant = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(f"no profile or file {name_or_path!r}{meant}")


def from_fields(given: object, where: str) -> Profile:
    """Read the fields of one file, named `where` in messages.

    Raises:
        ValueError: a field is missing, unknown or impossible.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: a profile should be a mapping of {', '.join(KNOWN)}")
    _refuse_unknown(given, KNOWN, where)
    if missing := [name for name in REQUIRED if name not in given]:
        raise ValueError(f"{where}: the profile lacks {' and '.join(missing)}")
    kv_token_bytes = given.get("kv_token_bytes")
    return Profile(
        name=str(given.get("name", where)),
        latency=_latency(given["latency"], where),
        kv_tokens=_count(given["kv_tokens"], "kv_tokens", "tokens", where),
        source=str(given.get("source", where)),
        mape=_mape(given.get("mape"), where),
        kv_token_bytes=None if kv_token_bytes is None else _count(kv_token_bytes, "kv_token_bytes", "bytes", where),
    )


def _latency(given: object, where: str) -> LatencyModel:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: latency should be a mapping of {', '.join(COEFFICIENTS)}")
    _refuse_unknown(given, COEFFICIENTS, where, "latency.")
    if missing := [name for name in COEFFICIENTS if name not in given]:
        raise ValueError(f"{where}: latency lacks {', '.join(missing)}")
    try:
        model = LatencyModel(**{name: _number(given[name], name) for name in COEFFICIENTS})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not any(getattr(model, name) for name in COEFFICIENTS):
        raise ValueError(f"{where}: all coefficients are 0, so that steps would take no time")
    return model


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a non-negative number of seconds, not {value!r}")
    return float(value)


def _count(value: object, name: str, unit: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{where}: {name} must be a positive whole number of {unit}, not {value!r}")
    return value


def _mape(value: object, where: str) -> float | None:
    """One error; of several by name, that on what was held out of the fit, else the largest."""
    if isinstance(value, Mapping):
        known = [_error(each, where) for each in value.values()]
        return _error(value[HELD_OUT], where) if HELD_OUT in value else max(known, default=None)
    return None if value is None else _error(value, where)


def _error(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{where}: mape must be a non-negative number, not {value!r}")
    return float(value)


def _refuse_unknown(given: Mapping[Any, Any], known: tuple[str, ...], where: str, prefix: str = "") -> None:
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            meant = f": did you mean '{prefix}{close[0]}'?" if close else f"; known are {', '.join(known)}"
            raise ValueError(f"{where}: unknown field '{prefix}{name}'{meant}")


def _from_json(path: Path) -> Profile:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    return from_fields(given, str(path))


@functools.cache
def _table() -> dict[str, Profile]:
    text = (resources.files("hyperflexis.sim") / "data" / "profiles.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {row["name"]: _from_row(row) for row in rows}


def _from_row(row: Mapping[str, str]) -> Profile:
    latency = LatencyModel(**{name: float(row[name]) for name in COEFFICIENTS})
    mape = float(row["mape"]) if row["mape"] else None
    return Profile(row["name"], latency, int(row["kv_tokens"]), row["source"], mape)
