"""The chat arena log of the VTC artifact: req_id, model_dir, adapter_dir, prompt_len, output_len, req_time (s).

Its authors rescaled the arrival times, so absolute rates are not production rates. The tenant (adapter_dir) is not
used: service classes are the workload's. No prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator

from hyperflexis.sim.job import Job
from hyperflexis.sim.traces.reading import Head, Reading, number_of, table, whole

COLUMNS = ("req_time", "prompt_len", "output_len")


def matches(head: Head) -> bool:
    return set(COLUMNS) <= set(head.columns)


def read(reading: Reading) -> Iterator[Job]:
    """One job per row."""
    columns, lines = table(reading, COLUMNS)
    clock, prompt, output = columns.indices

    def parse(line: str) -> Job:
        cells = columns.split(line)
        at_s = number_of(cells[clock], COLUMNS[0])
        return Job(at_s, whole(cells[prompt], COLUMNS[1]), whole(cells[output], COLUMNS[2]), "")

    return reading.jobs(lines, parse)
