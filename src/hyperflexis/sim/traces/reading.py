"""What all formats share: the choices of a reader, what counts as a good row, and what happens to a bad one.

Trace time is seconds since the trace's start: its own where it has one, its first row where its clock is a wall clock.
Knows no format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from hyperflexis.sim.job import Job
from hyperflexis.sim.traces.source import TraceError, numbered_lines

TOKENS_MAX = 2**31
"""Of prompt and answer together, where no smaller limit is given."""
VALUE_CHARS_MAX = 40
"""How much of a bad value a complaint repeats."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a trace is read. What a format has no use for, it ignores."""

    block_tokens: int = 16
    """KV block of the instances that will serve the jobs: prefix hashes are made for blocks of this size."""
    seed: int = 0
    skip_bad: bool = False
    """Leave out bad rows and count them, where otherwise the first one is an error."""
    context_tokens_max: int | None = None
    """Rows whose prompt and answer together are longer are bad."""
    arrivals_per_s: float | None = None
    """Mean arrival rate, for formats without arrival times: requests, or sessions; for rate tables, of all clients."""
    cv: float = 1.0
    """Coefficient of variation of generated gaps between arrivals, where the format does not say; 1 is Poisson."""
    spread: bool = True
    """Spread what arrives in one tick of a coarse clock evenly over the tick."""
    origin: str | None = None
    """Wall clock at trace second 0 as YYYY-MM-DD HH:MM:SS, so that traces of one clock stay in step."""
    hash_tokens: int = 512
    """Prompt tokens that one hash id of a replay file stands for."""
    timestamp_unit_s: float = 0.001
    """What one unit of a replay file's `timestamp` is worth."""
    think_s_max: float | None = None
    """Longer pauses inside a session are shortened to this."""
    clients: tuple[int, ...] = ()
    """Which clients of a rate table; none named means all."""
    window_s: tuple[float, float] = (0.0, inf)
    """What the caller will keep. Only a hint: generated traces start there instead of running up to it."""
    scope: str = ""
    """Prefixes are shared among rows of one scope of one trace."""

    def __post_init__(self) -> None:
        least = {"block_tokens": 1, "hash_tokens": 1, "context_tokens_max": 1, "seed": 0, "cv": 0.0, "think_s_max": 0.0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not bound <= value < inf:
                raise ValueError(f"{name} = {value}: {bound:g} or more")
        for name in ("arrivals_per_s", "timestamp_unit_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                raise ValueError(f"{name} = {value}: more than 0")


DEFAULTS = Options()


class Head(NamedTuple):
    """What a format is recognised by."""

    columns: tuple[str, ...]
    """The first line, split at commas; empty for JSON."""
    keys: frozenset[str]
    """Keys of the first line's JSON object, if it is one."""


class Reading:
    """One pass over one file: its choices, and how many rows were left out so far."""

    def __init__(self, path: Path, options: Options) -> None:
        self.path = path
        self.options = options
        self.name = path.name.removesuffix(".gz").removesuffix(".zst")
        self.skipped = 0
        self.latest_s = 0.0
        """Arrival of the last good row."""
        self._files: list[Generator[tuple[int, str], None, None]] = []

    def refuse(self, line: int, reason: str) -> None:
        """A row is bad: raise, or count it where that is wanted."""
        if not self.options.skip_bad:
            raise TraceError(self.path, line, reason)
        self.skipped += 1

    def fault(self, reason: str, line: int = 0) -> TraceError:
        """What to raise where no row can be skipped to mend it."""
        return TraceError(self.path, line, reason)

    def random(self, *key: int) -> np.random.Generator:
        """A generator of this trace, seed and key; traces that are mixed under one seed are still independent."""
        return np.random.default_rng([self.options.seed, crc32(self.name.encode()), *key])

    def prefix_scope(self, *more: object) -> str:
        """Within which equal hash ids mean equal content."""
        return "/".join(map(str, (self.name, self.options.scope, *more)))

    def lines(self, path: Path | None = None) -> Iterator[tuple[int, str]]:
        """The file's lines. A damaged end counts as one bad row."""
        lines = numbered_lines(path or self.path)
        self._files.append(lines)
        while True:
            try:
                yield next(lines)
            except StopIteration:
                return
            except TraceError as damage:
                if damage.line == 0 or not self.options.skip_bad:
                    raise
                self.skipped += 1
                return

    def close(self) -> None:
        """Close the files, wherever in them it stopped."""
        for lines in self._files:
            lines.close()

    def jobs(self, lines: Iterable[tuple[int, str]], parse: Callable[[str], Job]) -> Iterator[Job]:
        """A job per line, in order of arrival; `parse` says by ValueError what is wrong with a line."""
        tokens_max = self.options.context_tokens_max or TOKENS_MAX
        for number, line in lines:
            try:
                job = parse(line)
            except ValueError as why:
                self.refuse(number, str(why) if line else "empty line")
                continue
            at_s, prompt, output = job.at_s, job.prompt_tokens, job.output_tokens
            # `admit` without its call, which would cost as much as the rest. NaN fails the first link.
            if self.latest_s <= at_s < inf and prompt > 0 < output and prompt + output <= tokens_max:
                self.latest_s = at_s
                yield job
            else:
                self.refuse(number, self._complaint(job, tokens_max))

    def admit(self, number: int, job: Job) -> bool:
        """Whether a job is good and in order; refuses it otherwise. For rows that are not one job each."""
        tokens_max = self.options.context_tokens_max or TOKENS_MAX
        is_timely = self.latest_s <= job.at_s < inf
        if is_timely and job.prompt_tokens > 0 < job.output_tokens and sum(job[1:3]) <= tokens_max:
            self.latest_s = job.at_s
            return True
        self.refuse(number, self._complaint(job, tokens_max))
        return False

    def _complaint(self, job: Job, tokens_max: int) -> str:
        if not 0 <= job.at_s < inf:
            return f"arrival time is {job.at_s} s"
        if job.at_s < self.latest_s:
            return f"unsorted: arrives at {job.at_s:g} s, after a row at {self.latest_s:g} s"
        if job.prompt_tokens <= 0:
            return f"prompt of {job.prompt_tokens} tokens"
        if job.output_tokens <= 0:
            return f"answer of {job.output_tokens} tokens"
        total = job.prompt_tokens + job.output_tokens
        return f"{total} tokens of prompt and answer, over context_tokens_max = {tokens_max}"

    def arrivals_per_s(self) -> float:
        """The asked-for arrival rate, where there is no going without one."""
        if self.options.arrivals_per_s is None:
            raise self.fault("this trace has no arrival times: give arrivals_per_s")
        return self.options.arrivals_per_s


def shown(value: object) -> str:
    """A bad value, short enough for one line."""
    text = repr(value)
    return text if len(text) <= VALUE_CHARS_MAX else text[: VALUE_CHARS_MAX - 3] + "..."


def whole(text: str, column: str) -> int:
    """A whole number from a column of text."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{column} is no whole number: {shown(text)}") from None


def number_of(text: str, column: str) -> float:
    """A number from a column of text."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{column} is no number: {shown(text)}") from None


def json_object(line: str) -> dict[str, Any]:
    """The JSON object that a line is."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as why:
        raise ValueError(f"no JSON: {why}") from None
    if not isinstance(found, dict):
        raise ValueError(f"no JSON object: {shown(found)}")
    return found


def json_whole(row: dict[str, Any], key: str) -> int:
    """A whole number from a JSON object."""
    value = row.get(key)
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    raise ValueError(f"no {key}" if key not in row else f"{key} is no whole number: {shown(value)}")


def json_number(row: dict[str, Any], key: str) -> float:
    """A number from a JSON object."""
    value = row.get(key)
    if type(value) is int:
        return float(value) if abs(value) < 2**63 else inf
    if type(value) is float:
        return value
    raise ValueError(f"no {key}" if key not in row else f"{key} is no number: {shown(value)}")


def json_ids(row: dict[str, Any], key: str = "hash_ids") -> list[int]:
    """A list of whole numbers from a JSON object; empty where it is absent."""
    value = row.get(key)
    if value is None:
        return []
    if isinstance(value, list) and set(map(type, value)) <= {int}:
        return value
    raise ValueError(f"{key} is no list of whole numbers: {shown(value)}")


class Columns:
    """Picks columns of a CSV by the names in its header."""

    def __init__(self, header: str, names: Iterable[str]) -> None:
        self._names = header.split(",")
        self.indices = [self._names.index(name) for name in names]

    def split(self, line: str) -> list[str]:
        cells = line.split(",")
        if len(cells) != len(self._names):
            raise ValueError(f"{len(cells)} columns where the header has {len(self._names)}")
        return cells


def table(reading: Reading, names: Iterable[str]) -> tuple[Columns, Iterator[tuple[int, str]]]:
    """The header of a CSV and the lines after it.

    Raises:
        TraceError: a column is missing.
    """
    wanted = list(names)
    lines = reading.lines()
    number, header = next(lines, (0, ""))
    missing = [name for name in wanted if name not in header.split(",")]
    if missing:
        raise reading.fault(f"the header has no column {', '.join(missing)}", number)
    return Columns(header, wanted), lines
