"""Bytes that are nearly right: what was recorded, changed in a few places. A seed gives the same ones each time."""

from __future__ import annotations

import random
from collections.abc import Sequence

EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x0D, 0x20, 0xC1, 0xDF, 0xDD)
"""Bytes at which readers change their minds: ends of ranges, of lines, and of lengths in msgpack."""
LENGTHS = tuple(
    number.to_bytes(4, order) for number in (0, 1, 2**16, 2**30, 2**31 - 1, 2**32 - 1) for order in ("little", "big")
)

DEEP = tuple(opening * 5000 for opening in (b"\x91", b"[", b'{"a":'))
"""What makes readers call themselves."""


def mutated(recorded: Sequence[bytes], rng: random.Random, words: Sequence[bytes] = ()) -> bytes:
    """One of what was recorded, changed up to eight times; `words` mean something to whoever reads it."""
    data = bytearray(rng.choice(recorded))
    for _ in range(rng.choice((0, 1, 1, 2, 3, 8))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + int(rng.expovariate(0.1)))
        change = rng.randrange(9)
        if change == 0 and data:
            data[start % len(data)] ^= 1 << rng.randrange(8)
        elif change == 1 and data:
            data[start % len(data)] = rng.choice(EDGES)
        elif change == 2:
            del data[start:end]
        elif change == 3:
            data[start:start] = data[start:end] * rng.choice((1, 2, 50))
        elif change == 4:
            data[start : start + 4] = rng.choice(LENGTHS)
        elif change == 5:
            other = rng.choice(recorded)
            data[start:] = other[rng.randrange(len(other) + 1) :]
        elif change == 6:
            data[start:end] = rng.choice(DEEP)
        elif change == 7 and words:
            data[start : end if rng.random() < 0.5 else start] = rng.choice(words)
        else:
            data[start:start] = rng.randbytes(rng.choice((1, 4, 64)))
    return bytes(data)


def pieces(data: bytes, rng: random.Random) -> list[bytes]:
    """The same, cut anywhere."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 1, 5))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
