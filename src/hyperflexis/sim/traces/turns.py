"""A session's turns as jobs that follow from one another: each arrives a pause after the answer before it has ended.

Closed loop: a slow answer delays the rest of its session. A turn's hashes are made when the turn comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from hyperflexis.sim.job import Job
from hyperflexis.sim.traces.prefixes import Prefixes


class Turn(NamedTuple):
    """One request of a session."""

    pause_s: float
    """From the end of the answer before it; no meaning for the first."""
    prompt_tokens: int
    """All of the prompt, history included."""
    output_tokens: int
    hash_ids: Sequence[int] = ()


def first_turn(at_s: float, turns: Sequence[Turn], prefixes: Prefixes) -> Job:
    """A session's first request, from which the others follow."""
    return _turn(turns, 0, prefixes, at_s)


def _turn(turns: Sequence[Turn], index: int, prefixes: Prefixes, at_s: float) -> Job:
    turn = turns[index]
    is_last = index + 1 == len(turns)
    follow_up = None if is_last else partial(_next, turns, index + 1, prefixes)
    hashes = prefixes.of(turn.hash_ids, turn.prompt_tokens)
    return Job(at_s, turn.prompt_tokens, turn.output_tokens, "", hashes, follow_up)


def _next(turns: Sequence[Turn], index: int, prefixes: Prefixes, ended_s: float) -> Job:
    return _turn(turns, index, prefixes, ended_s + turns[index].pause_s)
