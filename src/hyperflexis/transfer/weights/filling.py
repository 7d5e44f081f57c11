"""A recipient's own memory while it is being filled, chunk by chunk, from one donor or from several in turn.

Written with `pwrite`, not through a mapping: into pages that do not exist yet that is several times as fast, for they
need neither be cleared nor be faulted in one by one.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from hyperflexis.transfer.descriptor import Descriptor
from hyperflexis.transfer.errors import Corrupt
from hyperflexis.transfer.receiver import Receiver
from hyperflexis.transfer.watermark import Watermark
from hyperflexis.transfer.weights.manifest import CHUNK_BYTES, Manifest, chunks

_AT_ONCE = 2
"""Chunks that have come and are not in their place yet."""


class Filling:
    """The descriptor is the caller's."""

    def __init__(self, fd: int, size_bytes: int, manifest: Manifest | None) -> None:
        self.watermark = Watermark(size_bytes)
        self.manifest = manifest
        """What the chunks are to be, if that is known."""
        self._fd = fd
        self._digests: list[bytes] = []

    def pull(self, descriptor: Descriptor, receiver: Receiver, chunk_s: float) -> str:
        """Fill what is not settled yet; return by which medium.

        While a chunk comes, the one before it is checked and the one before that put in its place. Without a manifest
        it is compared with the donor's checksum, which finds what the way there has done to it.

        Raises:
            Corrupt: a chunk is not what it is to be; those before it are, and stay.
            TransferError: the donor takes back, is lost, or sends nothing for so long.
        """
        medium = ""
        scratch = deque(memoryview(bytearray(self._chunk_bytes)) for _ in range(_AT_ONCE + 1))
        written: deque[Future[None]] = deque()
        with ThreadPoolExecutor(1, "weights-check") as checking, ThreadPoolExecutor(1, "weights-write") as writing:
            for start, end in chunks(self.watermark.size_bytes, self.watermark.settled_bytes):
                if len(written) == _AT_ONCE:
                    written.popleft().result()
                scratch.rotate()
                chunk = scratch[0][: end - start]
                has_checksums = self.manifest is None
                pull = receiver.pull(
                    descriptor, [(start, 0, end - start)], chunk, has_checksums=has_checksums, timeout_s=chunk_s
                )
                medium = pull.result().medium
                checked = checking.submit(self._check, start, chunk, descriptor)
                written.append(writing.submit(self._settle, start, chunk, checked))
            for each in written:
                each.result()
        return medium

    @property
    def made(self) -> Manifest:
        """What has settled, as it was found to be."""
        return Manifest(b"".join(self._digests))

    @property
    def _chunk_bytes(self) -> int:
        return min(CHUNK_BYTES, self.watermark.size_bytes)

    def _check(self, start: int, chunk: memoryview, descriptor: Descriptor) -> Manifest:
        found = Manifest.of(chunk)
        if self.manifest is not None and not self.manifest.includes(found, start):
            raise Corrupt(f"the chunk at byte {start} of {descriptor} is not what it is to be: its owner errs or lies")
        return found

    def _settle(self, start: int, chunk: memoryview, checked: Future[Manifest]) -> None:
        found = checked.result()
        if start != self.watermark.settled_bytes:
            return  # The chunk before it has failed, and who pulls will hear of that.
        done = 0
        while done < chunk.nbytes:
            done += os.pwrite(self._fd, chunk[done:], start + done)
        self._digests.append(found.digests)
        self.watermark.rise(start + chunk.nbytes)
