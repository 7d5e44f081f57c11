"""JSONL in the manner of serving benchmarks' replay files: one request per line, under any of a few usual names.

`timestamp` counts in milliseconds unless said otherwise, `at_s` and `arrival_time` in seconds. `hash_ids` stand for
`hash_tokens` tokens each. A row with `session_id` and `delay` (ms) is the next turn of the session in the row before
it, in closed loop: its prompt is the whole history and its own tokens after it, which is how such files are replayed.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any, NamedTuple

from hyperflexis.sim.job import Job
from hyperflexis.sim.traces.prefixes import Prefixes
from hyperflexis.sim.traces.reading import Head, Reading, json_ids, json_number, json_object, json_whole
from hyperflexis.sim.traces.turns import Turn, first_turn

SECONDS_KEYS = ("at_s", "arrival_time")
PROMPT_KEYS = ("input_length", "prompt_tokens", "prompt_len", "input_tokens")
OUTPUT_KEYS = ("output_length", "output_tokens", "output_len", "completion_tokens")
FOREIGN_KEYS = frozenset({"chat_id", "parent_chat_id"})
"""Files that look alike but count in other units: to be read only where the format is named."""


class Row(NamedTuple):
    """One line, under one set of names."""

    at_s: float | None
    """None: a turn, `pause_s` after the one before it."""
    pause_s: float
    session: Any
    prompt_tokens: int
    output_tokens: int
    hash_ids: list[int]


def matches(head: Head) -> bool:
    has_time = any(key in head.keys for key in ("timestamp", *SECONDS_KEYS))
    has_lengths = all(any(key in head.keys for key in keys) for keys in (PROMPT_KEYS, OUTPUT_KEYS))
    return has_time and has_lengths and not head.keys & FOREIGN_KEYS


def read(reading: Reading) -> Iterator[Job]:
    """One job per request that follows no other."""
    return _jobs(reading, _Session(reading))


def _jobs(reading: Reading, session: _Session) -> Iterator[Job]:
    for number, line in reading.lines():
        try:
            row = _row(line, reading.options.timestamp_unit_s)
            if row.at_s is None:
                session.add(number, row)
                continue
        except ValueError as why:
            reading.refuse(number, str(why) if line else "empty line")
            continue
        yield from session.finish()
        if reading.admit(number, Job(row.at_s, row.prompt_tokens, row.output_tokens, "")):
            session.begin(row)
    yield from session.finish()


def _row(line: str, unit_s: float) -> Row:
    row = json_object(line)
    prompt_tokens, output_tokens = _tokens(row, PROMPT_KEYS), _tokens(row, OUTPUT_KEYS)
    if row.get("session_id") is not None and row.get("delay") is not None and row.get("timestamp") is None:
        pause_s = json_number(row, "delay") / 1000
        if not 0 <= pause_s < inf:
            raise ValueError(f"delay is {row['delay']}")
        return Row(None, pause_s, row["session_id"], prompt_tokens, output_tokens, json_ids(row))
    key = next((key for key in SECONDS_KEYS if key in row), "timestamp")
    at_s = json_number(row, key) * (unit_s if key == "timestamp" else 1.0)
    return Row(at_s, 0.0, row.get("session_id"), prompt_tokens, output_tokens, json_ids(row))


def _tokens(row: dict[str, Any], keys: tuple[str, ...]) -> int:
    for key in keys:
        if key in row:
            return json_whole(row, key)
    raise ValueError(f"none of {', '.join(keys)}")


class _Session:
    """The request that was read last, and the turns that follow it."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._prefixes: Prefixes | None = None
        """Of requests that stand alone; there are none until one has hash ids."""
        self._first: Row | None = None
        self._turns: list[Turn] = []

    def begin(self, row: Row) -> None:
        self._first = row
        self._turns = [Turn(0.0, row.prompt_tokens, row.output_tokens, row.hash_ids)]

    def add(self, number: int, row: Row) -> None:
        """Append a turn, if it is one of this session and fits."""
        if self._first is None or self._first.session != row.session:
            raise ValueError(f"a turn of session {row.session!r} must follow the row before it in that session")
        before = self._turns[-1]
        prompt_tokens = before.prompt_tokens + before.output_tokens + row.prompt_tokens
        if row.prompt_tokens > 0 and self._admits(number, prompt_tokens, row):
            self._turns.append(Turn(row.pause_s, prompt_tokens, row.output_tokens))
        elif row.prompt_tokens <= 0:
            raise ValueError(f"prompt of {row.prompt_tokens} tokens")

    def _admits(self, number: int, prompt_tokens: int, row: Row) -> bool:
        return self._reading.admit(number, Job(self._reading.latest_s, prompt_tokens, row.output_tokens, ""))

    def finish(self) -> Iterator[Job]:
        """The first request, once all that follows it is known."""
        if self._first is not None and self._first.at_s is not None:
            yield first_turn(self._first.at_s, *self._prefixed(self._first))
        self._first = None

    def _prefixed(self, first: Row) -> tuple[list[Turn], Prefixes]:
        """The turns with hash ids, and what these stand for."""
        options = self._reading.options
        if len(self._turns) > 1 or not first.hash_ids:
            # History only grows, so one session's block at one place has one content.
            grown = range(self._turns[-1].prompt_tokens // options.block_tokens if len(self._turns) > 1 else 0)
            own = Prefixes(
                self._reading.prefix_scope("session", first.session), options.block_tokens, options.block_tokens
            )
            return [turn._replace(hash_ids=grown) for turn in self._turns], own
        try:
            self._prefixes = self._prefixes or Prefixes(
                self._reading.prefix_scope(), options.hash_tokens, options.block_tokens
            )
        except ValueError as why:
            raise self._reading.fault(str(why)) from None
        return self._turns, self._prefixes
