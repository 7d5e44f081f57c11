"""The files of a journal: a folder of numbered parts. The newest one grows; the oldest go when all are too large.

One process writes to a folder at a time, which a lock sees to; it ends with the process, whatever kills that.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from hyperflexis.journal.entries import JournalError

SUFFIX = ".journal"
_SHARE = 8
"""Parts of all that may be kept: what goes when there is no room is one of them."""
_PART_BYTES_MAX = 256 << 20
_DIGITS = 8


def part_files(folder: Path) -> list[Path]:
    """The parts of a folder, the oldest first."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if path.stem.isdecimal())


class Parts:
    """Writes them."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        """`bytes_max` is for all of them together.

        Raises:
            JournalError: there can be no journal there, or another process writes it.
        """
        self.folder = folder
        self._bytes_max = bytes_max
        self._part_bytes = min(_PART_BYTES_MAX, bytes_max // _SHARE)
        self._file: int | None = None
        self._begun = 0
        """Parts of this run."""
        self._written = 0
        """Bytes of the present part that are whole frames."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise JournalError(f"{folder}: no journal can be there: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise JournalError(f"{folder}: another process writes this journal") from None
        known = part_files(folder)
        self._number = int(known[-1].stem) if known else 0

    def write(self, frame: bytes, begin: Callable[[int], bytes]) -> None:
        """Append a frame, to a new part if the present one is full; `begin` makes what stands at the head of the n-th.

        Raises:
            OSError: it could not be written. What was there before is as it was.
        """
        if self._file is not None and self._written + len(frame) > self._part_bytes:
            os.close(self._file)
            self._file = None
        if self._file is None:
            self._begin(begin(self._begun))
        self._append(frame)
        self._drop_oldest()

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        os.close(self._lock)

    def _begin(self, head: bytes) -> None:
        path = self.folder / f"{self._number + 1:0{_DIGITS}}{SUFFIX}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        self._written = 0
        try:
            self._append(head)
        except OSError:
            os.close(self._file)
            self._file = None
            path.unlink(missing_ok=True)
            raise
        self._number += 1
        self._begun += 1

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            # Half a frame would hide all that follows it.
            os.ftruncate(self._file, self._written)
            os.lseek(self._file, self._written, os.SEEK_SET)
            raise
        self._written += len(data)

    def _drop_oldest(self) -> None:
        known = part_files(self.folder)
        sizes = {path: path.stat().st_size for path in known}
        for path in known[:-1]:
            if sum(sizes.values()) <= self._bytes_max:
                break
            path.unlink()
            del sizes[path]
