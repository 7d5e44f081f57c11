"""Mooncake's JSONL: timestamp (ms), input_length, output_length, hash_ids of 512-token prefix blocks.

The published timestamps are quantised to about 3 s, so by default the requests of one tick are spread evenly over it:
up to the next tick, 3 s at most. Single requests stay where they are. One tick is held in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hyperflexis.sim.job import Job
from hyperflexis.sim.traces.prefixes import Prefixes
from hyperflexis.sim.traces.reading import Head, Reading, json_ids, json_number, json_object, json_whole

KEYS = frozenset({"timestamp", "input_length", "output_length", "hash_ids"})
HASH_TOKENS = 512
TICK_S = 3.0


def matches(head: Head) -> bool:
    """Mooncake's keys alone: with others beside them, units may differ."""
    return head.keys == KEYS


def read(reading: Reading) -> Iterator[Job]:
    """One job per row."""
    options = reading.options
    try:
        prefixes = Prefixes(reading.prefix_scope(), HASH_TOKENS, options.block_tokens)
    except ValueError as why:
        raise reading.fault(str(why)) from None

    def parse(line: str) -> Job:
        row = json_object(line)
        prompt_tokens = json_whole(row, "input_length")
        hashes = prefixes.of(json_ids(row), prompt_tokens) if prompt_tokens > 0 else ()
        at_s = json_number(row, "timestamp") / 1000
        return Job(at_s, prompt_tokens, json_whole(row, "output_length"), "", hashes)

    jobs = reading.jobs(reading.lines(), parse)
    return spread(jobs, TICK_S) if options.spread else jobs


def spread(jobs: Iterable[Job], tick_s: float) -> Iterator[Job]:
    """Jobs of one instant evenly over the time to the next instant, `tick_s` at most."""
    tick: list[Job] = []
    for job in jobs:
        if tick and job.at_s != tick[0].at_s:
            yield from _spaced(tick, min(tick_s, job.at_s - tick[0].at_s))
            tick.clear()
        tick.append(job)
    if tick:
        yield from _spaced(tick, tick_s)


def _spaced(tick: list[Job], length_s: float) -> Iterator[Job]:
    start_s, count = tick[0].at_s, len(tick)
    for index, job in enumerate(tick):
        yield job._replace(at_s=start_s + length_s * index / count) if index else job
