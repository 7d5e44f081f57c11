"""Digests of weights, piece by piece, and one over them all that names the bytes.

With it a wrong piece is found when it comes, before anything is built on it, and the one who sent it is known. Against
intent too: SHA-256. Costs about half a CPU second per GB, which is why it is made beside other work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

PIECE_BYTES = 1 << 20
"""Has one digest: small, so that a look at a few of them says much about all."""
CHUNK_BYTES = 16 * PIECE_BYTES
"""Pulled, checked and lent on as one. Smaller ones would let a chain of recipients start sooner, and cost each more."""
DIGEST_BYTES = 32


def chunks(size_bytes: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """(start, end) of each chunk, from the one that begins at `start`."""
    for at in range(start, size_bytes, CHUNK_BYTES):
        yield at, min(at + CHUNK_BYTES, size_bytes)


class Manifest(NamedTuple):
    """What each piece is to be."""

    digests: bytes
    """One after the other."""

    @classmethod
    def of(cls, view: memoryview) -> Manifest:
        """Read everything; the view begins where a piece does."""
        return cls(b"".join(digest_of(view, at) for at in range(0, view.nbytes, PIECE_BYTES)))

    @property
    def root(self) -> bytes:
        return hashlib.sha256(self.digests).digest()

    @property
    def pieces(self) -> int:
        return len(self.digests) // DIGEST_BYTES

    def fits(self, size_bytes: int) -> bool:
        """Whether it speaks of so many bytes."""
        return len(self.digests) == DIGEST_BYTES * -(-size_bytes // PIECE_BYTES)

    def holds(self, piece: int, view: memoryview) -> bool:
        """Whether this piece of the whole is as it should be."""
        return self._at(piece, piece + 1) == digest_of(view, piece * PIECE_BYTES)

    def includes(self, part: Manifest, start: int) -> bool:
        """Whether what a chunk was found to be is what it is to be there."""
        first = start // PIECE_BYTES
        return self._at(first, first + part.pieces) == part.digests

    def _at(self, first: int, end: int) -> bytes:
        return self.digests[first * DIGEST_BYTES : end * DIGEST_BYTES]


def digest_of(view: memoryview, at: int) -> bytes:
    """Of the piece that begins there."""
    return hashlib.sha256(view[at : at + PIECE_BYTES]).digest()
