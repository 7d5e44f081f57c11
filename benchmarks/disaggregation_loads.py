"""The six loads of the disaggregation comparison, made of recorded traces: what arrives when, and what it is promised.

    st  steady: lengths of code completion and chat, arrivals a Poisson process
    az  recorded bursts: code completion and chat as they were recorded, compressed in time
    lo  long prompts: half of a long-context chat service's requests beside the chat of another
    sh  shifts: long prompts with short answers, then conversations; 100 s each
    sx  shifts: completions and summaries, then reasoning; 150 s each
    r1  long outputs: a reasoning model's requests, generated from what was measured of its clients

A rate is requests per second of the whole load. In az and lo it compresses time, and a run has as many requests at
every rate. The others last as long whatever the rate, which adds requests to them, and leaves phases where they are. A
seed is another window of the traces or other draws from them, and in sh and sx another phase to begin with. Prefixes
are not shared. Knows nothing of fleets and policies.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.sim import profiles, workload
from hyperflexis.sim.job import Job
from hyperflexis.sim.traces import Options
from hyperflexis.sim.traces.arrivals import renewal
from hyperflexis.sim.workload import Stream

PROFILE = "llama-3-70b/h100/tp4/bfloat16"
KV_TOKEN_BYTES = 80 * 8 * 128 * 2 * 2
"""Layers, KV heads, their width, keys and values, bytes of each."""
SEEDS = (0, 1, 2)

CODE = "azure_llm_2023_code_part1.csv.gz"
CHAT = "azure_llm_2023_conv_part1.csv.gz"
MOONCAKE = "mooncake_conversation_part1.jsonl.gz"
SUMMARIES = "lengths_arxiv_summarization_llama2tok.csv.gz"
SHAREGPT = "lengths_sharegpt_8k_llama2tok.csv.gz"
REASONING = "servegen_deepseek-r1_rates_part1.csv.gz"
REASONING_LENGTHS = "servegen_deepseek-r1_lengths_part1.jsonl.gz"
TRACES = (CODE, CHAT, MOONCAKE, SUMMARIES, SHAREGPT, REASONING, REASONING_LENGTHS)
ORIGIN = "2023-11-16 18:15:46"
"""The second in which the chat trace begins: both Azure traces on one clock."""

# Promises.

QUALITIES = {50: 1.0, 30: 0.6}
"""By the pace of chat in milliseconds: what all paces are multiplied with."""
PROMISES = {"code": (0.8, 0.1), "chat": (2.0, 0.05), "summary": (10.0, 0.1)}
"""Seconds to the first token, and between tokens."""
LONG_TTFT_S, LONG_TPOT_S = 6.0, 0.05
LONG_IDLE_FACTOR = 4.0
LONG_UP_TO = (24_000, 36_000, 54_000, 81_000, 130_000)
"""Prompt tokens of the classes of long prompts. Each is promised four times what its longest takes on an idle
instance, and no less than the first one is."""
REASON_TOKENS_MAX = 8_000
"""What a reasoning model's prompts up to this are promised is chat's, of longer ones the long prompts'."""


def classes(quality: int) -> dict[str, ServiceClass]:
    """All service classes, paces multiplied."""
    model = profiles.load_profile(PROFILE).latency
    promises = dict(PROMISES)
    for up_to in LONG_UP_TO:
        idle_s = model.base_s(True, False) + model.chunk_s(up_to, 0)
        promises[_long(up_to)] = (max(LONG_TTFT_S, LONG_IDLE_FACTOR * idle_s), LONG_TPOT_S)
    factor = QUALITIES[quality]
    return {name: ServiceClass(name, Slo(ttft_s, factor * tpot_s)) for name, (ttft_s, tpot_s) in promises.items()}


def long_class(prompt_tokens: int) -> str:
    """The class of a long prompt."""
    return _long(next((up_to for up_to in LONG_UP_TO if prompt_tokens <= up_to), LONG_UP_TO[-1]))


def _long(up_to: int) -> str:
    return f"long_{up_to // 1000}k"


def reason_class(prompt_tokens: int) -> str:
    """The class of a prompt to a reasoning model."""
    return "chat" if prompt_tokens <= REASON_TOKENS_MAX else long_class(prompt_tokens)


CLASS_OF = {
    CODE: lambda _: "code",
    CHAT: lambda _: "chat",
    MOONCAKE: long_class,
    SUMMARIES: lambda _: "summary",
    SHAREGPT: lambda _: "chat",
    REASONING: reason_class,
}
"""By trace, from prompt tokens to class."""

# Loads.


@dataclass(frozen=True, slots=True)
class Load:
    """One of the six. Its requests are either those of a window of traces, or drawn from traces in phases."""

    name: str
    title: str
    instance_rps: float
    """About what an instance bears at the first quality: where searches begin."""
    attainment_min: float = 0.95
    """What a rate has to keep of all promises to be borne."""
    max_tokens: int = 2048
    """Longest answer that clients allow."""
    begins_s: tuple[float, ...] = ()
    """Where in the traces each seed's window begins."""
    window_s: float = 0.0
    """How long the window is, in the time of its traces."""
    lasts_s: float = inf
    """For how long requests arrive, where the window has enough of them for any rate."""
    phases: tuple[Mapping[str, float], ...] = ()
    """Of each phase of the cycle: requests per second by trace, at rate 1."""
    phase_s: float = 0.0

    @property
    def is_shifting(self) -> bool:
        return len(self.phases) > 1


AZURE_BEGINS_S = (20.0, 730.0, 1440.0)
LOADS: dict[str, Load] = {
    each.name: each
    for each in (
        Load("st", "steady", 8.0, phases=({CODE: 0.34, CHAT: 0.66},), phase_s=100.0),
        Load("az", "recorded bursts", 7.0, 0.9, begins_s=AZURE_BEGINS_S, window_s=640.0),
        Load("lo", "long prompts", 2.6, begins_s=AZURE_BEGINS_S, window_s=400.0),
        Load(
            "sh",
            "shifts, prompts and conversations",
            3.8,
            phases=({CODE: 0.9, MOONCAKE: 0.1}, {SHAREGPT: 1.0}),
            phase_s=100.0,
        ),
        Load(
            "sx",
            "shifts, completions and reasoning",
            3.7,
            max_tokens=8192,
            phases=({CODE: 0.75, SUMMARIES: 0.75}, {REASONING: 0.5}),
            phase_s=150.0,
        ),
        Load(
            "r1",
            "long outputs",
            1.7,
            max_tokens=8192,
            begins_s=(36_000.0, 43_200.0, 50_400.0),
            window_s=2400.0,
            lasts_s=300.0,
        ),
    )
}
REASONING_S = (50_400.0, 57_600.0)
"""The hours of which the lengths in the shifting load are."""


def missing(folder: Path) -> list[str]:
    """The traces that are not in the folder."""
    return [name for name in TRACES if not (folder / name).is_file()]


def described(name: str) -> dict[str, Any]:
    """A load as the page tells it."""
    load = LOADS[name]
    return {
        "title": load.title,
        "is_shifting": load.is_shifting,
        "attainment_min": load.attainment_min,
        "phase_s": load.phase_s or None,
        "lasts_s": spans_s(load, 0)[-1][2] if load.phases else load.lasts_s if load.lasts_s < inf else None,
        "window_s": load.window_s or None,
        "phases": [dict(phase) for phase in load.phases],
    }


def jobs(name: str, rate: float, seed: int, folder: Path) -> list[Job]:
    """All requests of one run, in order of arrival."""
    load = LOADS[name]
    return list(workload.mix(list((_drawn if load.phases else _replayed)(load, rate, seed, folder))))


def spans_s(load: Load, seed: int) -> list[tuple[int, float, float]]:
    """The phases of a run: which of the cycle, from when to when. Shifts are two, the first half a phase in."""
    if not load.is_shifting:
        return [(0, 0.0, load.phase_s)]
    edges_s = (0.0, 0.5 * load.phase_s, 1.5 * load.phase_s, 2.0 * load.phase_s)
    return [((seed + index) % 2, *edge) for index, edge in enumerate(itertools.pairwise(edges_s))]


def _drawn(load: Load, rate: float, seed: int, folder: Path) -> Iterator[Stream]:
    for index, (kind, start_s, end_s) in enumerate(spans_s(load, seed)):
        for trace, weight in load.phases[kind].items():
            own = rate * weight
            source = partial(_endless, folder, trace, index)
            # At one per second, then compressed: a higher rate adds requests behind the same ones.
            yield Stream(source, seed=seed, window_s=(0.0, own * (end_s - start_s)), rate=own, offset_s=start_s)


def _replayed(load: Load, rate: float, seed: int, folder: Path) -> Iterator[Stream]:
    found = _window(load.name, seed, folder)
    count = min(len(found) - 1, round(rate * load.lasts_s)) if load.lasts_s < inf else None
    # A part of a window is not as dense as the whole: what matters is how long its requests take to arrive.
    compression = rate if count is None else found[count].at_s * rate / count
    yield Stream(lambda _: found, rate=compression, limit=count)


@functools.lru_cache(maxsize=32)
def _window(name: str, seed: int, folder: Path) -> tuple[Job, ...]:
    """A window's requests, at one per second on average."""
    load = LOADS[name]
    start_s = load.begins_s[seed % len(load.begins_s)]
    recorded = partial(_recorded, folder, window_s=(start_s, start_s + load.window_s), seed=seed)
    if name == "r1":
        streams = [recorded(REASONING)]
    elif name == "lo":
        half = tuple(itertools.islice(workload.mix([recorded(MOONCAKE)]), 0, None, 2))
        streams = [Stream(lambda _: half), recorded(CHAT)]
    else:
        streams = [recorded(CODE), recorded(CHAT)]
    found = tuple(_classed(workload.mix(streams)))
    scale = len(found) / load.window_s
    return tuple(job._replace(at_s=job.at_s * scale) for job in found)


def _recorded(folder: Path, trace: str, window_s: tuple[float, float], seed: int) -> Stream:
    """A window of a trace at its own speed; the class is the trace, until it is known by length."""
    return Stream(folder / trace, trace, options=Options(origin=ORIGIN), seed=seed, window_s=window_s)


def _classed(found: Iterable[Job]) -> Iterator[Job]:
    """With the class of its trace and length, and without what could be shared."""
    for job in found:
        yield job._replace(service_class=CLASS_OF[job.service_class](job.prompt_tokens), block_hashes=())


def _respaced(found: Iterable[Job], rng: np.random.Generator) -> Iterator[Job]:
    """The same requests as a Poisson process of one per second."""
    return (job._replace(at_s=at_s) for job, at_s in zip(found, renewal(1.0, 1.0, rng), strict=False))


def _endless(folder: Path, trace: str, phase: int, seed: int) -> Iterator[Job]:
    """A trace's requests as a Poisson process of one per second, from somewhere on, over and over."""
    rng = np.random.default_rng([seed, phase, crc32(trace.encode())])
    rows = _rows(folder, trace)
    start = int(rng.integers(len(rows)))
    return _respaced(itertools.cycle((*rows[start:], *rows[:start])), rng)


@functools.lru_cache(maxsize=len(TRACES))
def _rows(folder: Path, trace: str) -> tuple[Job, ...]:
    options = Options(arrivals_per_s=None if trace == REASONING else 1.0)
    window_s = REASONING_S if trace == REASONING else (0.0, inf)
    return tuple(_classed(workload.mix([Stream(folder / trace, trace, options=options, window_s=window_s)])))
