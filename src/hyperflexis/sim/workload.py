"""What a simulation is fed: streams of jobs cut, turned and scaled in time, given classes, and merged on one clock.

All of it is lazy; what has to be known beforehand (how many there are, until when) takes a pass of its own over the
trace instead of memory. Time goes through these steps: the window is cut from trace time and starts at 0; it is
rotated; repeated; divided by the rate, so bursts keep their shape; and begins after the offset. Pauses inside sessions
are people's and tools', and are not scaled. Knows nothing of how jobs are served.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import inf
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from hyperflexis.sim.errors import InputError
from hyperflexis.sim.job import Job
from hyperflexis.sim.traces import Options, Trace, open_trace
from hyperflexis.sim.traces.reading import DEFAULTS

Generator = Callable[[int], Iterable[Job]]
"""Seed → jobs in order of arrival, the same each time."""


class Band(NamedTuple):
    """The class of prompts up to a length."""

    max_prompt_tokens: float
    service_class: str


@dataclass(frozen=True, slots=True)
class Stream:
    """One source of jobs and what becomes of it."""

    source: str | Path | Generator
    service_class: str = ""
    """For all its jobs; where it is empty, and there are no bands either, the class that the trace names."""
    bands: tuple[Band, ...] = ()
    """Class by length of prompt: the first band that it fits, else the last. A session keeps its first."""
    format: str | None = None
    options: Options = DEFAULTS
    seed: int | None = None
    """Of a generator, or instead of the one in `options`."""
    window_s: tuple[float, float] = (0.0, inf)
    """Trace seconds from and up to which arrivals are kept."""
    rotate_s: float = 0.0
    """What arrives before this second of the window moves to its end: other seeds of the same trace."""
    repeat: int = 1
    """How often the window is played, one after the other. Prefixes are not shared between repeats."""
    rate: float = 1.0
    """How many times faster arrivals come than in the trace."""
    requests_per_s: float | None = None
    """Mean arrival rate instead of `rate`; of a session, its first request counts."""
    offset_s: float = 0.0
    """When the stream begins."""
    limit: int | None = None
    """At most so many arrivals, the first."""

    def __post_init__(self) -> None:
        start_s, end_s = self.window_s
        wrong = {
            f"window_s = {self.window_s}: from, up to": not 0 <= start_s < end_s,
            f"rate = {self.rate}: more than 0": not 0 < self.rate < inf,
            f"requests_per_s = {self.requests_per_s}: more than 0": not 0 < (self.requests_per_s or 1.0) < inf
            or self.requests_per_s == 0,
            "rate or requests_per_s, not both": self.rate != 1.0 and self.requests_per_s is not None,
            f"rotate_s = {self.rotate_s}: 0 or more": not 0 <= self.rotate_s < inf,
            f"offset_s = {self.offset_s}: 0 or more": not 0 <= self.offset_s < inf,
            f"repeat = {self.repeat}: 1 or more": self.repeat < 1,
            f"limit = {self.limit}: 1 or more": self.limit is not None and self.limit < 1,
            "service_class or bands, not both": bool(self.service_class and self.bands),
            "bands: from short to long": list(self.bands) != sorted(self.bands, key=attrgetter("max_prompt_tokens")),
        }
        for rule, is_broken in wrong.items():
            if is_broken:
                raise InputError(f"stream: {rule}")


class Extent(NamedTuple):
    """How many arrivals a window holds, and how long it is."""

    arrivals: int
    length_s: float


class Workload:
    """The jobs of some streams on one clock, once, in order of arrival, then of streams, then of rows."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._players = [_Player(stream) for stream in streams]
        self._jobs = _merged([player.jobs() for player in self._players])

    @property
    def skipped(self) -> int:
        """Bad rows left out: known when a trace was gone through, each counted once however often it is."""
        return sum(player.skipped for player in self._players)

    def __iter__(self) -> Iterator[Job]:
        return self

    def __next__(self) -> Job:
        return next(self._jobs)


def mix(streams: Sequence[Stream]) -> Workload:
    """Merge streams on one clock, lazily.

    Raises:
        TraceError: a trace is missing, bad or empty; when it is first read.
        InputError: a window holds no arrivals, or a generator's jobs are not in order; when they are first read.
    """
    return Workload(streams)


def measure(stream: Stream) -> Extent:
    """Count the arrivals in a stream's window and tell its length, in one pass that holds nothing.

    A window without an end is as long as its last arrival and one mean gap.
    """
    return _Player(stream).extent()


def _merged(streams: Sequence[Iterator[Job]]) -> Iterator[Job]:
    # merge is stable: at equal times, earlier streams first, and each in its own order.
    return streams[0] if len(streams) == 1 else heapq.merge(*streams, key=attrgetter("at_s"))


class _Player:
    """Plays one stream, and keeps the count of bad rows over its passes."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.skipped = 0

    def jobs(self) -> Iterator[Job]:
        """The stream's jobs as they arrive."""
        stream = self.stream
        rate, length_s = stream.rate, 0.0
        if stream.requests_per_s is not None or stream.rotate_s or stream.repeat > 1:
            extent = self.extent()
            length_s = extent.length_s
            if stream.requests_per_s is not None:
                rate = stream.requests_per_s * length_s / extent.arrivals
        repeats = (self._repeat(index, length_s) for index in range(stream.repeat))
        played = (job for repeat in repeats for job in repeat)
        yield from self._finished(islice(played, stream.limit), rate)

    def extent(self) -> Extent:
        start_s, end_s = self.stream.window_s
        count, last_s = 0, 0.0
        for job in self._window(0):
            count, last_s = count + 1, job.at_s
        if end_s < inf:
            return Extent(count, end_s - start_s)
        return Extent(count, last_s + (last_s / (count - 1) if count > 1 and last_s else 1.0))

    def _repeat(self, index: int, length_s: float) -> Iterator[Job]:
        """One playing of the window, rotated, at its place."""
        begin_s = index * length_s
        rotate_s = self.stream.rotate_s % length_s if length_s else 0.0
        if not rotate_s:
            yield from _later(self._window(index), begin_s)
            return
        yield from _later((job for job in self._window(index) if job.at_s >= rotate_s), begin_s - rotate_s)
        before = self._window(index, rotate_s)
        yield from _later((job for job in before if job.at_s < rotate_s), begin_s + length_s - rotate_s)

    def _window(self, repeat: int, length_s: float = inf) -> Iterator[Job]:
        """The window's jobs, its start at 0; no longer than `length_s` where that is less."""
        start_s, end_s = self.stream.window_s
        end_s = min(end_s, start_s + length_s)
        latest_s, is_empty = -inf, length_s == inf
        source = self._open(repeat)
        try:
            for job in source:
                if job.at_s >= end_s:
                    break
                if job.at_s < latest_s:
                    raise InputError(f"generated jobs are not in order: {job.at_s} s after {latest_s} s")
                latest_s = job.at_s
                if job.at_s >= start_s:
                    is_empty = False
                    yield job._replace(at_s=job.at_s - start_s) if start_s else job
        finally:
            if isinstance(source, Trace):
                self.skipped = max(self.skipped, source.skipped)
                source.close()
        if is_empty:
            raise InputError(f"no arrivals between {start_s:g} s and {end_s:g} s of {self._name()}")

    def _open(self, repeat: int) -> Trace | Iterable[Job]:
        stream = self.stream
        seed = stream.options.seed if stream.seed is None else stream.seed
        if callable(stream.source):
            return stream.source(seed)
        scope = f"{stream.options.scope}/{repeat}" if repeat else stream.options.scope
        options = replace(stream.options, seed=seed, window_s=stream.window_s, scope=scope)
        return open_trace(stream.source, stream.format, options)

    def _name(self) -> str:
        source = self.stream.source
        return "the generator" if callable(source) else str(source)

    def _finished(self, jobs: Iterable[Job], rate: float) -> Iterator[Job]:
        """Scaled, put in place, and given its class."""
        stream = self.stream
        offset_s, fixed, bands = stream.offset_s, stream.service_class, stream.bands
        latest_s = 0.0
        for at_s, prompt_tokens, output_tokens, own, hashes, follow_up, max_tokens in jobs:
            # Rotation and repeats round differently; the order must not show it.
            latest_s = max(latest_s, offset_s + at_s / rate)
            service_class = fixed or (_banded(bands, prompt_tokens) if bands else own)
            follows = partial(_classed, follow_up, service_class) if follow_up else None
            yield Job(latest_s, prompt_tokens, output_tokens, service_class, hashes, follows, max_tokens)


def _later(jobs: Iterable[Job], delay_s: float) -> Iterator[Job]:
    return (job._replace(at_s=job.at_s + delay_s) for job in jobs) if delay_s else iter(jobs)


def _banded(bands: Sequence[Band], prompt_tokens: int) -> str:
    for band in bands:
        if prompt_tokens <= band.max_prompt_tokens:
            return band.service_class
    return bands[-1].service_class


def _classed(follow_up: Callable[[float], Job | None], service_class: str, ended_s: float) -> Job | None:
    """The next turn, in the class of the first."""
    job = follow_up(ended_s)
    if job is None:
        return None
    more = partial(_classed, job.follow_up, service_class) if job.follow_up else None
    return job._replace(service_class=service_class, follow_up=more)
