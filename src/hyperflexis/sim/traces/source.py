"""Lines of a trace file, plain or compressed, one at a time, and the one error that a bad trace gives.

Compression is told from the first bytes, not from the name. Knows nothing of what the lines mean.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import TextIO

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_CHUNK_BYTES = 4096
"""Compressed bytes read at a time. Traces shrink to a hundredth, so little comes out large."""


class TraceError(Exception):
    """A trace cannot be used as it is: which file, which line (0: none in particular), why. The operator's to mend."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        place = f"{path}, line {line}" if line else str(path)
        super().__init__(f"{place}: {reason}")
        self.path = path
        self.line = line
        self.reason = reason


def numbered_lines(path: Path) -> Generator[tuple[int, str], None, None]:
    """Each line with its number from 1, without its end. Blank lines after the last one count as none.

    Raises:
        TraceError: the file cannot be opened, or what is compressed ends early or is damaged.
    """
    number = 0
    blanks: list[int] = []
    try:
        with _open(path) as file:
            for number, raw in enumerate(file, 1):
                line = raw.rstrip("\r\n")
                if not line:
                    blanks.append(number)
                    continue
                if blanks:
                    yield from ((blank, "") for blank in blanks)
                    blanks.clear()
                yield number, line
    except EOFError:
        raise TraceError(path, number + 1, "the file ends in the middle: truncated gzip") from None
    except (gzip.BadGzipFile, zlib.error, _ZstdError) as damage:
        raise TraceError(path, number + 1, f"damaged compression: {damage}") from None
    except OSError as error:
        raise TraceError(path, 0, error.strerror or str(error)) from None


class _ZstdError(Exception):
    """What the zstandard package complains of, by a name that exists without the package."""


def _open(path: Path) -> TextIO:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic.startswith(GZIP_MAGIC):
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace")
    if magic == ZSTD_MAGIC:
        return io.TextIOWrapper(io.BufferedReader(_Zstd(path)), encoding="utf-8-sig", errors="replace")
    return path.open(encoding="utf-8-sig", errors="replace")


class _Zstd(io.RawIOBase):
    """A zstandard stream as a raw file, which says when it is cut short."""

    def __init__(self, path: Path) -> None:
        try:
            import zstandard
        except ImportError:
            raise TraceError(path, 0, "reading .zst needs a package: pip install zstandard") from None
        self._raw = path.open("rb")
        self._error = zstandard.ZstdError
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what BufferedReader passes
        while not self._pending:
            chunk = self._raw.read(ZSTD_CHUNK_BYTES)
            if not chunk:
                if self._frame is not None:
                    raise _ZstdError("the file ends in the middle")
                return 0
            self._pending = memoryview(self._inflate(chunk))
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def _inflate(self, chunk: bytes) -> bytes:
        """One chunk's content, over the borders of frames where it has some."""
        parts = []
        while chunk:
            frame = self._frame or self._new()
            try:
                parts.append(frame.decompress(chunk))
            except self._error as error:
                raise _ZstdError(str(error)) from None
            self._frame, chunk = (None, frame.unused_data) if frame.eof else (frame, b"")
        return b"".join(parts)

    def close(self) -> None:
        self._raw.close()
        super().close()
