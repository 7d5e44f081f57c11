"""Which bytes go where: ranges of a source, their places in a target, and how they are cut for a medium.

Offsets and lengths are bytes. Knows no memory and no socket.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

from hyperflexis.transfer.errors import BadRanges

RANGES_MAX = 1 << 16
"""After coalescing. In blocks of 64 KiB that is 4 GiB in one pull; more is two pulls."""


_target = itemgetter(1)


class Range(NamedTuple):
    """A stretch of bytes that lies in one piece at both ends."""

    source: int
    target: int
    length: int


def coalesce(wanted: Iterable[tuple[int, int, int]], source_bytes: int, target_bytes: int) -> list[Range]:
    """Return the same bytes in as few ranges as can be, by source offset; empty ranges are gone, wherever they were.

    Raises:
        BadRanges: a range leaves its source or target, two overlap in the target, or they are too many.
    """
    ranges: list[Range] = []
    at_source, at_target, length = 0, 0, 0
    for source, target, more in sorted(wanted):
        if more == 0:
            continue
        if source == at_source + length and target == at_target + length and more > 0:
            length += more
            continue
        if length:
            ranges.append(Range(at_source, at_target, length))
        at_source, at_target, length = source, target, more
    if length:
        ranges.append(Range(at_source, at_target, length))
    _check_fit(ranges, source_bytes, target_bytes)
    if len(ranges) > RANGES_MAX:
        raise BadRanges(f"{len(ranges)} ranges are too many for one pull (at most {RANGES_MAX}); mend the caller")
    return ranges


def _check_fit(ranges: Sequence[Range], source_bytes: int, target_bytes: int) -> None:
    target_end = 0
    for source, target, length in sorted(ranges, key=_target):
        if source < 0 or target < 0 or length < 0 or source + length > source_bytes or target + length > target_bytes:
            raise BadRanges(
                f"the range ({source}, {target}, {length}) leaves the region of {source_bytes} bytes or the target of "
                f"{target_bytes}; mend the caller"
            )
        if target < target_end:
            raise BadRanges(f"two ranges overlap in the target at byte {target}; mend the caller")
        target_end = target + length


def total_bytes(ranges: Sequence[Range]) -> int:
    return sum(each.length for each in ranges)


def pieces(ranges: Iterable[Range], bytes_max: int) -> Iterator[Range]:
    """The same ranges, none longer than `bytes_max`."""
    for each in ranges:
        if each.length <= bytes_max:
            yield each
            continue
        for start in range(0, each.length, bytes_max):
            yield Range(each.source + start, each.target + start, min(bytes_max, each.length - start))


def segments(ranges: Iterable[Range], bytes_max: int, pieces_max: int) -> Iterator[list[Range]]:
    """Cut a stream of ranges into batches; both ends of a socket compute the same."""
    batch: list[Range] = []
    room = bytes_max
    for each in pieces(ranges, bytes_max):
        if each.length > room or len(batch) == pieces_max:
            yield batch
            batch, room = [], bytes_max
        batch.append(each)
        room -= each.length
    if batch:
        yield batch
