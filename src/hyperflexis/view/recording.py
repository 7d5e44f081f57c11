"""A journal, seen: what there was to see at evenly spaced instants, made by playing it once.

So the page may jump to any of them, forwards or backwards, at any speed, and what is kept has a bound: frames are
compressed, and further apart where a journal is longer. `play` takes as long as reading the journal does; what it has
come to can be looked at meanwhile.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import zstandard

from hyperflexis.core.fleet import Prices
from hyperflexis.core.slo import ServiceClass
from hyperflexis.journal.entries import Entry
from hyperflexis.journal.reading import Journal
from hyperflexis.journal.story import tell
from hyperflexis.view.history import SAMPLES_MAX
from hyperflexis.view.page import files
from hyperflexis.view.snapshot import InstanceStory
from hyperflexis.view.stories import plain
from hyperflexis.view.watch import Watch

FRAMES_MAX = 2400
STEP_S = 0.5
"""Frames are no closer."""
FRAMES_TOLD_MAX = 32
"""So many are given at a time."""

_encode = msgspec.json.Encoder().encode


class RecordedView:
    """What the dashboard of a journal shows."""

    def __init__(self, journal: Journal, frames_max: int = FRAMES_MAX) -> None:
        """Nothing is there to see before `play`."""
        self._journal = journal
        header = journal.header
        self.begin_s, self.end_s = _span(journal)
        length_s = self.end_s - self.begin_s
        self.step_s = max(STEP_S, length_s / (frames_max - 1))
        classes: dict[str, ServiceClass] = {each.name: each for each in header.classes}
        prices: Prices = header.fleet.prices
        self._watch = Watch(prices, classes, self.begin_s, max(STEP_S, length_s / (SAMPLES_MAX - 1)))
        self._wall_s = None if header.wall_s is None else header.wall_s + self.begin_s - header.origin_s
        self._policy = header.policy
        self._frames: list[bytes] = []
        self._is_complete = self._is_closed = False
        self._packer = zstandard.ZstdCompressor()
        self._files = files()

    @property
    def frames(self) -> int:
        """Frames there are so far."""
        return len(self._frames)

    def play(self) -> None:
        """Make all frames. For a thread of its own; whoever looks meanwhile sees those there are."""
        first = self._journal.parts[0].header
        if not self._journal.begins:  # Launched in a part that is gone.
            for ready_s, ready in first.instances:
                self._watch.hear(min(ready_s, self.begin_s), ready, ())
        for entry in self._journal.entries():
            self._make_until(entry.now)
            self._hear(entry)
            if self._is_closed:
                return
        self._make_until(self.end_s)
        self._make(self.end_s)
        self._is_complete = True

    def close(self) -> None:
        """Make no more of them."""
        self._is_closed = True

    def file(self, name: str) -> tuple[str, bytes] | None:
        """Content type and bytes of a file of the page."""
        return self._files.get(name)

    def source(self) -> bytes:
        """What is shown: how long it is, how much of it is there, and its history."""
        told: dict[str, Any] = {
            "kind": "recorded",
            "model": "",
            "policy": self._policy,
            "wall_s": self._wall_s,
            "length_s": self.end_s - self.begin_s,
            "step_s": self.step_s,
            "frames": len(self._frames),
            "is_complete": self._is_complete,
            "damages": self._journal.damages,
            "history": list(self._watch.history.samples),
        }
        return _encode(told)

    def frames_from(self, first: int) -> bytes:
        """Some frames, as a JSON array of snapshots."""
        unpack = zstandard.ZstdDecompressor().decompress
        some = self._frames[first : first + FRAMES_TOLD_MAX]
        return b"[" + b",".join(unpack(frame) for frame in some) + b"]"

    async def request(self, name: str) -> bytes | None:
        """The stories of a request, by its number or by what its client calls it; None where there is none."""
        return await asyncio.to_thread(self._request, name)

    def _request(self, name: str) -> bytes | None:
        journal = self._journal
        numbers = [int(name)] if name.isdecimal() and len(name) < 19 else journal.named(name)
        stories = [tell(number, entries) for number in numbers if (entries := journal.of_request(number))]
        return _encode([plain(story, self.begin_s) for story in stories]) if stories else None

    async def instance(self, instance_id: int) -> bytes | None:
        """The story of an instance; None where there is none."""
        chapters = self._watch.instances.chapters(instance_id, self.begin_s)
        return None if chapters is None else _encode(InstanceStory(instance_id, chapters, []))

    def _hear(self, entry: Entry) -> None:
        self._watch.hear(entry.now, entry.event, entry.commands)

    def _make_until(self, now: float) -> None:
        """Make the frames of what was before."""
        while (at_s := self.begin_s + len(self._frames) * self.step_s) < now:
            self._make(at_s)

    def _make(self, at_s: float) -> None:
        told = msgspec.structs.replace(self._watch.snapshot(at_s), samples=[])
        self._frames.append(self._packer.compress(_encode(told)))


def _span(journal: Journal) -> tuple[float, float]:
    """Instants of the first entry and of the last."""
    found = [(frame.first_s, frame.last_s) for frame in journal.frames() if frame.entries]
    return (found[0][0], found[-1][1]) if found else (0.0, 0.0)
