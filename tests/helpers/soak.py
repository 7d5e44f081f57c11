"""How much longer than in the suite tests at random are played: `make soak` says so in the variable SOAK.

Marked `soak` are those in which requests move between instances; they ask `examples` how many worlds to play.
"""

from __future__ import annotations

import os

FACTOR = int(os.environ.get("SOAK") or 1)


def examples(count: int) -> int:
    """So many in the suite, and more when it soaks."""
    return count * FACTOR
