"""The same requests on real engines and in the simulator: how far apart are promises kept, first tokens and paces?

    python benchmarks/parity.py --json parity.json

Two instances of the demo model on CPU, one thread each, behind the live driver (no HTTP), and the two classes of
two_classes.py with promises that some of them break. The profile is made of the very steps of the run, as the speed of
a shared machine drifts within minutes:

    before   the steps of the first `--warm` seconds foretell the rest: this is what the limits are for
    during   the steps of the rest itself: what is left is the simulator's own error, not the machine's drift

A step's compute is what an instance measures and plans with; what passes from report to report while there is work is
what a step takes, the host's share (scheduling, report, socket, a busy neighbour) included. Both are fitted in the same
way to means of like steps, and the simulated instances believe the one and take the other, with the spread that was
seen. Only requests that arrive after the warm-up are compared. Clients, driver and engines share the machine's cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import numpy as np
import uvloop

import record
from hyperflexis.adapters.contract import Adapter, Listener
from hyperflexis.core.control import ControlPlane
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Capacity, Role
from hyperflexis.core.latency import LatencyModel, Sample, StepShape, fit
from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.policies import create
from hyperflexis.runtime.driver import Driver
from hyperflexis.runtime.launchers.local import LocalLauncher, LocalSpec
from hyperflexis.runtime.streams import End
from hyperflexis.sim.job import Job
from hyperflexis.sim.simulation import FleetSpec, simulate
from hyperflexis.wire.messages import GenerateRequest, Ready, StepReport, TokenLogprobs
from two_classes import LOADS, MODEL, arrivals

INSTANCES = 2
BLOCK_TOKENS = 16
PREFILL_TOKENS_MAX = 2048
PROMISES = {"strict": Slo(ttft_s=0.4, tpot_s=0.1), "loose": Slo(ttft_s=1.5, tpot_s=0.15)}
ATTAINMENT_POINTS_MAX = 3.0
TPOT_SHARE_MAX = 0.1
SEEDS = range(5)
"""Simulated runs, each with other noise; their medians count."""
ENDS_WITHIN_S = 60.0

Plan = list[tuple[float, GenerateRequest]]


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one request."""

    service_class: str
    attained: bool
    ttft_s: float | None
    tpot_s: float | None


@dataclass(frozen=True, slots=True)
class Step:
    """One step as the driver saw it."""

    instance_id: int
    shape: StepShape
    compute_s: float
    cycle_s: float | None
    """Since the report before; None if there was nothing to do then."""
    heard_s: float
    """On the monotonic clock, as uvloop's own counts milliseconds."""


class Watch:
    """A launcher that writes down every step of the instances of another one."""

    def __init__(self, launcher: LocalLauncher) -> None:
        self._launcher = launcher
        self.steps: list[Step] = []
        self.ready: Ready | None = None

    def launch(self, instance_id: int, role: Role, listener: Listener) -> Adapter:
        return self._launcher.launch(instance_id, role, _Watching(self, instance_id, listener))


class _Watching:
    def __init__(self, watch: Watch, instance_id: int, listener: Listener) -> None:
        self._watch, self._id, self._listener = watch, instance_id, listener
        self._loop = asyncio.get_running_loop()
        self._busy_since_s: float | None = None

    def on_ready(self, ready: Ready) -> None:
        self._watch.ready = ready
        self._listener.on_ready(ready)

    def on_report(self, report: StepReport) -> None:
        now, before_s = time.monotonic(), self._busy_since_s
        shape = StepShape(report.prefill_tokens, report.prefill_pairs, report.decode_seqs, report.context_tokens)
        if report.duration_s:
            cycle_s = None if before_s is None else now - before_s
            self._watch.steps.append(Step(self._id, shape, report.duration_s, cycle_s, now))
        self._busy_since_s = now if report.running_seqs + report.waiting_seqs else None
        self._listener.on_report(report)

    def on_lost(self, why: str) -> None:
        self._listener.on_lost(why)


class Probe:
    """The sink of one request: only wants to know how it ended."""

    def __init__(self, rows: list[Row | None], index: int, service_class: str) -> None:
        self._rows, self._index, self._class = rows, index, service_class

    def on_tokens(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] | None) -> None:
        pass

    def on_prompt_logprobs(self, logprobs: Sequence[TokenLogprobs]) -> None:
        pass

    def on_end(self, end: End) -> None:
        if end.verdict is not None and end.reason == "length":
            timeline = end.verdict.timeline
            self._rows[self._index] = Row(self._class, end.verdict.attained, timeline.ttft_s, timeline.tpot_s)


def planned(rate: float, seconds: float, seed: int) -> Plan:
    """The arrivals of two_classes.py, promised what binds here."""
    return [
        (at_s, msgspec.structs.replace(request, ttft_s=slo.ttft_s, tpot_s=slo.tpot_s))
        for at_s, load, request in arrivals(rate, seconds, seed)
        for slo in [PROMISES[load.name]]
    ]


async def run_live(plan: Plan, warm_s: float) -> tuple[list[Row], dict[str, list[Step]], Ready]:
    """What became of the requests, the steps before and after the end of the warm-up, and the instances' size."""
    launcher = await LocalLauncher.start(LocalSpec(str(MODEL), device="cpu", instances=INSTANCES))
    watch = Watch(launcher)
    control = ControlPlane(create("hyperflexis", PREFILL_TOKENS_MAX), FleetBounds.fixed(INSTANCES))
    driver = Driver(control, watch, BLOCK_TOKENS)
    driver.start()
    await driver.wait_until(lambda: driver.ready_instances == INSTANCES)
    rows: list[Row | None] = [None] * len(plan)
    start_s = time.monotonic()
    for index, (at_s, request) in enumerate(plan):
        await asyncio.sleep(max(0.0, start_s + at_s - time.monotonic()))
        driver.submit(request, Probe(rows, index, request.service_class))
    with contextlib.suppress(TimeoutError):  # What has not ended by then is a miss.
        await asyncio.wait_for(driver.wait_until(lambda: driver.live_requests == 0), ENDS_WITHIN_S)
    driver.close()
    await launcher.close()
    assert watch.ready is not None
    parts = {
        "before": [step for step in watch.steps if step.heard_s < start_s + warm_s],
        "during": [step for step in watch.steps if step.heard_s >= start_s + warm_s],
    }
    missing = Row("", False, None, None)
    return [row or missing for row in rows], parts, watch.ready


# The profile.


@dataclass(frozen=True, slots=True)
class Profile:
    """`compute` is what an instance measures of its steps, `cycle` what they take."""

    compute: LatencyModel
    cycle: LatencyModel
    noise: float
    host_share: float
    """Of all busy time, what is not compute."""
    host_s: dict[str, float]
    """Per step, quantiles."""
    bias: dict[str, float]
    """By kind of step: all that they took, over all that the fit says."""
    steps: int


def profile_of(steps: Sequence[Step]) -> Profile:
    """Fit both. A step that began from idleness, as prefills alone mostly do, is given the host's median share."""
    busy = [(step, step.cycle_s) for step in steps if step.cycle_s is not None and step.cycle_s > step.compute_s]
    host_s = statistics.median(cycle_s - step.compute_s for step, cycle_s in busy)
    idle = [(step, step.compute_s + host_s) for step in steps if step.cycle_s is None]
    computes = [(step.shape, step.compute_s) for step, _ in [*busy, *idle]]
    cycles = [(step.shape, cycle_s) for step, cycle_s in [*busy, *idle]]
    cycle = fit(means(cycles))
    ratios = [cycle_s / cycle.step_s(shape) for shape, cycle_s in cycles]
    hosts_s = [cycle_s - step.compute_s for step, cycle_s in busy]
    return Profile(
        compute=fit(means(computes)),
        cycle=cycle,
        noise=statistics.pstdev(min(ratio, 3.0) for ratio in ratios),
        host_share=sum(hosts_s) / sum(cycle_s for _, cycle_s in busy),
        host_s={"p50": record.percentile(hosts_s, 0.5), "p90": record.percentile(hosts_s, 0.9)},
        bias={
            kind: sum(actual_s for shape, actual_s in cycles if shape.kind == kind)
            / sum(cycle.step_s(shape) for shape, _ in cycles if shape.kind == kind)
            for kind in sorted({shape.kind for shape, _ in cycles})
        },
        steps=len(busy),
    )


def means(samples: Sequence[Sample]) -> list[Sample]:
    """Every step with the mean time and shape of those like it: a fit to single ones would lean to the fast ones, as
    its errors are relative."""
    groups: dict[tuple[int, ...], list[Sample]] = {}
    for shape, actual_s in samples:
        key = (shape.prefill_tokens.bit_length(), shape.decode_seqs.bit_length())
        groups.setdefault(key, []).append((shape, actual_s))
    return [
        (StepShape(*map(statistics.fmean, zip(*(shape for shape, _ in group), strict=True))), mean_s)
        for group in groups.values()
        for mean_s in [statistics.fmean(actual_s for _, actual_s in group)] * len(group)
    ]


# The simulation.


def run_simulated(plan: Plan, profile: Profile, ready: Ready, seed: int) -> list[Row]:
    """The same requests, at the same instants, on modelled instances."""
    classes = {name: ServiceClass(name, slo) for name, slo in PROMISES.items()}
    jobs = [Job(at_s, len(asked.prompt), asked.max_tokens, asked.service_class) for at_s, asked in plan]
    fleet = FleetSpec(
        instances=INSTANCES,
        capacity=Capacity(ready.blocks, ready.block_tokens, ready.seqs_max),
        latency=profile.compute,
        truth=profile.cycle,
        noise=profile.noise,
        max_tokens=1,  # As live: a client allows the answer that it gets.
    )
    outcome = simulate(jobs, classes, create("hyperflexis", PREFILL_TOKENS_MAX), fleet, seed=seed)
    names = [outcome.classes[index] for index in outcome.service_class]
    columns = zip(names, outcome.attained.tolist(), outcome.ttft_s.tolist(), outcome.tpot_s.tolist(), strict=True)
    return [Row(name, kept, ttft_s, None if np.isnan(tpot_s) else tpot_s) for name, kept, ttft_s, tpot_s in columns]


# The comparison.


def figures(rows: Sequence[Row], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """By class and over all: attainment, and quantiles of first tokens and paces."""
    table = {}
    for name in ("all", *PROMISES):
        chosen = [row for row, its in zip(rows, names, strict=True) if name in ("all", its)]
        ttfts_s = [row.ttft_s for row in chosen if row.ttft_s is not None]
        tpots_s = [row.tpot_s for row in chosen if row.tpot_s is not None]
        table[name] = {
            "requests": len(chosen),
            "attainment": statistics.fmean(row.attained for row in chosen),
            **{f"ttft_s_p{q}": record.percentile(ttfts_s, q / 100) for q in (50, 90)},
            **{f"tpot_s_p{q}": record.percentile(tpots_s, q / 100) for q in (50, 90)},
        }
    return table


def median_of(tables: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: statistics.median(table[name][key] for table in tables) for key in tables[0][name]}
        for name in tables[0]
    }


def differences(
    measured: dict[str, dict[str, float]], told: dict[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Simulated less measured: attainment in points, times as a share."""
    return {
        name: {
            "attainment_points": 100 * (told[name]["attainment"] - row["attainment"]),
            **{key: told[name][key] / row[key] - 1 for key in row if "_s_" in key},
        }
        for name, row in measured.items()
    }


def judge(apart: dict[str, dict[str, float]]) -> list[str]:
    missed = [
        f"attainment of {name} within {ATTAINMENT_POINTS_MAX:.0f} points"
        for name in PROMISES
        if abs(apart[name]["attainment_points"]) > ATTAINMENT_POINTS_MAX
    ]
    if abs(apart["all"]["tpot_s_p50"]) > TPOT_SHARE_MAX:
        missed.append(f"median pace within {TPOT_SHARE_MAX:.0%}")
    return missed


def measure(rate: float, warm_s: float, seconds: float, seed: int) -> dict[str, Any]:
    plan = planned(rate, warm_s + seconds, seed)
    rows, parts, ready = uvloop.run(run_live(plan, warm_s))
    compared = [index for index, (at_s, _) in enumerate(plan) if at_s >= warm_s]
    names = [plan[index][1].service_class for index in compared]

    def cut(each: Sequence[Row]) -> dict[str, dict[str, float]]:
        return figures([each[index] for index in compared], names)

    measured = cut(rows)
    report: dict[str, Any] = {"measured": measured}
    for part, steps in parts.items():
        profile = profile_of(steps)
        told = median_of([cut(run_simulated(plan, profile, ready, seed)) for seed in SEEDS])
        report[part] = {"profile": asdict(profile), "simulated": told, "differences": differences(measured, told)}
    return {**report, "drift": drift(LatencyModel(**report["before"]["profile"]["compute"]), parts["during"])}


def drift(model: LatencyModel, steps: Sequence[Step]) -> dict[str, float]:
    """How many times as long as the model says steps take, by kind."""
    ratios: dict[str, list[float]] = {}
    for step in steps:
        ratios.setdefault(step.shape.kind, []).append(step.compute_s / model.step_s(step.shape))
    return {kind: statistics.fmean(seen) for kind, seen in ratios.items()}


def show(name: str, table: dict[str, dict[str, float]]) -> None:
    for part, row in table.items():
        print(f"{name:12} {part:7} " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)


def main() -> int:
    words = record.parser(__doc__)
    words.add_argument("--rate", type=float, default=8.0, help="requests per second")
    words.add_argument("--warm", type=float, default=40.0, help="seconds from which the profile is made")
    words.add_argument("--seconds", type=float, default=80.0, help="seconds that are compared")
    words.add_argument("--seed", type=int, default=1)
    options = words.parse_args()
    table = measure(options.rate, options.warm, options.seconds, options.seed)
    missed = judge(table["before"]["differences"])
    loads = [{**vars(load), **asdict(PROMISES[load.name])} for load in LOADS]
    load = {"rate": options.rate, "warm_s": options.warm, "seconds": options.seconds, "seed": options.seed}
    report = {"machine": record.machine("torch"), "loads": loads, **load, **table, "missed": missed}
    record.write(options.json, report)
    show("measured", table["measured"])
    for part in ("before", "during"):
        show(f"{part}: sim", table[part]["simulated"])
        show(f"{part}: diff", table[part]["differences"])
        print(f"{part}: noise {table[part]['profile']['noise']:.2f}, host {table[part]['profile']['host_share']:.1%}")
    print("drift of compute: " + ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in table["drift"].items()))
    print("missed: " + ", ".join(missed) if missed else "all limits kept")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
