"""ServeGen's tables: what each client's arrivals and lengths were like, from which requests are generated.

`*_rates` has one row per client and 600 s window: rate, cv and pattern (Gamma, Weibull or none) of its gaps. A window's
rate is a count of what arrived, so that many arrivals are generated, at gaps of that pattern and CV which fill the
window: the rate is met exactly, and the CV as far as so many gaps can show it. The fitted param1 and param2 are not
used: those of Weibull miss the rate and the CV beside them by a quarter in the median. `*_lengths`, found beside the
rates, has maps of lengths per client and 6 h window; the nearest window that has any is drawn from. What a prompt holds
besides text counts its tokens times how many of them there are; lengths of 0 become 1. Length maps are held in memory,
the requests of one window at a time. Every client's window has a seed of its own, so a selection of clients or windows
gives what is in the whole. Below some cv² requests per window, bursts cannot show: ask for fewer clients instead.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hyperflexis.sim.job import Job
from hyperflexis.sim.traces.arrivals import Floats, unit_gaps
from hyperflexis.sim.traces.reading import Head, Reading, json_object, json_whole, number_of, shown, table, whole

COLUMNS = ("client_id", "timestamp", "rate", "cv", "pattern")
WINDOW_S = 600
PATTERNS = ("Gamma", "Weibull", "")
SUFFIXES = ("", ".gz", ".zst")
MEDIA = ("image", "audio", "video")

Ints = npt.NDArray[np.int64]


class Activity(NamedTuple):
    """One client in one window."""

    client: int
    rate_per_s: float
    cv: float
    pattern: str


class Lengths(NamedTuple):
    """A distribution of whole numbers, to be drawn from by its cumulative weights."""

    values: Ints
    cumulative: Floats

    def draw(self, count: int, rng: np.random.Generator) -> Ints:
        return self.values[np.searchsorted(self.cumulative, rng.random(count), side="right")]


Maps = dict[str, Lengths]
Windows = dict[int, list[Activity]]


def matches(head: Head) -> bool:
    return set(COLUMNS) <= set(head.columns)


def read(reading: Reading) -> Iterator[Job]:
    """Generate the requests that the tables describe, over the wanted window."""
    lengths_path = _lengths_path(reading)
    windows = _windows(reading)
    lengths = _lengths(reading, lengths_path)
    absent = {each.client for row in windows.values() for each in row} - set(lengths)
    if absent:
        raise reading.fault(f"no lengths of client {', '.join(map(str, sorted(absent)))} in {lengths_path.name}")
    return _generate(reading, windows, lengths)


def _lengths_path(reading: Reading) -> Path:
    path = reading.path
    base = path.name.split(".csv")[0].replace("_rates", "_lengths")
    for suffix in SUFFIXES:
        found = path.with_name(f"{base}.jsonl{suffix}")
        if base != path.name and found.exists():
            return found
    raise reading.fault(f"its lengths are not beside it: no {base}.jsonl, .jsonl.gz or .jsonl.zst")


def _windows(reading: Reading) -> Windows:
    """The wanted windows in order of time, each with the clients active in it, scaled to the asked-for rate."""
    start_s, end_s = reading.options.window_s
    windows: Windows = {}
    clients = set()
    columns, lines = table(reading, COLUMNS)
    for number, line in lines:
        try:
            cells = columns.split(line)
            at_s, activity = _activity([cells[index] for index in columns.indices])
        except ValueError as why:
            reading.refuse(number, str(why) if line else "empty line")
            continue
        clients.add(activity.client)
        if start_s < at_s + WINDOW_S and at_s < end_s:
            row = windows.setdefault(at_s, [])
            if activity.rate_per_s and activity.client in (reading.options.clients or clients):
                row.append(activity)
    unknown = set(reading.options.clients) - clients
    if unknown:
        raise reading.fault(f"no client {', '.join(map(str, sorted(unknown)))}; there are: {sorted(clients)}")
    return _scaled(reading, dict(sorted(windows.items())))


def _activity(cells: list[str]) -> tuple[int, Activity]:
    client, at_s = whole(cells[0], COLUMNS[0]), whole(cells[1], COLUMNS[1])
    rate, cv = number_of(cells[2], COLUMNS[2]), number_of(cells[3], COLUMNS[3])
    if client < 0:
        raise ValueError(f"client_id is {client}")
    if at_s < 0 or at_s % WINDOW_S:
        raise ValueError(f"timestamp {at_s} begins no window of {WINDOW_S} s")
    if not (0 <= rate < math.inf and 0 <= cv < math.inf):
        raise ValueError(f"rate {rate}, cv {cv}")
    if cells[4] not in PATTERNS:
        raise ValueError(f"unknown pattern {shown(cells[4])}")
    return at_s, Activity(client, rate, cv if cells[4] else 1.0, cells[4])


def _scaled(reading: Reading, windows: Windows) -> Windows:
    mean_per_s = sum(each.rate_per_s for row in windows.values() for each in row) / max(1, len(windows))
    if not mean_per_s:
        raise reading.fault("nothing arrives from these clients in this window")
    if reading.options.arrivals_per_s is None:
        return windows
    scale = reading.arrivals_per_s() / mean_per_s
    return {at_s: [each._replace(rate_per_s=each.rate_per_s * scale) for each in row] for at_s, row in windows.items()}


def _lengths(reading: Reading, path: Path) -> Mapping[int, dict[int, Maps]]:
    """Client → start of window → field → distribution, without windows that have none."""
    found: dict[int, dict[int, Maps]] = defaultdict(dict)
    wanted = set(reading.options.clients)
    for number, line in reading.lines(path):
        try:
            row = json_object(line)
            client, start = json_whole(row, "client_id"), json_whole(row, "window_start")
            if wanted and client not in wanted:
                continue
            maps = {key: _distribution(value) for key, value in row.items() if _is_lengths(key, value)}
            if not {"output_tokens"} < set(row):
                raise ValueError("no output_tokens")
        except ValueError as why:
            raise reading.fault(f"{path.name}, line {number}: {why}") from None
        if "output_tokens" in maps and len(maps) > 1:
            found[client][start] = maps
    return found


def _is_lengths(key: str, value: Any) -> bool:
    return key.endswith(("_tokens", "_count")) and isinstance(value, dict) and bool(value)


def _distribution(weights: dict[str, Any]) -> Lengths:
    try:
        values = np.array([int(key) for key in weights], dtype=np.int64)
        cumulative = np.cumsum(np.array(list(weights.values()), dtype=np.float64))
    except (TypeError, OverflowError) as why:
        raise ValueError(f"no map of lengths: {why}") from None
    if values.min() < 0 or not 0 < cumulative[-1] < math.inf or np.diff(cumulative, prepend=0.0).min() < 0:
        raise ValueError("no map of lengths to their shares")
    return Lengths(values, cumulative / cumulative[-1])


def _generate(reading: Reading, windows: Windows, lengths: Mapping[int, dict[int, Maps]]) -> Iterator[Job]:
    start_s, end_s = reading.options.window_s
    for at_s, row in windows.items():
        parts = [_requests(reading, at_s, each, lengths[each.client]) for each in row]
        if not parts:
            continue
        instants, prompts, outputs = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(instants, kind="stable")
        for instant, prompt, output in zip(
            (at_s + instants[order]).tolist(), prompts[order].tolist(), outputs[order].tolist(), strict=True
        ):
            if start_s <= instant < end_s and reading.admit(0, job := Job(instant, prompt, output, "")):
                yield job


def _requests(reading: Reading, at_s: int, activity: Activity, lengths: dict[int, Maps]) -> tuple[Floats, Ints, Ints]:
    """One client's window: instants after its start, prompts and outputs."""
    rng = reading.random(at_s, activity.client)
    count = int(activity.rate_per_s * WINDOW_S + rng.random())
    gaps = unit_gaps(activity.pattern, activity.cv, count + 1, rng)
    total = gaps.sum()
    # So many so small gaps that all are 0: a burst somewhere.
    instants = np.cumsum(gaps)[:count] / total * WINDOW_S if total > 0 else np.full(count, rng.random() * WINDOW_S)
    nearest = min(lengths, key=lambda start: (abs(start - at_s), start))
    maps = lengths[nearest]
    return instants, _prompts(maps, count, rng), np.maximum(maps["output_tokens"].draw(count, rng), 1)


def _prompts(maps: Maps, count: int, rng: np.random.Generator) -> Ints:
    total = np.zeros(count, dtype=np.int64)
    for field in ("input_tokens", "text_tokens"):
        if field in maps:
            total += maps[field].draw(count, rng)
    for medium in MEDIA:
        if f"{medium}_tokens" in maps and f"{medium}_count" in maps:
            total += maps[f"{medium}_tokens"].draw(count, rng) * maps[f"{medium}_count"].draw(count, rng)
    return np.maximum(total, 1)
