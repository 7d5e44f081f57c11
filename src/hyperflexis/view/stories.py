"""What can be told afterwards without a journal: of the latest requests, and of instances.

Entries are kept as they came, but for hashes of blocks; words are made when somebody asks.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

from hyperflexis.core.commands import (
    AssignRole,
    Command,
    Conclude,
    Drain,
    Launch,
    Reject,
    Retain,
    Sleep,
    Stop,
    Wake,
)
from hyperflexis.core.events import (
    Event,
    InstanceDrained,
    InstanceLost,
    InstanceReady,
    InstanceReported,
    LinkFailed,
    RequestArrived,
)
from hyperflexis.journal.entries import Entry, Gap, requests_of
from hyperflexis.journal.story import Story, tell
from hyperflexis.view.sentences import sentence
from hyperflexis.view.snapshot import Chapter, RequestStory

ENDED_MAX = 2000
"""So many requests that have ended can still be told of."""
ENTRIES_MAX = 200
"""Of one request; of one that lives longer the first ones are forgotten."""
INSTANCES_MAX = 1000
CHAPTERS_MAX = 50
"""Of one instance."""

_OF_INSTANCES: frozenset[type] = frozenset(
    (Launch, AssignRole, Drain, Retain, Sleep, Wake, Stop, InstanceDrained, InstanceLost, InstanceReady)
)
_ENDS = frozenset({Conclude, Reject})


class RequestStories:
    """Entries by request: of all that live, and of those that ended last."""

    def __init__(self) -> None:
        self._entries: dict[int, deque[Entry]] = {}
        self._numbers: dict[str, list[int]] = {}
        """Of the requests that a client knows by this name: one for each choice of an answer."""
        self._names: dict[int, str] = {}
        self._ended: deque[int] = deque()

    def hear(self, now: float, event: Event | Gap, commands: Sequence[Command], name: str = "") -> None:
        """Follow one entry."""
        if type(event) is InstanceReported and not commands and not _has_news(event):
            return
        if type(event) is RequestArrived:
            self._begin(event, name)
        entry = Entry(now, _light(event), commands, name)
        for request_id in dict.fromkeys(requests_of(event, commands)):
            entries = self._entries.get(request_id)
            if entries is not None:
                entries.append(entry)
        for command in commands:
            if type(command) in _ENDS:
                self._end(command.request_id)  # type: ignore[union-attr]

    def numbers(self, name: str) -> list[int]:
        """The requests that are meant by a number or by what a client calls an answer."""
        if name in self._numbers:
            return self._numbers[name]
        is_known = name.isdecimal() and len(name) < 20 and int(name) in self._entries
        return [int(name)] if is_known else []

    def tell(self, request_id: int) -> Story:
        """The story of one of them."""
        return tell(request_id, self._entries[request_id])

    def _begin(self, event: RequestArrived, name: str) -> None:
        self._entries[event.request_id] = deque(maxlen=ENTRIES_MAX)
        if name:
            self._numbers.setdefault(name, []).append(event.request_id)
            self._names[event.request_id] = name

    def _end(self, request_id: int) -> None:
        if request_id in self._entries:
            self._ended.append(request_id)
            if len(self._ended) > ENDED_MAX:
                self._forget(self._ended.popleft())

    def _forget(self, request_id: int) -> None:
        self._entries.pop(request_id, None)
        name = self._names.pop(request_id, "")
        if name:
            self._numbers[name].remove(request_id)
            if not self._numbers[name]:
                del self._numbers[name]


def _has_news(event: InstanceReported) -> bool:
    return bool(event.started or event.began or event.preempted or event.resumed or event.arrived or event.suspended)


def _light(event: Event | Gap) -> Event | Gap:
    """Without hashes, of which there may be thousands; how many there were is told."""
    if type(event) is RequestArrived and event.block_hashes:
        return event._replace(block_hashes=range(len(event.block_hashes)))  # type: ignore[arg-type]
    return event


class InstanceStories:
    """What happened to each instance, also to those that have gone, the latest of them."""

    def __init__(self, chapters_max: int | None = CHAPTERS_MAX) -> None:
        """`chapters_max` of each are kept, the last ones; None: all."""
        self._chapters_max = chapters_max
        self._told: OrderedDict[int, deque[tuple[float, Command | Event]]] = OrderedDict()

    def hear(self, now: float, event: Event | Gap, commands: Sequence[Command]) -> None:
        """Follow one entry."""
        if type(event) in _OF_INSTANCES:
            self._keep(now, event.instance_id, event)  # type: ignore[union-attr]
        elif type(event) is LinkFailed:
            self._keep(now, event.source_id, event)
        for command in commands:
            if type(command) in _OF_INSTANCES:
                self._keep(now, command.instance_id, command)  # type: ignore[union-attr]

    def chapters(self, instance_id: int, origin_s: float) -> list[Chapter] | None:
        """Of one instance, in order; None where none of that number was heard of."""
        told = self._told.get(instance_id)
        return None if told is None else [Chapter(round(at_s - origin_s, 3), sentence(what)) for at_s, what in told]

    def _keep(self, now: float, instance_id: int, what: Any) -> None:
        told = self._told.setdefault(instance_id, deque(maxlen=self._chapters_max))
        told.append((now, what))
        self._told.move_to_end(instance_id)
        if len(self._told) > INSTANCES_MAX:
            self._told.popitem(last=False)


def plain(story: Story, origin_s: float) -> RequestStory:
    """A story as it is shown."""
    return RequestStory(
        request=story.request_id,
        name=story.name,
        ending=story.ending,
        arrived_s=None if story.arrived_s is None else story.arrived_s - origin_s,
        chapters=[Chapter(round(each.at_s - origin_s, 6), each.text) for each in story.chapters],
    )
