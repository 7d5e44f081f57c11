"""Single simulations of the scaling comparison: what identifies one, how it is run, and where it is kept.

A result is kept under everything that it follows from: load, time of a start, deployment, seed, and the source of
loads, core, policies and simulator. A comparison that was stopped goes on from there.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import record
import scaling_future
import scaling_loads as loads
import scheduling_runs
from hyperflexis.core.commands import Command
from hyperflexis.core.control import Policy
from hyperflexis.core.events import Event
from hyperflexis.core.fleet import FleetBounds, Range
from hyperflexis.core.instance import Capacity, Role
from hyperflexis.core.relief import Relief
from hyperflexis.policies import clairvoyant, create
from hyperflexis.sim import profiles
from hyperflexis.sim.outcome import Outcome
from hyperflexis.sim.simulation import FleetSpec, Simulation
from hyperflexis.sim.startup import StartupSpec

KEPT = record.REPOSITORY / "build" / "scaling"
BLOCK_TOKENS, SEQS_MAX, PREFILL_TOKENS_MAX = 16, 512, 8192
OURS, STAYS, STATIC, CLAIRVOYANT = "hyperflexis", "stays", "static", "clairvoyant"
"""`stays` is ours without moves of running requests off instances that are to end."""
AGAIN, AGAIN_S = 0.95, 5
"""A burst is over once so much of what arrives is kept, in each of so many seconds in a row."""


@dataclass(frozen=True, slots=True)
class Run:
    """One simulation."""

    load: str
    startup_s: float
    """0 where the size does not change."""
    deployment: str
    """`static:7`, `clairvoyant:1.1`, or a policy by its name, which may carry tuning."""
    seed: int


def fleet_of(run: Run, traces: Path) -> tuple[Policy, FleetSpec]:
    """The one place that knows how a deployment's text becomes a policy and a fleet."""
    load = loads.LOADS[run.load]
    profile = profiles.load_profile(load.profile)
    capacity = Capacity(profile.kv_tokens // BLOCK_TOKENS, BLOCK_TOKENS, SEQS_MAX, loads.KV_TOKEN_BYTES)
    fleet = FleetSpec(1, capacity, profile.latency, max_tokens=load.max_tokens)
    name, _, rest = run.deployment.partition(":")
    if name == STATIC:
        return create(OURS, PREFILL_TOKENS_MAX), replace(fleet, instances=int(rest))
    startup = StartupSpec.constant(run.startup_s)
    bounds = FleetBounds({Role.MIXED: Range(1, load.instances_max)}, startup_s=startup.seconds())
    fleet = replace(fleet, startup=startup, bounds=bounds)
    if name == CLAIRVOYANT:
        jobs, classes = loads.jobs(run.load, run.seed, traces), loads.classes(run.load)
        needs = scaling_future.needs(jobs, classes, profile.latency, capacity, float(rest or 1))
        return replace(clairvoyant.policy(PREFILL_TOKENS_MAX, needs), relief=Relief()), fleet
    if name == STAYS:
        return create(run.deployment.replace(STAYS, OURS, 1), PREFILL_TOKENS_MAX), fleet
    policy = create(run.deployment, PREFILL_TOKENS_MAX)
    return (replace(policy, relief=Relief()) if name == OURS else policy), fleet


def simulated(run: Run, traces: Path) -> dict[str, Any]:
    """Run one simulation in this process."""
    policy, fleet = fleet_of(run, traces)
    jobs = loads.jobs(run.load, run.seed, traces)
    started_s, warm_s = time.process_time(), list[float]()

    def watch(now: float, event: Event, commands: Sequence[Command]) -> None:
        if now >= loads.WARM_S and not warm_s:
            warm_s.append(simulation.control.sizing.bill.seconds(now)[0])

    simulation = Simulation(jobs, loads.classes(run.load), policy, fleet, seed=run.seed, observe=watch)
    outcome = simulation.run()
    cpu_s = time.process_time() - started_s
    return {**asdict(run), **_figures(run, outcome, warm_s[0]), "cpu_seconds": round(cpu_s, 2)}


def _figures(run: Run, outcome: Outcome, warm_s: float) -> dict[str, Any]:
    counted = outcome.arrived_s >= loads.WARM_S
    by_class = {name: counted & (outcome.service_class == index) for index, name in enumerate(outcome.classes)}
    return {
        "classes": {
            name: [int(own.sum()), int(outcome.attained[own].sum())] for name, own in by_class.items() if own.any()
        },
        "instance_s": round(outcome.usage.awake_s - warm_s, 1),
        "lasts_s": round(outcome.sim_seconds - loads.WARM_S, 1),
        "resizes": outcome.scale_events,
        "migrations": outcome.migrations,
        "violation_s": violations_s(outcome, loads.burst_begins_s(run.load)),
    }


def violations_s(outcome: Outcome, begins_s: Sequence[float]) -> list[int]:
    """After each burst began, seconds until what arrives is kept again."""
    seconds = outcome.arrived_s.astype(int)
    arrived, kept = np.bincount(seconds), np.bincount(seconds, weights=outcome.attained)
    is_kept = kept >= AGAIN * arrived
    found = []
    for begin_s in begins_s:
        after = is_kept[int(begin_s) :]
        broken = np.flatnonzero(~after[: int(loads.BURST_EVERY_S)])
        ends = [index + 1 for index in broken if after[index + 1 : index + 1 + AGAIN_S].all()]
        found.append(int(ends[0]) if ends else 0)
    return found


@functools.cache
def source_hash() -> str:
    """Of everything whose change may change a result."""
    digest = hashlib.sha256(scheduling_runs.source_hash().encode())
    for module in (loads, scaling_future):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:12]


def kept(run: Run, traces: Path, folder: Path = KEPT) -> dict[str, Any]:
    """What a simulation gave, simulated if it is not known."""
    digest = hashlib.sha256(json.dumps(asdict(run), sort_keys=True).encode()).hexdigest()[:24]
    file = folder / source_hash() / run.load / f"{digest}.json"
    if file.is_file():
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return known
    found = simulated(run, traces)
    part = file.with_suffix(".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(json.dumps(found), encoding="utf-8")
    part.replace(file)
    return found
