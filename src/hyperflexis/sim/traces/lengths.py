"""CSVs of lengths only (num_prefill_tokens, num_decode_tokens, ...): arrivals are generated, at an asked-for rate.

Gaps are Gamma with a given coefficient of variation; 1 is a Poisson process. Rows keep their order. No prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator

from hyperflexis.sim.job import Job
from hyperflexis.sim.traces.arrivals import renewal
from hyperflexis.sim.traces.reading import Head, Reading, table, whole

COLUMNS = ("num_prefill_tokens", "num_decode_tokens")


def matches(head: Head) -> bool:
    return set(COLUMNS) <= set(head.columns)


def read(reading: Reading) -> Iterator[Job]:
    """One job per row, at the next instant of the arrival process; a bad row takes its instant with it."""
    columns, lines = table(reading, COLUMNS)
    prompt, output = columns.indices
    instants = renewal(reading.arrivals_per_s(), reading.options.cv, reading.random())

    def parse(line: str) -> Job:
        at_s = next(instants)
        cells = columns.split(line)
        return Job(at_s, whole(cells[prompt], COLUMNS[0]), whole(cells[output], COLUMNS[1]), "")

    return reading.jobs(lines, parse)
