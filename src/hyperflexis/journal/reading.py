"""Reads a journal: which parts are of one run, what stands in them, and where something is missing.

A run's parts are read in order. What ends before its time (a process that was killed, a full disk) is read up to its
last whole frame; what is missing is said, never guessed.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hyperflexis.journal import header as headers
from hyperflexis.journal.entries import CutError, Entry, JournalError, decode, schema
from hyperflexis.journal.frames import Bytes, Frame, Kind, check_begin, frames, name_crc
from hyperflexis.journal.header import Header
from hyperflexis.journal.parts import part_files


class Part(NamedTuple):
    """One file, its header read."""

    path: Path
    header: Header
    data: Bytes
    entries_at: int


@dataclass
class Journal:
    """One run's parts, the oldest first."""

    parts: Sequence[Part]
    damages: list[str] = field(default_factory=list)
    """Where something could not be read, as it was found."""
    is_damaged: bool = False
    """Whether that was more than the end of a process in the middle of a frame."""

    @property
    def header(self) -> Header:
        return self.parts[-1].header

    @property
    def begins(self) -> bool:
        """Whether the first part of the run is there."""
        return self.parts[0].header.part == 0

    def frames(self) -> Iterator[Frame]:
        """All that can be read, in order."""
        for part in self.parts:
            try:
                yield from frames(part.data, part.entries_at)
            except JournalError as error:
                self._note(error, part)

    def entries(self) -> Iterator[Entry]:
        """All that can be read, in order."""
        for frame in self.frames():
            yield from self._decoded(frame)

    def until_damage(self) -> Iterator[Entry]:
        """The same up to the first thing that cannot be read."""
        for part in self.parts:
            try:
                for frame in frames(part.data, part.entries_at):
                    yield from decode(frame.body())
            except JournalError as error:
                self._note(error, part)
                return

    def of_request(self, request_id: int) -> list[Entry]:
        """What speaks of one request, in order."""
        about = self._chosen(lambda frame: frame.is_about(request_id))
        return [entry for frame in about for entry in self._decoded(frame, only=request_id)]

    def named(self, name: str) -> list[int]:
        """The requests of which a client heard under this name: one for each of its choices."""
        wanted = name_crc(name)
        found = self._chosen(lambda frame: frame.names(wanted))
        return [
            entry.event.request_id  # type: ignore[union-attr]
            for frame in found
            for entry in self._decoded(frame, names=True)
            if entry.name == name
        ]

    def bytes_total(self) -> int:
        return sum(len(part.data) for part in self.parts)

    def _chosen(self, is_meant: Callable[[Frame], bool]) -> Iterator[Frame]:
        for frame in self.frames():
            try:
                if not is_meant(frame):
                    continue
            except JournalError as error:
                self._note(error)
                continue
            yield frame

    def _decoded(self, frame: Frame, *, only: int | None = None, names: bool = False) -> Iterator[Entry]:
        try:
            yield from decode(frame.body(), only=only, names=names)
        except JournalError as error:
            self._note(error)

    def _note(self, error: JournalError, part: Part | None = None) -> None:
        damage = str(error) if part is None else f"{part.path}: {error}"
        if damage not in self.damages:
            self.damages.append(damage)
        self.is_damaged |= not isinstance(error, CutError) or part is not self.parts[-1]


def open_all(path: Path) -> list[Journal]:
    """All runs of a folder, the newest first; or the run of one part.

    Raises:
        JournalError: there is none, or it is not one that this version reads.
    """
    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise JournalError(f"{path}: there is no such journal")
    files = part_files(folder) if path.is_dir() else [path]
    runs: dict[str, list[Part]] = {}
    for file in files:
        part = _part(file)
        if part is not None:
            runs.setdefault(part.header.run, []).append(part)
    if not runs:
        raise JournalError(f"{path}: there is no journal in it")
    return [Journal(_consecutive(parts)) for parts in reversed(runs.values())]


def _consecutive(parts: list[Part]) -> list[Part]:
    """The last of them that follow on one another."""
    first = len(parts) - 1
    while first and parts[first - 1].header.part == parts[first].header.part - 1:
        first -= 1
    return parts[first:]


def _part(file: Path) -> Part | None:
    """A part; None of one that was cut before its header was whole."""
    with file.open("rb") as opened:
        if not file.stat().st_size:
            return None
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        check_begin(data)
        first = next(frames(data), None)
        if first is None or first.kind != Kind.HEADER:
            return None
        return Part(file, _header(first.body()), data, first.end)
    except JournalError as error:
        if isinstance(error, CutError):
            return None
        raise JournalError(f"{file}: {error}") from None


def _header(body: bytes) -> Header:
    try:
        version, written = headers.provenance(body)
        if written != schema():
            raise JournalError(f"hyperflexis {version} wrote it, whose entries are others than those of this version")
        return headers.decode(body)
    except (ValueError, RecursionError) as error:
        raise JournalError(f"its header cannot be read: {error}") from error
