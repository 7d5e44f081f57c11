"""A server's journal: whatever the disk does, the server goes on, and what is missing is said."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from hyperflexis.core.events import RequestArrived, Wakeup
from hyperflexis.core.slo import Slo
from hyperflexis.journal import parts
from hyperflexis.journal.entries import Entry, Gap, encode
from hyperflexis.journal.frames import ENTRIES_MAX
from hyperflexis.journal.parts import Parts
from hyperflexis.journal.reading import open_all
from hyperflexis.journal.recorder import LiveRecorder, Recorder
from journal.recorded import World, header_of, only_run, recorder


class Stalling(Recorder):
    """Writes when it is let, and says when it has been asked to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Parts(folder, 1 << 30), header_of(World()))
        self.is_let, self.asked = threading.Event(), threading.Semaphore(0)

    def write(self, entries: Sequence[Entry]) -> int:
        self.asked.release()
        assert self.is_let.wait(30)
        return super().write(entries)


class Disk:
    """Has room for so many bytes more."""

    def __init__(self) -> None:
        self.room = 1 << 40

    def write(self, file: int, data: memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = os.write(file, data[: self.room])
        self.room -= written
        return written


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(parts, "os", _Os(made))
    return made


class _Os:
    """The module with another `write`."""

    def __init__(self, disk: Disk) -> None:
        self.write = disk.write

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)


def instants(folder: Path) -> list[float]:
    return [entry.now for entry in only_run(folder).entries()]


def test_everything_is_there_after_the_end(tmp_path: Path) -> None:
    live = LiveRecorder(Recorder(Parts(tmp_path, 1 << 30), header_of(World())), flush_s=3600.0)
    for number in range(3 * ENTRIES_MAX):
        live.observe(float(number), Wakeup(), [])
    live.close()
    assert instants(tmp_path) == [float(number) for number in range(3 * ENTRIES_MAX)]


def test_what_happens_is_written_within_a_while(tmp_path: Path) -> None:
    made = Stalling(tmp_path)
    made.is_let.set()
    live = LiveRecorder(made, flush_s=0.01)
    live.observe(1.0, Wakeup(), [])
    assert made.asked.acquire(timeout=30)
    live.observe(2.0, Wakeup(), [])
    assert made.asked.acquire(timeout=30)
    assert 1.0 in instants(tmp_path)
    live.close()


def test_slow_disk_leaves_a_gap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    made = Stalling(tmp_path)
    live = LiveRecorder(made, waiting_max=10, flush_s=0.001)
    for number in range(40):
        live.observe(float(number), Wakeup(), [])
    made.is_let.set()
    number = 40
    while live._overflow is not None:
        made.asked.acquire(timeout=30)
        live.observe(float(number), Wakeup(), [])
        number += 1
    live.close()
    entries = list(only_run(tmp_path).entries())
    (gap,) = [each for each in entries if isinstance(each.event, Gap)]
    place = entries.index(gap)
    assert [each.now for each in entries[:place]] == [float(i) for i in range(place)]
    assert isinstance(gap.event, Gap)
    assert gap.now == float(place)
    assert gap.event.events == live.lost_events == number - (len(entries) - 1)
    assert entries[place + 1].now == gap.event.until_s + 1
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert f"{gap.event.events} events are not in it" in caplog.text


def test_hashes_of_blocks_count(tmp_path: Path) -> None:
    made = Stalling(tmp_path)
    live = LiveRecorder(made, waiting_max=100, flush_s=3600.0)
    event = RequestArrived(0, 4000, 1, Slo(), block_hashes=(b"0123456789abcdef",) * 90)
    for number in range(5):
        live.observe(float(number), event, [])
    made.is_let.set()
    live.close()
    kept = [each for each in only_run(tmp_path).entries() if not isinstance(each.event, Gap)]
    assert len(kept) == 2


def test_full_disk_is_told_once_and_leaves_a_gap(tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    live = LiveRecorder(Recorder(Parts(tmp_path, 1 << 30), header_of(World())), flush_s=3600.0)

    def flushed(*numbers: int) -> None:
        for number in numbers:
            live.observe(float(number), Wakeup(), [])
        live._write()

    flushed(0, 1)
    whole = instants(tmp_path)
    disk.room = 20
    flushed(2, 3)
    flushed(4)
    assert instants(tmp_path) == whole == [0.0, 1.0]
    assert not only_run(tmp_path).damages
    disk.room = 1 << 40
    flushed(5, 6)
    live.close()
    entries = list(only_run(tmp_path).entries())
    assert [each.now for each in entries] == [0.0, 1.0, 2.0, 5.0, 6.0]
    assert entries[2].event == Gap(3, 4.0, "No space left on device")
    assert live.lost_events == 3
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "the journal cannot be written: No space left on device; the server goes on without it",
        "the journal is written again; 3 events are not in it",
    ]


def test_part_that_cannot_be_begun_leaves_nothing_behind(tmp_path: Path, disk: Disk) -> None:
    disk.room = 20
    with pytest.raises(OSError, match="No space left"), recorder(tmp_path) as made:
        made.write([Entry(0.0, Wakeup())])
    assert list(tmp_path.iterdir()) == []
    disk.room = 1 << 40
    with recorder(tmp_path) as made:
        made.write([Entry(1.0, Wakeup())])
    assert only_run(tmp_path).begins


def test_what_cannot_be_encoded_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    live = LiveRecorder(Recorder(Parts(tmp_path, 1 << 30), header_of(World())), flush_s=3600.0)
    live.observe(0.0, Wakeup(), [object()])  # type: ignore[list-item]
    live._write()
    live.observe(1.0, Wakeup(), [])
    live.close()
    assert "the journal cannot be written" in caplog.text
    gap, entry = only_run(tmp_path).entries()
    assert isinstance(gap.event, Gap)
    assert encode([entry]) == encode([Entry(1.0, Wakeup())])


WRITER = """
import sys, time
from pathlib import Path
from hyperflexis.core.events import Wakeup
from hyperflexis.journal.parts import Parts
from hyperflexis.journal.recorder import LiveRecorder, Recorder
from journal.recorded import World, header_of

folder = Path(sys.argv[1])
live = LiveRecorder(Recorder(Parts(folder, 1 << 30), header_of(World())), flush_s=0.02)
number = 0
while True:
    live.observe(float(number), Wakeup(), [])
    number += 1
    if not number % 100:
        print(live._taken, flush=True)
        time.sleep(0.005)
"""


@pytest.mark.slow
def test_process_that_is_killed_has_written_up_to_its_last_flush(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert writer.stdout is not None
    flushed = 0
    while flushed < 1000:
        flushed = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    writer.communicate(timeout=30)
    (journal,) = open_all(tmp_path)
    found = [entry.now for entry in journal.entries()]
    assert found == [float(number) for number in range(len(found))]
    assert len(found) >= flushed
    with recorder(tmp_path):  # The lock has gone with it.
        pass
