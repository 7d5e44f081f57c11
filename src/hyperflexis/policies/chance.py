"""Chance for policies that need it: numbers that depend on a request's id and nothing else.

The same run gives the same choices, and no generator's state is shared between requests. The mixing is SplitMix64's
(Steele, Lea, Flood 2014). Not for secrets.
"""

from __future__ import annotations

SEED = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def draw(request_id: int, number: int, below: int) -> int:
    """The `number`-th draw for a request, evenly from 0 .. below - 1."""
    mixed = (SEED * (request_id + 1) + 0xD1B54A32D192ED03 * (number + 1)) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((mixed ^ (mixed >> 31)) * below) >> 64
