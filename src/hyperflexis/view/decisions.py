"""The latest decisions. Kept as they were taken, and put into words only when somebody looks."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from hyperflexis.core.commands import (
    AssignRole,
    Command,
    Conclude,
    Dispatch,
    Drain,
    Hold,
    Launch,
    Migrate,
    Reject,
    Resize,
    Retain,
    Sleep,
    Stop,
    Wake,
    Why,
)
from hyperflexis.core.events import Event, InstanceDrained, InstanceLost, InstanceReady, TransferFailed
from hyperflexis.journal.entries import Gap
from hyperflexis.view.sentences import sentence
from hyperflexis.view.snapshot import Decision

KEPT = 24
"""Of what happens all the time; and as many of what does not."""

_USUAL = {Dispatch: "sent", Migrate: "moved"}
_NOTABLE: dict[type, str] = {
    Hold: "held",
    Reject: "refused",
    TransferFailed: "moved",
    InstanceLost: "lost",
    **dict.fromkeys(
        (Resize, Launch, AssignRole, Drain, Retain, Sleep, Wake, Stop, InstanceDrained, InstanceReady), "fleet"
    ),
}


class _Kept(NamedTuple):
    number: int
    at_s: float
    kind: str
    what: Command | Event


class Decisions:
    """Of requests that are sent and moved, the latest; of all else, the latest too, which so are not pushed out."""

    def __init__(self) -> None:
        self._number = 0
        self._usual: deque[_Kept] = deque(maxlen=KEPT)
        self._notable: deque[_Kept] = deque(maxlen=KEPT)

    def hear(self, now: float, event: Event | Gap, commands: Sequence[Command]) -> None:
        """Follow one entry."""
        if type(event) in _NOTABLE:
            self._keep(self._notable, now, _NOTABLE[type(event)], event)  # type: ignore[arg-type]
        for command in commands:
            kind = type(command)
            if kind in _USUAL:
                self._keep(self._usual, now, _USUAL[kind], command)
            elif kind in _NOTABLE:
                self._keep(self._notable, now, _NOTABLE[kind], command)
            elif isinstance(command, Conclude) and _is_broken(command):
                self._keep(self._notable, now, "broken", command)

    def latest(self, origin_s: float) -> list[Decision]:
        """In words, the newest first."""
        kept = heapq.merge(reversed(self._usual), reversed(self._notable), key=lambda each: -each.number)
        return [_told(each, origin_s) for each in kept]

    def _keep(self, ring: deque[_Kept], now: float, kind: str, what: Command | Event) -> None:
        self._number += 1
        ring.append(_Kept(self._number, now, kind, what))


def _is_broken(command: Conclude) -> bool:
    if command.reason.why is Why.CLIENT_LEFT:
        return False
    return command.verdict is None or command.reason.why is Why.FAILED or not command.verdict.attained


def _told(kept: _Kept, origin_s: float) -> Decision:
    what = kept.what
    request = getattr(what, "request_id", None)
    instance = getattr(what, "instance_id", getattr(what, "target_id", None))
    return Decision(kept.number, round(kept.at_s - origin_s, 3), kept.kind, sentence(what), request, instance)
