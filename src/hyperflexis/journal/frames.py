"""Frames: some entries as compressed bytes, with lengths, checksums, and an index of whom they are about.

    part    "HFXJRNL", format; frames
    frame   head; index; body
    head    "HFXF", kind, lengths of index and body, entries, first and last instant, lowest and highest request,
            CRC-32 of the body; CRC-32 of head and index
    index   msgpack: requests in order, each as its distance from the one before; CRC-32 of each name that is given
    body    zstd

Who looks for one request reads heads and indices and passes over bodies. A file that was cut anywhere is whole up to
its last whole frame.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple
from zlib import crc32

import msgspec
import zstandard

from hyperflexis.journal.entries import CutError, Entry, JournalError, encode, requests_of
from hyperflexis.journal.header import FORMAT

_MAGIC = b"HFXJRNL"
BEGIN = _MAGIC + bytes([FORMAT])
_MARK = b"HFXF"
_HEAD = struct.Struct("<4sB3xIIIddqqI")
_CRC = struct.Struct("<I")
HEAD_BYTES = _HEAD.size + _CRC.size
_LEVEL = 3
ENTRIES_MAX = 2048
"""Of one frame."""
BODY_BYTES_MAX = 1 << 28
"""What says that it unpacks to more was not written here."""

Bytes = bytes | memoryview | mmap.mmap


class Kind(IntEnum):
    HEADER = 0
    ENTRIES = 1


class _Facts(NamedTuple):
    """What the head of a frame says of it."""

    kind: Kind
    entries: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    lowest: int = 0
    highest: int = -1


class Frame(NamedTuple):
    """One frame where it lies; nothing of it is unpacked."""

    data: Bytes
    kind: int
    index_at: int
    body_at: int
    end: int
    entries: int
    first_s: float
    last_s: float
    lowest: int
    """Of the requests it is about; above `highest` where it is about none."""
    highest: int
    body_crc: int

    def is_about(self, request_id: int) -> bool:
        """Whether an entry of it speaks of a request.

        Raises:
            JournalError: its index is not what was written.
        """
        if not self.lowest <= request_id <= self.highest:
            return False
        at = 0
        for distance in self._index()[0]:
            at += distance
            if at >= request_id:
                break
        return at == request_id

    def names(self, name_crc: int) -> bool:
        """Whether it may hold the arrival of the request with this name: one in four thousand million does not.

        Raises:
            JournalError: its index is not what was written.
        """
        return name_crc in self._index()[1]

    def body(self) -> bytes:
        """What it holds, unpacked.

        Raises:
            JournalError: it is not what was written.
        """
        packed = self.data[self.body_at : self.end]
        if crc32(packed) != self.body_crc:
            raise JournalError("a frame's checksum is wrong")
        try:
            if zstandard.frame_content_size(packed) > BODY_BYTES_MAX:
                raise JournalError(f"a frame says that it holds more than {BODY_BYTES_MAX} bytes")
            return zstandard.ZstdDecompressor().decompress(packed)
        except zstandard.ZstdError as error:
            raise JournalError(f"a frame cannot be unpacked: {error}") from error

    def _index(self) -> tuple[list[int], list[int]]:
        try:
            return _index_decoder.decode(self.data[self.index_at : self.body_at])
        except (ValueError, RecursionError) as error:
            raise JournalError(f"an index cannot be read: {error}") from error


_index_decoder = msgspec.msgpack.Decoder(tuple[list[int], list[int]])
_index_encoder = msgspec.msgpack.Encoder()


def name_crc(name: str) -> int:
    """A name as an index has it."""
    return crc32(name.encode())


class Packer:
    """Makes frames."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)

    def header(self, header: bytes) -> bytes:
        """The begin of a part."""
        return BEGIN + self._frame(header, _Facts(Kind.HEADER), b"\x92\x90\x90")

    def entries(self, entries: Sequence[Entry]) -> bytes:
        """A frame of some entries.

        Raises:
            TypeError: something is in them that has no place in a journal.
        """
        requests = sorted({request for each in entries for request in requests_of(each.event, each.commands)})
        distances = [*requests[:1], *(later - earlier for earlier, later in pairwise(requests))]
        names = [name_crc(each.name) for each in entries if each.name]
        index = _index_encoder.encode((distances, names))
        facts = _Facts(Kind.ENTRIES, len(entries), entries[0].now, entries[-1].now)
        if requests:
            facts = facts._replace(lowest=requests[0], highest=requests[-1])
        return self._frame(encode(entries), facts, index)

    def _frame(self, body: bytes, facts: _Facts, index: bytes) -> bytes:
        packed = self._compressor.compress(body)
        head = _HEAD.pack(_MARK, facts.kind, len(index), len(packed), *facts[1:], crc32(packed))
        return b"".join((head, _CRC.pack(crc32(index, crc32(head))), index, packed))


def frames(data: Bytes, start: int = len(BEGIN)) -> Iterator[Frame]:
    """The frames of a part, from the first one on.

    Raises:
        CutError: what follows is no whole frame; the message says where.
        JournalError: it is none at all.
    """
    size = len(data)
    while start < size:
        index_at = start + HEAD_BYTES
        if index_at > size:
            raise CutError(f"cut at byte {start}: {size - start} bytes follow that are no whole frame")
        head = data[start : start + _HEAD.size]
        mark, kind, index_bytes, body_bytes, entries, first_s, last_s, lowest, highest, body_crc = _HEAD.unpack(head)
        body_at = index_at + index_bytes
        end = body_at + body_bytes
        if mark != _MARK:
            raise JournalError(f"damaged at byte {start}: no frame begins there")
        if end > size:
            raise CutError(f"cut at byte {start}: {size - start} bytes follow that are no whole frame")
        (head_crc,) = _CRC.unpack(data[start + _HEAD.size : index_at])
        if crc32(data[index_at:body_at], crc32(head)) != head_crc:
            raise JournalError(f"damaged at byte {start}: the checksum of a head is wrong")
        yield Frame(data, kind, index_at, body_at, end, entries, first_s, last_s, lowest, highest, body_crc)
        start = end


def check_begin(data: Bytes) -> None:
    """See whether a part can be read.

    Raises:
        JournalError: it is none, or of another version.
    """
    begin = bytes(data[: len(BEGIN)])
    if begin[: len(_MAGIC)] != _MAGIC or len(begin) < len(BEGIN):
        raise JournalError("no journal: it does not begin as one")
    if begin != BEGIN:
        raise JournalError(f"a journal of format {begin[-1]}; this version reads format {FORMAT}")
