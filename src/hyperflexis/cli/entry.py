"""One configured value: at which path, and from where. All sources are turned into these before they are merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hyperflexis.cli.keys import Path


@dataclass(frozen=True, slots=True)
class Source:
    """One place that gave a value."""

    kind: Literal["file", "env", "flag"]
    name: str
    line: int | None = None

    @property
    def place(self) -> str:
        return self.name if self.line is None else f"{self.name}:{self.line}"

    def at(self, line: int) -> Source:
        """Point into a file; what stands in a flag or a variable has no lines."""
        return Source(self.kind, self.name, line) if self.kind == "file" else self

    def __str__(self) -> str:
        return self.place if self.kind == "file" else f"{self.kind} {self.place}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One value at one path; a mapping is as many entries as it has leaves."""

    path: Path
    value: Any
    source: Source
