"""A recipient's own memory while it is being filled, chunk by chunk, from one donor or from several in turn.

Written with `pwrite`, not through a mapping: into pages that do not exist yet that is several times as fast, for they
need neither be cleared nor be faulted in one by one.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor

from hyperflexis.transfer.descriptor import Descriptor
from hyperflexis.transfer.errors import Corrupt
from hyperflexis.transfer.receiver import Receiver
from hyperflexis.transfer.watermark import Watermark
from hyperflexis.transfer.weights.manifest import CHUNK_BYTES, Manifest, chunks, digest_of


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

        A chunk is checked and put in its place while the next one comes. Without a manifest it is compared with the
        donor's checksum, which finds what the way there has done to it.

        Raises:
            Corrupt: a chunk is not what it is to be; those before it are, and stay.
            TransferError: the donor takes back, is lost, or sends nothing for so long.
        """
        medium = ""
        scratch = [memoryview(bytearray(min(CHUNK_BYTES, self.watermark.size_bytes))) for _ in range(2)]
        settled: Future[None] | None = None
        with ThreadPoolExecutor(1, "weights-settle") as settling:
            for start, end in chunks(self.watermark.size_bytes, self.watermark.settled_bytes):
                scratch.reverse()
                chunk = scratch[0][: end - start]
                has_checksums = self.manifest is None
                pull = receiver.pull(
                    descriptor, [(start, 0, end - start)], chunk, has_checksums=has_checksums, timeout_s=chunk_s
                )
                medium = pull.result().medium
                if settled is not None:
                    settled.result()
                settled = settling.submit(self._settle, start, chunk, descriptor)
            if settled is not None:
                settled.result()
        return medium

    @property
    def made(self) -> Manifest:
        """What the chunks are that have settled."""
        return Manifest(b"".join(self._digests))

    def _settle(self, start: int, chunk: memoryview, descriptor: Descriptor) -> None:
        digest = digest_of(chunk)
        if self.manifest is not None and self.manifest.at(start) != digest:
            raise Corrupt(f"the chunk at byte {start} of {descriptor} is not what it is to be: its owner errs or lies")
        self._digests.append(digest)
        done = 0
        while done < chunk.nbytes:
            done += os.pwrite(self._fd, chunk[done:], start + done)
        self.watermark.rise(start + chunk.nbytes)
