"""The five loads of the scaling comparison, made of recorded series: what arrives when, and what it is promised.

    az  two services, code completion and chat, as they were recorded on one clock
    ml  four hours of a large model's traffic in ten minutes, generated from what was measured of its clients
    pk  the same of hours whose peak is twice their mean, or more
    r1  four hours of a reasoning model's traffic in fifteen minutes: long answers, cut at 8192 tokens
    bu  chat, of which five times as much comes within two seconds, for 40 s of every 240 s

Seeds from 0 to 2 are reported, 3 and 4 are what knobs are chosen on: other windows of the series. In az the latter have
code and chat of different times. Compressing hours makes ramps steeper than they were, so that starts of seconds matter
as they would not there. Prefixes are not shared. Knows nothing of fleets and policies.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import disaggregation_loads
from hyperflexis.core.latency import LatencyModel
from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.sim import profiles, workload
from hyperflexis.sim.job import Job
from hyperflexis.sim.traces import Options
from hyperflexis.sim.workload import Stream

CODE, CHAT = "azure_llm_2023_code_part1.csv.gz", "azure_llm_2023_conv_part1.csv.gz"
LARGE, LARGE_LENGTHS = "servegen_m-large_rates_part1.csv.gz", "servegen_m-large_lengths_part1.jsonl.gz"
REASONING, REASONING_LENGTHS = disaggregation_loads.REASONING, disaggregation_loads.REASONING_LENGTHS
TRACES = (CODE, CHAT, LARGE, LARGE_LENGTHS, REASONING, REASONING_LENGTHS)
REPORTED, TUNED = (0, 1, 2), (3, 4)
KV_TOKEN_BYTES = disaggregation_loads.KV_TOKEN_BYTES
A100, H100 = "llama-3-70b/a100/tp4/bfloat16", "llama-3-70b/h100/tp4/bfloat16"
PROMISES = {"code": (0.8, 0.1), "chat": (2.0, 0.05)}
"""Seconds to the first token, and between tokens, on H100; on A100 2.5 and 2 times as long."""
A100_FACTORS = (2.5, 2.0)
HOUR_S = 3600.0
BURST_EVERY_S, BURST_S, BURST_RISE_S, BURST_FACTOR = 240.0, 40.0, 2.0, 5
AZURE_S = 690.0
AZURE_BEGINS_S = ((0.0, 0.0), (695.0, 695.0), (1390.0, 1390.0), (350.0, 1050.0), (1050.0, 350.0))
"""By seed, where code and chat begin."""


@dataclass(frozen=True, slots=True)
class Load:
    """One of the five."""

    name: str
    title: str
    profile: str
    instances_max: int
    """No fleet may be larger."""
    hours: tuple[float, ...] = ()
    """By seed, the hour of the series at which the window begins."""
    requests_per_s: float = 0.0
    lasts_s: float = AZURE_S
    max_tokens: int = 2048


LOADS: dict[str, Load] = {
    each.name: each
    for each in (
        Load("az", "code and chat as recorded", A100, 24),
        Load("ml", "a large model, 4 h in 10 min", A100, 24, (12.0, 60.0, 100.0, 36.0, 84.0), 9.0),
        Load("pk", "a large model, its peakiest hours", A100, 24, (29.5, 154.5, 16.5, 20.5, 163.5), 7.0),
        Load("r1", "long answers, 4 h in 15 min", H100, 24, (6.0, 10.0, 13.0, 8.0, 3.0), 6.0, 990.0, 8192),
        Load("bu", "chat in bursts", A100, 24, lasts_s=720.0),
    )
}
WINDOW_HOURS = 4.0
WARM_S = 90.0
"""Every fleet begins with its fewest instances: what arrives before is served and not counted, and not paid."""


def missing(folder: Path) -> list[str]:
    """The traces that are not in the folder."""
    return [name for name in TRACES if not (folder / name).is_file()]


def latency_of(load: Load) -> LatencyModel:
    return profiles.load_profile(load.profile).latency


def classes(name: str) -> dict[str, ServiceClass]:
    """The service classes of a load."""
    if name == "r1":
        return disaggregation_loads.classes(max(disaggregation_loads.QUALITIES))
    ttft, tpot = A100_FACTORS if LOADS[name].profile == A100 else (1.0, 1.0)
    return {each: ServiceClass(each, Slo(ttft * f, tpot * q)) for each, (f, q) in PROMISES.items()}


@functools.lru_cache(maxsize=8)
def jobs(name: str, seed: int, folder: Path) -> tuple[Job, ...]:
    """All requests of one run, in order of arrival."""
    made = {"az": _azure, "bu": _bursts}.get(name, _hours)
    return tuple(job._replace(block_hashes=()) for job in made(LOADS[name], seed, folder))


def peak_over_mean(found: tuple[Job, ...], window_s: float = 30.0) -> float:
    """Of prompt and answer tokens that arrive, in windows."""
    at_s = np.array([job.at_s for job in found])
    tokens = np.array([job.prompt_tokens + job.output_tokens for job in found])
    sums = np.bincount((at_s / window_s).astype(int), weights=tokens)[:-1]
    return float(sums.max() / sums.mean())


def burst_begins_s(name: str) -> list[float]:
    """When bursts begin."""
    load = LOADS[name]
    return [float(at_s) for at_s in np.arange(BURST_EVERY_S / 2, load.lasts_s, BURST_EVERY_S)] if name == "bu" else []


def _azure(load: Load, seed: int, folder: Path) -> Iterator[Job]:
    origin = Options(origin=disaggregation_loads.ORIGIN)
    begins_s = dict(zip((CODE, CHAT), AZURE_BEGINS_S[seed], strict=True))
    return workload.mix(
        [
            Stream(folder / trace, name, options=origin, window_s=(begins_s[trace], begins_s[trace] + load.lasts_s))
            for trace, name in ((CODE, "code"), (CHAT, "chat"))
        ]
    )


def _hours(load: Load, seed: int, folder: Path) -> Iterator[Job]:
    begin_s, trace = load.hours[seed] * HOUR_S, REASONING if load.name == "r1" else LARGE
    window_s = (begin_s, begin_s + WINDOW_HOURS * HOUR_S)
    # At the series' own speed there are far too many: as many as are wanted are drawn, over the whole window.
    scale = load.requests_per_s * load.lasts_s / (WINDOW_HOURS * HOUR_S)
    options = Options(arrivals_per_s=scale)
    compressed = WINDOW_HOURS * HOUR_S / load.lasts_s
    for job in workload.mix([Stream(folder / trace, "chat", options=options, seed=seed, window_s=window_s)]):
        name = disaggregation_loads.reason_class(job.prompt_tokens) if load.name == "r1" else "chat"
        answer = min(job.output_tokens, load.max_tokens)
        yield job._replace(at_s=job.at_s / compressed, output_tokens=answer, service_class=name)


def _bursts(load: Load, seed: int, folder: Path) -> Iterator[Job]:
    """Half of the recorded chat, and in bursts so much more of the same as makes five times, spread over the rise."""
    begin_s = AZURE_BEGINS_S[seed][1]
    options = Options(origin=disaggregation_loads.ORIGIN)
    window_s = (begin_s, begin_s + load.lasts_s)
    every = list(workload.mix([Stream(folder / CHAT, "chat", options=options, window_s=window_s)]))[seed % 2 :: 2]
    rng = np.random.default_rng([seed, 77])
    copies = [
        job._replace(at_s=job.at_s + float(rng.uniform(0, BURST_RISE_S)))
        for job in every
        if any(at_s <= job.at_s < at_s + BURST_S for at_s in burst_begins_s(load.name))
        for _ in range(BURST_FACTOR - 1)
    ]
    return iter(sorted([*every, *copies], key=lambda job: job.at_s))
