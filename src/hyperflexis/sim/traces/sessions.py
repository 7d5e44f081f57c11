"""Coding-agent sessions, one JSON object per line: requests[in, out, hash_ids, think_time], 64-token blocks.

Every session's clock starts at 0, so the arrival of sessions is generated, a Poisson process unless a CV is given, and
the turns follow in closed loop: each comes `think_time` after the answer before it. What the requests took when they
were recorded (t, api_time) is not used. Hash ids are the session's own. A subagent's requests stand where they were
started and are replayed one after the other, though several may have run at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from math import inf
from typing import Any

from hyperflexis.sim.job import Job
from hyperflexis.sim.traces.arrivals import renewal
from hyperflexis.sim.traces.prefixes import Prefixes
from hyperflexis.sim.traces.reading import Head, Reading, json_ids, json_number, json_object, json_whole, shown
from hyperflexis.sim.traces.turns import Turn, first_turn

KEYS = frozenset({"id", "block_size", "requests"})


def matches(head: Head) -> bool:
    return head.keys >= KEYS


def read(reading: Reading) -> Iterator[Job]:
    """One job per session: its first turn. Bad turns are refused one by one; a session without a good one is none."""
    instants = renewal(reading.arrivals_per_s(), reading.options.cv, reading.random())
    return _sessions(reading, instants)


def _sessions(reading: Reading, instants: Iterator[float]) -> Iterator[Job]:
    for number, line in reading.lines():
        at_s = next(instants)
        try:
            row = json_object(line)
            prefixes = _prefixes(reading, row)
            requests = list(_requests(row))
        except ValueError as why:
            reading.refuse(number, str(why) if line else "empty line")
            continue
        turns = [turn for each in requests if (turn := _turn(reading, number, at_s, each)) is not None]
        if turns:
            yield first_turn(at_s, turns, prefixes)


def _prefixes(reading: Reading, row: dict[str, Any]) -> Prefixes:
    is_local = row.get("hash_id_scope", "local") == "local"
    scope = reading.prefix_scope("session", row.get("id")) if is_local else reading.prefix_scope()
    return Prefixes(scope, json_whole(row, "block_size"), reading.options.block_tokens)


def _requests(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The requests of a session or subagent, those of its subagents at their place."""
    requests = row.get("requests")
    if not isinstance(requests, list) or not requests:
        raise ValueError("no requests")
    for each in requests:
        if not isinstance(each, dict):
            raise ValueError(f"a request is no JSON object: {shown(each)}")
        if "requests" in each:
            yield from _requests(each)
        else:
            yield each


def _turn(reading: Reading, number: int, at_s: float, request: dict[str, Any]) -> Turn | None:
    try:
        pause_s = json_number(request, "think_time") if request.get("think_time") is not None else 0.0
        if not 0 <= pause_s < inf:
            raise ValueError(f"think_time is {pause_s}")
        cap_s = reading.options.think_s_max
        turn = Turn(
            pause_s if cap_s is None else min(pause_s, cap_s),
            json_whole(request, "in"),
            json_whole(request, "out"),
            array("q", json_ids(request)),
        )
    except (ValueError, OverflowError) as why:
        reading.refuse(number, str(why))
        return None
    return turn if reading.admit(number, Job(at_s, turn.prompt_tokens, turn.output_tokens, "")) else None
