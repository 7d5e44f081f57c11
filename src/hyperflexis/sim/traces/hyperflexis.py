"""Our own format: JSONL rows {"at_s": …, "prompt_tokens": …, "output_tokens": …}, with "class" where it is known.

The easiest to write by hand or from another log. No prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator

from hyperflexis.sim.job import Job
from hyperflexis.sim.traces.reading import Head, Reading, json_number, json_object, json_whole, shown

KEYS = frozenset({"at_s", "prompt_tokens", "output_tokens"})
MORE_KEYS = frozenset({"class"})


def matches(head: Head) -> bool:
    return head.keys >= KEYS and head.keys <= KEYS | MORE_KEYS


def read(reading: Reading) -> Iterator[Job]:
    """One job per row."""

    def parse(line: str) -> Job:
        row = json_object(line)
        service_class = row.get("class", "")
        if not isinstance(service_class, str):
            raise ValueError(f"class is no text: {shown(service_class)}")
        at_s = json_number(row, "at_s")
        return Job(at_s, json_whole(row, "prompt_tokens"), json_whole(row, "output_tokens"), service_class)

    return reading.jobs(reading.lines(), parse)
