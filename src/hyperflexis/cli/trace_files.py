"""Where traces lie on this machine. The catalog in `sim` says which there are; this finds those that are here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

TRACES_ENV = "HYPERFLEXIS_TRACES"
TRACES_FLAG = "--traces"


def folders(given: Sequence[Path], env: Mapping[str, str], beside: Path | None = None) -> tuple[Path, ...]:
    """Where to look, in order: beside the scenario, as given, as in the environment, in the package."""
    named = [Path(name).expanduser() for name in env.get(TRACES_ENV, "").split(os.pathsep) if name]
    own = Path(str(resources.files("hyperflexis.sim"))) / "data"
    return (*([beside] if beside else []), *given, *named, own)


def find(name: str, places: Sequence[Path]) -> Path | None:
    """The first file of that name; an absolute one is only where it says."""
    path = Path(name).expanduser()
    return next((candidate for candidate in (place / path for place in places) if candidate.is_file()), None)
