"""How much longer than in the suite tests at random are played: `make soak` says so in the variable SOAK.

Marked `soak` are those in which requests move between instances; they ask `examples` how many worlds to play.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

FACTOR = int(os.environ.get("SOAK") or 1)

FIRST_SEED = 0 if FACTOR == 1 else int(os.environ.setdefault("SOAK_FROM", str(time.time_ns() % 1_000_000_000)))
"""Where seeds begin: the same ones in the suite, others when it soaks. The variable hands it on to pytest's workers,
which must all find the same tests, and says how to play them again.
"""


def examples(count: int) -> int:
    """So many in the suite, and more when it soaks."""
    return count * FACTOR


FUZZED_S = 45.0
"""Seconds for each time that it soaks longer, of each test that fuzzes: four of them make an hour of 20 times."""


def seeds(count: int) -> Iterator[int]:
    """The same ones in the suite; when it soaks, others for as long as it takes."""
    if FACTOR == 1:
        yield from range(count)
        return
    until_s, seed = time.monotonic() + FUZZED_S * FACTOR, FIRST_SEED
    while time.monotonic() < until_s:
        yield seed
        seed += 1
