"""Azure's LLM inference traces of 2023 and 2024: TIMESTAMP,ContextTokens,GeneratedTokens.

The clock is a wall clock with up to seven digits behind the second, in 2024 with `+00:00` behind it and without a
fraction where that is zero. Trace second 0 is the first row, or `origin`. No prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

from hyperflexis.sim.job import Job
from hyperflexis.sim.traces.reading import Head, Reading, shown, table, whole

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_TO_MINUTE = len("2023-11-16 18:17:")
_DAY_S = 86400


def matches(head: Head) -> bool:
    return set(COLUMNS) <= set(head.columns)


def read(reading: Reading) -> Iterator[Job]:
    """One job per row."""
    columns, lines = table(reading, COLUMNS)
    clock, prompt, output = columns.indices
    wall = WallClock()
    origin = reading.options.origin
    try:
        start_s = wall.seconds(origin) if origin else None
    except ValueError as why:
        raise reading.fault(f"origin: {why}") from None

    def parse(line: str) -> Job:
        nonlocal start_s
        cells = columns.split(line)
        at_s = wall.seconds(cells[clock])
        if start_s is None:
            start_s = at_s
        prompt_tokens, output_tokens = whole(cells[prompt], COLUMNS[1]), whole(cells[output], COLUMNS[2])
        return Job(at_s - start_s, prompt_tokens, output_tokens, "")

    return reading.jobs(lines, parse)


class WallClock:
    """Seconds of a wall clock's text. What stands before the seconds is worked out once a minute only."""

    def __init__(self) -> None:
        self._minute = ""
        self._minute_s = 0.0
        self._day_zero = 0

    def seconds(self, text: str) -> float:
        """Seconds since the midnight before the first instant asked for."""
        head, tail = text[:_TO_MINUTE], text[_TO_MINUTE:].removesuffix("+00:00").removesuffix("Z")
        try:
            if head != self._minute:
                self._minute_s = self._minute_start(head)
                self._minute = head
            second_s = float(tail)
        except ValueError:
            raise ValueError(f"no timestamp YYYY-MM-DD HH:MM:SS: {shown(text)}") from None
        if not 0 <= second_s < 61:
            raise ValueError(f"no second of a minute: {shown(text)}")
        return self._minute_s + second_s

    def _minute_start(self, head: str) -> float:
        day = date.fromisoformat(head[:10]).toordinal()
        hour, minute = int(head[11:13]), int(head[14:16])
        if head[10:11] not in (" ", "T") or head[13::3] != "::" or not (0 <= hour < 24 and 0 <= minute < 60):
            raise ValueError
        self._day_zero = self._day_zero or day
        return float((day - self._day_zero) * _DAY_S + hour * 3600 + minute * 60)
