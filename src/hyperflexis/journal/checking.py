"""Feeds a journal's events to a control plane that was made alike, and compares every command.

Whatever differs is a fault: of the journal, of a control plane that depends on more than events and instants, or of a
version that decides otherwise. Knows nothing of how the control plane was made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hyperflexis.core.commands import Command
from hyperflexis.core.control import ControlPlane
from hyperflexis.journal.entries import Entry, Gap, same

CONTEXT = 3
"""Entries that are shown before the one that differs."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first entry whose commands are others than those of the journal."""

    entry: Entry
    made: Sequence[Command]
    failure: str
    """What the control plane said instead of giving commands; empty if it gave some."""
    number: int
    """Entries before it."""
    before: Sequence[Entry]
    """The last of these."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far it went."""

    events: int
    commands: int
    difference: Difference | None = None
    gap: Entry | None = None
    """Where events are missing: nothing after it can be compared."""


def compare(entries: Iterable[Entry], control: ControlPlane) -> Comparison:
    """Feed every event, up to the first difference or gap."""
    events = commands = 0
    before: deque[Entry] = deque(maxlen=CONTEXT)
    for entry in entries:
        if isinstance(entry.event, Gap):
            return Comparison(events, commands, gap=entry)
        made, failure = _fed(control, entry)
        if failure or not _alike(entry.commands, made):
            return Comparison(events, commands, Difference(entry, made, failure, events, tuple(before)))
        before.append(entry)
        events += 1
        commands += len(made)
    return Comparison(events, commands)


def _fed(control: ControlPlane, entry: Entry) -> tuple[Sequence[Command], str]:
    assert not isinstance(entry.event, Gap)
    try:
        return control.handle(entry.event, entry.now), ""
    except Exception as error:  # noqa: BLE001 that it fails where it did not is what is to be found
        return (), f"{type(error).__name__}: {error}"


def _alike(recorded: Sequence[Command], made: Sequence[Command]) -> bool:
    return len(recorded) == len(made) and all(same(*pair) for pair in zip(recorded, made, strict=True))
