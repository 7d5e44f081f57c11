"""CRC-32 of ranges, and what it means when they differ. Finds what happens to bytes by accident, not by intent."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

from hyperflexis.transfer.descriptor import Descriptor
from hyperflexis.transfer.errors import Corrupt, PeerLost
from hyperflexis.transfer.ranges import Range


def checksums(views: Iterable[memoryview]) -> list[int]:
    return [zlib.crc32(view) for view in views]


def compare(descriptor: Descriptor, ranges: Sequence[Range], sent: Sequence[int], arrived: Sequence[int]) -> None:
    """Accept the bytes or not.

    Raises:
        Corrupt: the first range that differs is named.
        PeerLost: the owner gave another number of checksums.
    """
    if len(sent) != len(ranges):
        raise PeerLost(f"{descriptor.owner} sent {len(sent)} checksums for {len(ranges)} ranges; it is of no use")
    for each, was, is_now in zip(ranges, sent, arrived, strict=True):
        if was != is_now:
            raise Corrupt(
                f"bytes {each.source} to {each.source + each.length} of {descriptor} arrived changed "
                f"(checksum {is_now:08x} instead of {was:08x}, target offset {each.target}): the way there is at fault"
            )
