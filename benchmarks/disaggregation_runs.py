"""Single simulations of the disaggregation comparison: what identifies one, how it is run, and where it is kept.

A result is kept under everything that it follows from: cell, deployment, rate, seed, and the source of loads, core,
policies and simulator. A comparison that was stopped goes on from there.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import disaggregation_loads as loads
import disaggregation_search as search
import record
import scheduling_runs
from disaggregation_loads import LOADS, SEEDS
from hyperflexis.core.control import Policy
from hyperflexis.core.instance import Capacity, Role
from hyperflexis.policies import create
from hyperflexis.sim import profiles, summary
from hyperflexis.sim.fabric import FabricSpec
from hyperflexis.sim.outcome import Outcome
from hyperflexis.sim.simulation import FleetSpec, simulate
from scheduling_search import rounded

KEPT = record.REPOSITORY / "build" / "disaggregation"
BLOCK_TOKENS, SEQS_MAX, PREFILL_TOKENS_MAX = 16, 512, 8192
OURS, COLOCATED, STATIC = "hyperflexis", "colocated", "static"
POLICY_OF = {STATIC: "distserve"}
"""Where a deployment is not called as its policy is."""
METRICS = ("ttft_s", "tpot_s")
AT_STEP = ("rate", "requests", "attainment", "classes", *METRICS, "migrations", "role_changes")
"""What is told of each seed at the highest step that is borne."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A column of the table."""

    load: str
    quality: int
    """Milliseconds between tokens of chat."""
    instances: int
    link_gb_s: int
    """Of every instance, each way, 10^9 bytes per second."""

    def __str__(self) -> str:
        return f"{self.load} Q{self.quality} N{self.instances} {self.link_gb_s}GB/s"

    @property
    def own_rps(self) -> float:
        """The rate that steps of the search count from: about what the fleet bears."""
        return LOADS[self.load].instance_rps * self.instances * (1.0 if self.quality == max(loads.QUALITIES) else 0.7)


@dataclass(frozen=True, slots=True)
class Run:
    """One simulation."""

    cell: Cell
    deployment: str
    step: int
    """Of the search's grid."""
    seed: int

    @property
    def rate(self) -> float:
        return round(self.cell.own_rps * search.factor(self.step), 6)


def moves_kv(deployment: str) -> bool:
    """Whether what instances send one another matters: without it, links of any speed give the same."""
    return deployment.partition(":")[0] != COLOCATED


def fleet_of(cell: Cell, deployment: str) -> tuple[Policy, FleetSpec]:
    """The one place that knows how a deployment's text becomes a policy and a fleet.

    `colocated` and `colocated:POLICY` keep every request on one instance, the first with our policy. `static:P=3` has
    three instances prefill for good. All else are policies with their tuning. `P` among it is how many instances begin
    as prefilling ones (`half`: half of them), `M` how many as mixed ones; the rest decodes. Without both all are mixed.
    """
    profile = profiles.load_profile(loads.PROFILE)
    capacity = Capacity(profile.kv_tokens // BLOCK_TOKENS, BLOCK_TOKENS, SEQS_MAX, loads.KV_TOKEN_BYTES)
    fleet = FleetSpec(
        cell.instances,
        capacity,
        profile.latency,
        max_tokens=LOADS[cell.load].max_tokens,
        fabric=FabricSpec(bytes_s=cell.link_gb_s * 1e9),
    )
    name, _, rest = deployment.partition(":")
    if name == COLOCATED:
        return replace(create(rest or OURS, PREFILL_TOKENS_MAX), binder=None, planner=None), fleet
    pairs = dict(pair.split("=") for pair in rest.split(",") if pair)
    if {"P", "M"} & set(pairs):
        fleet = replace(fleet, roles=_roles(cell.instances, pairs.pop("P", "0"), pairs.pop("M", "0")))
    tuning = ",".join(f"{key}={value}" for key, value in pairs.items())
    policy = POLICY_OF.get(name, name)
    return create(f"{policy}:{tuning}" if tuning else policy, PREFILL_TOKENS_MAX), fleet


def _roles(instances: int, prefills: str, mixed: str) -> tuple[Role, ...]:
    prefilling = instances // 2 if prefills == "half" else int(prefills)
    decoding = instances - prefilling - int(mixed)
    if decoding < 0:
        raise ValueError(f"{instances} instances are not {prefilling} prefilling and {mixed} mixed ones")
    return (Role.PREFILL,) * prefilling + (Role.MIXED,) * int(mixed) + (Role.DECODE,) * decoding


def simulated(run: Run, traces: Path) -> dict[str, Any]:
    """Run one simulation in this process."""
    cell = run.cell
    jobs = loads.jobs(cell.load, run.rate, run.seed, traces)
    policy, fleet = fleet_of(cell, run.deployment)
    started_s = time.process_time()
    outcome = simulate(jobs, loads.classes(cell.quality), policy, fleet, seed=run.seed)
    cpu_s = time.process_time() - started_s
    asked = {"deployment": run.deployment, "step": run.step, "rate": run.rate, "seed": run.seed}
    return {**asked, **_figures(outcome), "cpu_seconds": round(cpu_s, 2)}


def _figures(outcome: Outcome) -> dict[str, Any]:
    row = summary.row(outcome)
    spreads = {name: {share: row[name][share] for share in ("p50", "p99")} for name in METRICS}
    counts = ("requests", "rejected", "attainment", "migrations", "role_changes", "sim_seconds")
    by_class = {name: share for name, share in row["attainment_by_class"].items() if share is not None}
    found: dict[str, Any] = rounded({**{name: row[name] for name in counts}, "classes": by_class, **spreads})
    return found


@functools.cache
def source_hash() -> str:
    """Of everything whose change may change a result."""
    digest = hashlib.sha256(scheduling_runs.source_hash().encode())
    digest.update(Path(loads.__file__).read_bytes())
    return digest.hexdigest()[:12]


class Bench:
    """One cell's simulations: those that are kept, and those that this process runs."""

    def __init__(self, cell: Cell, traces: Path, seeds: Sequence[int] = SEEDS, kept: Path = KEPT) -> None:
        self.cell, self.seeds = cell, tuple(seeds)
        self.fresh = 0
        self.cpu_s = 0.0
        self._traces, self._folder = traces, kept / source_hash()

    def point(self, deployment: str, step: int, seed: int) -> dict[str, Any]:
        """What one simulation gave, simulated if it is not known."""
        run = Run(self.cell, deployment, step, seed)
        file = self.file(run)
        if file.is_file():
            known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return known
        found = simulated(run, self._traces)
        self.fresh += 1
        self.cpu_s += found["cpu_seconds"]
        part = file.with_suffix(".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(found), encoding="utf-8")
        part.replace(file)
        return found

    def points(self, deployment: str, step: int) -> list[dict[str, Any]]:
        """One rate under every seed."""
        return [self.point(deployment, step, seed) for seed in self.seeds]

    def attainment(self, deployment: str, step: int) -> float:
        """Of all requests, the mean over the seeds."""
        return fmean(point["attainment"] for point in self.points(deployment, step))

    def is_borne(self, deployment: str, step: int) -> bool:
        """Whether a rate is borne; seeds that cannot change the answer are not run."""
        missing = len(self.seeds) * (1 - LOADS[self.cell.load].attainment_min + search.ROUNDING)
        for seed in self.seeds:
            missing -= 1 - self.point(deployment, step, seed)["attainment"]
            if missing < 0:
                return False
        return True

    def best_of(self, deployments: Sequence[str], guess: int = 0, stride: int = search.FAR) -> dict[str, Any]:
        """The capacity, in requests per second, of the deployment that bears most, and what was seen just below it."""
        return self.measured(*search.best_of(deployments, self.is_borne, guess, stride))

    def best_beside(
        self, deployments: Sequence[str], start: int, guess: int = 0, stride: int = search.FAR
    ) -> dict[str, Any]:
        """As `best_of`, of deployments that get better up to one of them, and worse behind it."""
        return self.measured(*search.climb(deployments, start, self.is_borne, guess, stride))

    def likeliest(self, deployments: Sequence[str], step: int) -> int:
        """The index of the deployment that keeps most at one rate, under one seed: where to begin to look."""
        kept = [self.point(text, step, self.seeds[0])["attainment"] for text in deployments]
        return kept.index(max(kept))

    def measured(self, deployment: str, step: int | None) -> dict[str, Any]:
        """A capacity whose step is known."""
        least = LOADS[self.cell.load].attainment_min
        crossing = search.crossing(functools.partial(self.attainment, deployment), least, step)
        points = [] if step is None else self.points(deployment, step)
        return {
            "deployment": deployment,
            "step": step,
            "rps": round(crossing * self.cell.own_rps, 4),
            "source": source_hash(),
            "at_step": {name: [point[name] for point in points] for name in AT_STEP},
        }

    def file(self, run: Run) -> Path:
        """Where its result is kept."""
        asked = asdict(run)
        if not moves_kv(run.deployment):
            asked["cell"]["link_gb_s"] = None
        asked["rate"] = run.rate
        del asked["step"]
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]
        return self._folder / run.cell.load / f"{digest}.json"
