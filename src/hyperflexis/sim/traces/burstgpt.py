"""BurstGPT's CSV: Timestamp (s), Model, Request tokens, Response tokens, Total tokens, Log Type, in any order.

Later releases add Session ID and Elapsed time; they are not used, as the sessions' prompts are not known. Trace second
0 is the first row. Failed requests have an answer of 0 tokens: skip them, or take the files without fails. No prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator

from hyperflexis.sim.job import Job
from hyperflexis.sim.traces.reading import Head, Reading, number_of, table, whole

COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def matches(head: Head) -> bool:
    return set(COLUMNS) <= set(head.columns)


def read(reading: Reading) -> Iterator[Job]:
    """One job per row."""
    columns, lines = table(reading, COLUMNS)
    clock, prompt, output = columns.indices
    start_s = None

    def parse(line: str) -> Job:
        nonlocal start_s
        cells = columns.split(line)
        at_s = number_of(cells[clock], COLUMNS[0])
        if start_s is None:
            start_s = at_s
        return Job(at_s - start_s, whole(cells[prompt], COLUMNS[1]), whole(cells[output], COLUMNS[2]), "")

    return reading.jobs(lines, parse)
