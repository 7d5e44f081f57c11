"""Single simulations of the scheduling comparison: what identifies one, how it is run, and where its result is kept.

A result is kept under everything that it follows from: the scenario's text, the policy with its tuning, rate, seed,
window, disturbance, and the source of core, policies and simulator. A comparison that was stopped goes on from there.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

import record
import scheduling_search
from hyperflexis.cli import scenario, trace_files
from hyperflexis.cli.cells import Plan, Stream, stream
from hyperflexis.cli.results import Cell
from hyperflexis.cli.scenario import ScenarioFile
from hyperflexis.core.control import Policy
from hyperflexis.core.instance import Capacity
from hyperflexis.policies import create
from hyperflexis.sim import summary, workload
from hyperflexis.sim.job import Job
from hyperflexis.sim.outcome import Outcome
from hyperflexis.sim.simulation import FleetSpec, simulate

SOURCES = ("core", "policies", "sim")
KEPT = record.REPOSITORY / "build" / "scheduling"
DISTURBED = ("noise=0.1", "latency_scale.prefill=1.1", "latency_scale.decode=1.1")
"""Steps a tenth longer than predicted, with a tenth of noise."""
INSIDE: dict[str, dict[str, Any]] = {
    "arrival": {"order": "arrival"},
    "fixed": {"sizing": "fixed"},
    "arrival+fixed": {"order": "arrival", "sizing": "fixed"},
}
"""What may stand behind a policy's name and a slash: its own choice of instance, and other rules inside."""


@dataclass(frozen=True, slots=True)
class Run:
    """One simulation."""

    scenario: str
    """File of the scenario."""
    policy: str
    """Name with tuning, and with other rules inside after a slash."""
    rate: float
    seed: int
    window_s: tuple[float, float]
    disturbed: bool = False


def policy_of(text: str, prefill_tokens_max: int) -> Policy:
    """A policy by name and tuning; `name/arrival+fixed` has its instances take work as stock engines do."""
    name, _, inside = text.partition("/")
    policy = create(name, prefill_tokens_max)
    return replace(policy, rules=replace(policy.rules, **INSIDE[inside])) if inside else policy


def load(file: str, window_s: tuple[float, float], disturbed: bool = False) -> ScenarioFile:
    """A scenario with another window."""
    path = Path(file)
    streams = len(scenario.load(path).scenario.workload)
    window = f"[{window_s[0]}, {window_s[1]}]"
    sets = [f"workload.{index}.window_s={window}" for index in range(streams)]
    return scenario.load(path, [*sets, *(DISTURBED if disturbed else ())])


def plan_of(loaded: ScenarioFile) -> Plan:
    """What the simulation is called with; traces are looked for where `hyperflexis simulate` looks for them."""
    given, profile = loaded.scenario, loaded.profile()
    engine = given.engine
    places = trace_files.folders((), os.environ, loaded.file.parent)
    streams = []
    for section in given.workload:
        trace = trace_files.find(section.trace, places)
        if trace is None:
            raise FileNotFoundError(f"no trace {section.trace!r}: say where traces lie with --traces")
        streams.append(Stream(section, trace, section.trace))
    return Plan(
        classes=given.service_classes(),
        streams=tuple(streams),
        instances=loaded.instances,
        capacity=Capacity(profile.kv_tokens // engine.block_tokens, engine.block_tokens, engine.seqs_max),
        latency=profile.latency,
        truth=loaded.truth(profile.latency),
        noise=given.noise,
        prefill_tokens_max=engine.prefill_tokens_max,
        max_tokens=engine.max_tokens,
        skip_bad=False,
    )


@functools.lru_cache(maxsize=16)
def _plan(file: str, window_s: tuple[float, float], disturbed: bool) -> Plan:
    return plan_of(load(file, window_s, disturbed))


@functools.lru_cache(maxsize=6)
def jobs_of(file: str, window_s: tuple[float, float], seed: int) -> tuple[Job, ...]:
    """All jobs of a window at the trace's own speed: read once, for all rates that this process simulates."""
    plan = _plan(file, window_s, False)
    cell = Cell("", 1.0, seed)
    return tuple(workload.mix([stream(plan, cell, index) for index in range(len(plan.streams))]))


def simulated(run: Run) -> dict[str, Any]:
    """Run one simulation in this process."""
    plan = _plan(run.scenario, run.window_s, run.disturbed)
    jobs = jobs_of(run.scenario, run.window_s, run.seed)
    fleet = FleetSpec(
        plan.instances, plan.capacity, plan.latency, truth=plan.truth, noise=plan.noise, max_tokens=plan.max_tokens
    )
    started_s = time.process_time()
    scaled = (job._replace(at_s=job.at_s / run.rate) for job in jobs)
    outcome = simulate(scaled, plan.classes, policy_of(run.policy, plan.prefill_tokens_max), fleet, seed=run.seed)
    cpu_s = time.process_time() - started_s
    return {**_asked(run), **_figures(outcome), "cpu_seconds": round(cpu_s, 2)}


def _asked(run: Run) -> dict[str, Any]:
    return {"policy": run.policy, "rate": run.rate, "seed": run.seed, "disturbed": run.disturbed}


def _figures(outcome: Outcome) -> dict[str, Any]:
    names = ("requests", "rejected", "attainment", "worst_minute", "goodput_rps", *summary.METRICS, "longest_ttft_s")
    row = summary.row(outcome)
    classes = {name: _of_class(outcome, index) for index, name in enumerate(outcome.classes)}
    return scheduling_search.rounded({**{name: row[name] for name in names}, "classes": classes})


def _of_class(outcome: Outcome, index: int) -> dict[str, Any]:
    chosen = outcome.service_class == index
    columns = {field.name: getattr(outcome, field.name) for field in fields(outcome)}
    picked = {name: each[chosen] for name, each in columns.items() if isinstance(each, np.ndarray)}
    row = summary.row(replace(outcome, **picked))
    spreads = {name: {share: row[name][share] for share in ("mean", "p50", "p99")} for name in summary.METRICS}
    counts = ("requests", "attainment", "worst_minute", "longest_ttft_s")
    return {**{name: row[name] for name in counts}, **spreads}


@functools.cache
def source_hash() -> str:
    """Of everything whose change may change a result."""
    digest = hashlib.sha256()
    package = record.REPOSITORY / "src" / "hyperflexis"
    for file in sorted(file for part in SOURCES for file in (package / part).rglob("*") if file.is_file()):
        if "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(package)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


class Shelf:
    """Results on disk, one file each."""

    def __init__(self, folder: Path, source: str) -> None:
        self._folder = folder / source

    def find(self, run: Run) -> dict[str, Any] | None:
        file = self._file(run)
        if not file.is_file():
            return None
        point: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return point

    def keep(self, run: Run, point: Mapping[str, Any]) -> None:
        file = self._file(run)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(point), encoding="utf-8")
        part.replace(file)

    def _file(self, run: Run) -> Path:
        wanted = {**asdict(run), "scenario": Path(run.scenario).read_text(encoding="utf-8")}
        digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:24]
        return self._folder / Path(run.scenario).stem / f"{digest}.json"
