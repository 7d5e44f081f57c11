"""Digests of weights, chunk by chunk, and one over them all that names the bytes.

With it a wrong chunk is found when it comes, before anything is built on it, and the one who sent it is known. Against
intent too: SHA-256. Costs about half a CPU second per GB, which is why it is made beside other work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec

CHUNK_BYTES = 16 << 20
"""Pulled, checked and lent on as one. Smaller ones would let a chain of recipients start sooner, and cost each more."""
DIGEST_BYTES = 32


def chunks(size_bytes: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """(start, end) of each chunk, from the one that begins at `start`."""
    for at in range(start, size_bytes, CHUNK_BYTES):
        yield at, min(at + CHUNK_BYTES, size_bytes)


class Manifest(msgspec.Struct, frozen=True):
    """What each chunk is to be."""

    digests: bytes
    """One after the other."""

    @classmethod
    def of(cls, view: memoryview) -> Manifest:
        """Read everything."""
        return cls(b"".join(digest_of(view[start:end]) for start, end in chunks(view.nbytes)))

    @property
    def root(self) -> bytes:
        return hashlib.sha256(self.digests).digest()

    def fits(self, size_bytes: int) -> bool:
        """Whether it speaks of so many bytes."""
        return len(self.digests) == DIGEST_BYTES * -(-size_bytes // CHUNK_BYTES)

    def at(self, start: int) -> bytes:
        """The digest of the chunk that begins there."""
        at = start // CHUNK_BYTES * DIGEST_BYTES
        return self.digests[at : at + DIGEST_BYTES]


def digest_of(chunk: memoryview) -> bytes:
    return hashlib.sha256(chunk).digest()
