"""What tests of transfer move: a clock that passes when told to, memory with a content, ranges that fit."""

from __future__ import annotations

import itertools
import random

from hypothesis import strategies as st

from hyperflexis.transfer.memory import SharedMemory

MEDIA = ("shm", "unix", "tcp")
"""Those that work everywhere."""
MB = 1 << 20
SIZE = 300
"""Of the source and the target of `apart`."""


@st.composite
def apart(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Ranges that do not overlap in the target; from anywhere, adjacent or not, in any order."""
    cuts = sorted(draw(st.lists(st.integers(0, SIZE), max_size=30)))
    ranges = []
    for start, end in itertools.pairwise(cuts):
        if draw(st.booleans()):
            is_adjacent = bool(ranges) and ranges[-1][1] + ranges[-1][2] == start and draw(st.booleans())
            source = ranges[-1][0] + ranges[-1][2] if is_adjacent else draw(st.integers(0, SIZE))
            ranges.append((min(source, SIZE - (end - start)), start, end - start))
    return draw(st.permutations(ranges))


class HandClock:
    """Nanoseconds that pass when told to."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


def filled(size_bytes: int, seed: int = 0) -> SharedMemory:
    """Memory whose every stretch is unlike the others."""
    memory = SharedMemory(size_bytes)
    memory.view[:] = random.Random(seed).randbytes(size_bytes)
    return memory
