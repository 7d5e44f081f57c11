"""Writes a journal: entries in, frames out.

`Recorder` does so when it has enough of them, and is for whoever can wait. `LiveRecorder` is for a server: its thread
writes every second, and what happens meanwhile waits in memory, of which there is a bound. What does not fit, or cannot
be written because the disk is full, is left out whole; the journal says so, and the log. Nothing of that stops the
server.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from hyperflexis.core.commands import Command, Sleep, Stop
from hyperflexis.core.events import Event, InstanceLost, InstanceReady, RequestArrived
from hyperflexis.journal import header as headers
from hyperflexis.journal.entries import Entry, Gap
from hyperflexis.journal.frames import ENTRIES_MAX, Packer
from hyperflexis.journal.header import Header
from hyperflexis.journal.parts import Parts

log = logging.getLogger(__name__)

FLUSH_S = 1.0
"""The most that is lost if the process is killed."""
WAITING_MAX = 200_000
"""Entries, and hashes of blocks in them, that wait to be written: some 50 MB."""
CLOSE_S = 10.0
"""How long the end waits for the disk."""


class Recorder:
    """Writes entries to parts, on the caller's thread."""

    def __init__(self, parts: Parts, header: Header) -> None:
        self._parts = parts
        self._header = header
        self._packer = Packer()
        self._instances: dict[int, tuple[float, InstanceReady]] = {}
        self._waiting: list[Entry] = []

    def observe(self, now: float, event: Event, commands: Sequence[Command], name: str = "") -> None:
        """Take an entry; some thousand of them are written at a time.

        Raises:
            OSError: they cannot be written.
        """
        self._waiting.append(Entry(now, event, commands, name))
        if len(self._waiting) >= ENTRIES_MAX:
            self.flush()

    def flush(self) -> None:
        """Write what waits.

        Raises:
            OSError: it cannot be written.
        """
        waiting, self._waiting = self._waiting, []
        self.write(waiting)

    def write(self, entries: Sequence[Entry]) -> int:
        """Write these; returns how many bytes that took.

        Raises:
            OSError: they cannot be written. Whole frames of them may have been.
        """
        written = 0
        for start in range(0, len(entries), ENTRIES_MAX):
            some = entries[start : start + ENTRIES_MAX]
            frame = self._packer.entries(some)
            self._parts.write(frame, self._begin)
            written += len(frame)
            self._note_instances(some)
        return written

    def close(self) -> None:
        """Write what waits, and end.

        Raises:
            OSError: it cannot be written.
        """
        try:
            self.flush()
        finally:
            self._parts.close()

    def _begin(self, part: int) -> bytes:
        header = msgspec.structs.replace(self._header, part=part, instances=list(self._instances.values()))
        return self._packer.header(headers.encode(header))

    def _note_instances(self, entries: Sequence[Entry]) -> None:
        """Remember those that are there, for the next part."""
        for now, event, commands, _ in entries:
            if isinstance(event, InstanceReady):
                self._instances[event.instance_id] = now, event
            elif isinstance(event, InstanceLost):
                self._instances.pop(event.instance_id, None)
            for command in commands:
                if isinstance(command, Stop | Sleep):
                    self._instances.pop(command.instance_id, None)


@dataclass(slots=True)
class _Lost:
    """What could not be kept since the last gap was written."""

    events: int
    since_s: float
    until_s: float
    why: str

    def entry(self) -> Entry:
        return Entry(self.since_s, Gap(self.events, self.until_s, self.why))


class LiveRecorder:
    """Writes a server's entries, on a thread of its own. `observe` never waits and never fails."""

    def __init__(self, recorder: Recorder, *, waiting_max: int = WAITING_MAX, flush_s: float = FLUSH_S) -> None:
        self._recorder = recorder
        self._waiting_max = waiting_max
        self._flush_s = flush_s
        self._waiting: deque[Entry] = deque()
        # Two sums, each of which one thread alone writes: what waits is their difference.
        self._given = self._taken = 0
        self._overflow: _Lost | None = None
        """Owned by the caller's thread."""
        self._unwritten: _Lost | None = None
        """Owned by the writing one."""
        self._left_out = self._failed = 0
        """Entries that did not fit, and that could not be written, ever; each is one thread's, too."""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def observe(self, now: float, event: Event, commands: Sequence[Command], name: str = "") -> None:
        """Take an entry, to be written soon."""
        if self._given - self._taken > self._waiting_max or self._overflow is not None:
            self._leave_out(now)
            if self._overflow is not None:
                return
        self._given += _weight(event)
        self._waiting.append(Entry(now, event, commands, name))

    @property
    def lost_events(self) -> int:
        """So many are not in the journal."""
        return self._left_out + self._failed

    @property
    def thread_id(self) -> int | None:
        """The kernel's name of the thread that writes."""
        return self._thread.native_id

    def close(self) -> None:
        """Write what waits, and end; a disk that does not answer is not waited for."""
        self._ending.set()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            log.error("the journal's last entries are not written: the disk does not answer")

    def _leave_out(self, now: float) -> None:
        """Count what is left out; once half of the room is free, say how much it was and go on."""
        lost = self._overflow
        if lost is None:
            self._left_out += 1
            log.error("the disk does not keep up with the journal; events are left out of it")
            self._overflow = _Lost(1, now, now, "the disk did not keep up")
        elif self._given - self._taken > self._waiting_max // 2:
            self._left_out += 1
            lost.events, lost.until_s = lost.events + 1, now
        else:
            log.error("the journal goes on; %d events are not in it", lost.events)
            self._given += 1
            self._waiting.append(lost.entry())
            self._overflow = None

    def _run(self) -> None:
        while not self._ending.wait(self._flush_s):
            self._write()
        self._write()
        if self._overflow is not None:
            self._try([self._overflow.entry()])
        try:
            self._recorder.close()
        except OSError as error:
            log.error("the journal cannot be closed: %s", error.strerror)

    def _write(self) -> None:
        """Write what waits now, a frame at a time so that a full disk costs no more than it must."""
        left = len(self._waiting)
        while left > 0:
            some = [self._waiting.popleft() for _ in range(min(left, ENTRIES_MAX - 1))]
            left -= len(some)
            self._try(some)
            self._taken += sum(_weight(each.event) for each in some)

    def _try(self, entries: list[Entry]) -> None:
        lost = self._unwritten
        try:
            self._recorder.write(entries if lost is None else [lost.entry(), *entries])
        except Exception as error:  # noqa: BLE001 whatever is wrong with the journal, requests are served all the same.
            events = sum(each.event.events if isinstance(each.event, Gap) else 1 for each in entries)
            self._failed += sum(not isinstance(each.event, Gap) for each in entries)
            if lost is None:
                why = error.strerror if isinstance(error, OSError) else repr(error)
                log.error("the journal cannot be written: %s; the server goes on without it", why)
                self._unwritten = _Lost(events, entries[0].now, entries[-1].now, str(why))
            else:
                lost.events, lost.until_s = lost.events + events, entries[-1].now
        else:
            if lost is not None:
                log.error("the journal is written again; %d events are not in it", lost.events)
            self._unwritten = None


def _weight(event: Event | Gap) -> int:
    return 1 + len(event.block_hashes) if type(event) is RequestArrived else 1
