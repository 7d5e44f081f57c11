"""The formats by name, and how a file's own is found. A new one is one file here and one line in `FORMATS`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from hyperflexis.sim.job import Job
from hyperflexis.sim.traces import (
    azure,
    burstgpt,
    hyperflexis,
    lengths,
    mooncake,
    replay,
    servegen,
    sessions,
    vtc,
)
from hyperflexis.sim.traces.reading import DEFAULTS, Head, Options, Reading, json_object
from hyperflexis.sim.traces.source import TraceError, numbered_lines


class Format(NamedTuple):
    """How one kind of file is recognised and read."""

    matches: Callable[[Head], bool]
    read: Callable[[Reading], Iterator[Job]]
    """Raises what is wrong with the file as a whole at once, what is wrong with a row when its turn comes."""


FORMATS: dict[str, Format] = {
    "azure": Format(azure.matches, azure.read),
    "burstgpt": Format(burstgpt.matches, burstgpt.read),
    "servegen": Format(servegen.matches, servegen.read),
    "lengths": Format(lengths.matches, lengths.read),
    "vtc": Format(vtc.matches, vtc.read),
    "sessions": Format(sessions.matches, sessions.read),
    "mooncake": Format(mooncake.matches, mooncake.read),
    "hyperflexis": Format(hyperflexis.matches, hyperflexis.read),
    "replay": Format(replay.matches, replay.read),
}
"""Asked in this order; `replay` is the widest and last."""


class Trace:
    """The jobs of one trace, once, in order of arrival, as they are read."""

    def __init__(self, reading: Reading, format_name: str, jobs: Iterator[Job]) -> None:
        self.path = reading.path
        self.format = format_name
        self._reading = reading
        self._jobs = jobs
        self._is_empty = True

    @property
    def skipped(self) -> int:
        """How many bad rows were left out so far."""
        return self._reading.skipped

    def close(self) -> None:
        """Give up the file before its end."""
        self._reading.close()

    def __iter__(self) -> Iterator[Job]:
        return self

    def __next__(self) -> Job:
        try:
            job = next(self._jobs, None)
        except TraceError:
            self.close()
            raise
        if job is not None:
            self._is_empty = False
            return job
        if self._is_empty:
            left_out = f", {self.skipped} bad ones left out" if self.skipped else ""
            raise TraceError(self.path, 0, f"no requests in it{left_out}")
        raise StopIteration


def open_trace(
    path: str | Path,
    format: str | None = None,  # noqa: A002 the word users know
    options: Options = DEFAULTS,
) -> Trace:
    """Read a trace lazily; its format is found from its first line unless given.

    Raises:
        TraceError: the file is missing, of no known format, or bad; rows are looked at when they are read.
    """
    path = Path(path)
    name = format if format is not None else detect(path)
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, 1)
        meant = f"; did you mean '{near[0]}'" if near else ""
        raise TraceError(path, 0, f"unknown format {name!r}{meant}; there are: {', '.join(FORMATS)}")
    reading = Reading(path, options)
    try:
        return Trace(reading, name, FORMATS[name].read(reading))
    except TraceError:
        reading.close()
        raise


def detect(path: Path) -> str:
    """The name of a file's format.

    Raises:
        TraceError: none of those known.
    """
    head = _head(path)
    for name, each in FORMATS.items():
        if each.matches(head):
            return name
    seen = ", ".join(sorted(head.keys) or head.columns)[:200]
    raise TraceError(path, 1, f"no known format begins with {seen!r}; name one: {', '.join(FORMATS)}")


def _head(path: Path) -> Head:
    _, line = next(numbered_lines(path), (0, ""))
    if not line:
        raise TraceError(path, 0, "empty file")
    if not line.startswith("{"):
        return Head(tuple(line.split(",")), frozenset())
    try:
        keys = frozenset(json_object(line))
    except ValueError as why:
        raise TraceError(path, 1, str(why)) from None
    return Head((), keys)
