"""Fleets of a plan, simulated on a scenario's load or on what a journal recorded.

Before the load begins a fleet has the time that its starts take, so that no trial counts the start of the server
itself. Whether seeds make any difference is found out by the first fleet: where they make none, one of them is enough.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from hyperflexis.cli import cells, fleets, journals, replay, scenario, simulate
from hyperflexis.cli.deployment import PricesSection
from hyperflexis.cli.errors import OperatorError
from hyperflexis.cli.fleet_search import Fleet, Row, can_keep
from hyperflexis.cli.results import Cell
from hyperflexis.cli.scenario import FleetSection, ScenarioFile
from hyperflexis.core.fleet import DEFAULT_STARTUP_S, SECONDS_PER_HOUR
from hyperflexis.core.instance import StartSource
from hyperflexis.core.latency import LatencyModel, StepShape, chunk_pairs
from hyperflexis.sim.job import Job

if TYPE_CHECKING:
    from hyperflexis.cli.plan import Request

SEEDS = 3
"""Where nothing is said: the scenario's and those after it."""
READY_S = 1.0
"""From the last start to the load."""
BATCH = 32
"""Answers that are written side by side, in a guess at what decoding takes."""
SAMPLE = 10_000
"""Jobs that the guess is made from."""
SEARCHED = {"mixed", "prefill", "decode", "roles", "cost_per_hour_max"}
"""Of a scenario's fleet, what a plan is to find out, and what would bound that."""


class Trials(Protocol):
    """A load, and fleets for it."""

    assumed: list[str]

    def rows(self, fleet: Fleet, target: float) -> list[Row]:
        """What the fleet gives, seed by seed; fewer where the first ones settle that it misses the target."""

    def cannot(self, kind: str) -> str:
        """Why such fleets cannot be tried; empty if they can."""

    def guess(self) -> Guess:
        """Where to begin."""


class Guess(NamedTuple):
    """Of what a load needs, before anything is simulated: only where to begin."""

    instances: int
    prefill_share: float


def guess(jobs: Sequence[Job], latency: LatencyModel) -> Guess:
    """By the time that steps of prompts alone, and of some answers together, would take."""
    prefill_s = decode_s = 0.0
    for job in jobs:
        tokens = job.prompt_tokens
        prefill_s += latency.step_s(StepShape(tokens, chunk_pairs(tokens, 0)))
        context = BATCH * (tokens + job.output_tokens // 2)
        decode_s += job.output_tokens * latency.step_s(StepShape(0, 0, BATCH, context)) / BATCH
    work_s = prefill_s + decode_s
    length_s = jobs[-1].at_s - jobs[0].at_s if jobs else 0.0
    return Guess(max(1, math.ceil(work_s / length_s)) if length_s else 1, prefill_s / work_s if work_s else 0.5)


def priced(row: Row, prices: PricesSection) -> Row:
    """The same at these prices, which the simulator asks of fleets alone that change their size."""
    cost = row["instance_seconds"] * prices.active_per_hour + row["asleep_seconds"] * prices.asleep_per_hour
    return {**row, "cost": cost / SECONDS_PER_HOUR}


# Of a scenario.


def of_scenario(request: Request) -> ScenarioTrials:
    """Read a scenario.

    Raises:
        OperatorError: it is wrong, or something asked for is.
    """
    loaded = scenario.load(request.source, request.sets)
    policy = request.policy or loaded.scenario.policy
    first = loaded.scenario.seed
    seeds = simulate.seeds_of(request.seeds) or list(range(first, first + SEEDS))
    return ScenarioTrials(request, loaded, policy, seeds)


class ScenarioTrials:
    """A scenario's load, at one rate."""

    def __init__(self, request: Request, loaded: ScenarioFile, policy: str, seeds: list[int]) -> None:
        self._request = request
        self._loaded = loaded
        self._policy = policy
        self._seeds = seeds
        self._knows_seeds = len(seeds) == 1
        self._asked = simulate.Request(request.source, traces=request.traces, skip_bad=request.skip_bad)
        self.assumed = [
            f"the load of {loaded.file} at {request.rate:g} times its rates, and no other",
            f"policy {policy}; steps take what profile {loaded.scenario.profile} says",
            self._starts_told(),
        ]

    def rows(self, fleet: Fleet, target: float) -> list[Row]:
        if not self._knows_seeds:
            return self._first_rows(fleet, target)
        if self._request.jobs > 1:
            return self._simulated(fleet, self._seeds)
        return self._until_settled(fleet, [], self._seeds, target)

    def cannot(self, kind: str) -> str:
        moving: fleets.Moving = "fixed" if kind == "apart" else "keeps"
        try:
            fleets.create(
                self._policy, self._loaded.scenario.engine.prefill_tokens_max, moving, is_elastic=kind == "elastic"
            )
            self._plan(Fleet(prefill=1, decode=1) if kind == "apart" else Fleet(mixed=1), self._seeds[:1])
        except ValueError as error:
            return str(error)
        except OperatorError as error:
            if kind == "apart":
                return error.message
            raise
        return ""

    def guess(self) -> Guess:
        plan = self._plan(Fleet(mixed=1), self._seeds[:1])
        jobs = cells.mixed(plan, self._cells(self._seeds[:1])[0])
        return guess(list(itertools.islice(jobs, SAMPLE)), plan.latency)

    def _first_rows(self, fleet: Fleet, target: float) -> list[Row]:
        """Two seeds, whatever they settle, to see whether they differ at all."""
        self._knows_seeds = True
        rows = self._simulated(fleet, self._seeds[:2])
        if _figures(rows[0]) == _figures(rows[1]):
            del self._seeds[1:]
            self.assumed.append("chance plays no part in this scenario (rotate_s: random, noise): one seed is all")
            return rows[:1]
        return self._until_settled(fleet, rows, self._seeds[2:], target)

    def _until_settled(self, fleet: Fleet, rows: list[Row], seeds: Sequence[int], target: float) -> list[Row]:
        for seed in seeds:
            if rows and not can_keep(rows, target, len(self._seeds)):
                break
            rows = rows + self._simulated(fleet, [seed])
        return rows

    def _simulated(self, fleet: Fleet, seeds: Sequence[int]) -> list[Row]:
        results = cells.simulate_all(self._plan(fleet, seeds), self._cells(seeds), self._request.jobs)
        return [priced(result.row, self._loaded.scenario.fleet.prices) for result in results]

    def _cells(self, seeds: Sequence[int]) -> list[Cell]:
        return [Cell(self._policy, self._request.rate, seed) for seed in seeds]

    def _plan(self, fleet: Fleet, seeds: Sequence[int]) -> cells.Plan:
        given = self._loaded.scenario
        section = self._section(fleet)
        ahead_s = READY_S + section.startup().together_s(len(section.in_order()))
        workload = [each.model_copy(update={"offset_s": each.offset_s + ahead_s}) for each in given.workload]
        changed = given.model_copy(update={"fleet": section, "workload": workload})
        return simulate.plan_of(self._asked, replace(self._loaded, scenario=changed), self._cells(seeds))

    def _section(self, fleet: Fleet) -> FleetSection:
        given = self._loaded.scenario.fleet.model_dump(exclude_unset=True, exclude=SEARCHED)
        return FleetSection.model_validate({"startup_s": DEFAULT_STARTUP_S[StartSource.DISK], **given, **fleet.section})

    def _startup_s(self) -> list[float]:
        return list(self._section(Fleet(mixed=1)).startup().seconds().values())

    def _starts_told(self) -> str:
        seconds = f"{min(self._startup_s()):g} to {max(self._startup_s()):g} s"
        if "startup_s" in self._loaded.scenario.fleet.model_fields_set:
            return f"a start takes {seconds}, as the scenario says"
        return f"a start takes {seconds}: the scenario does not say, in fleet.startup_s"


def _figures(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("seed", "cpu_seconds")}


# Of a journal.


def of_journal(request: Request) -> JournalTrials:
    """Read a journal.

    Raises:
        OperatorError: there is none, or something asked for is not possible with one.
    """
    for flag, is_given in (("--seed", request.seeds), ("--rate", request.rate != 1), ("--set", request.sets)):
        if is_given:
            raise OperatorError(f"{flag} changes a scenario, and a journal is what was")
    recorded = replay.recorded(journals.opened(request.source)[0])
    return JournalTrials(request, recorded)


class JournalTrials:
    """What was asked of a server once."""

    def __init__(self, request: Request, recorded: replay.Recorded) -> None:
        self._request = request
        self._recorded = recorded
        self._policy = request.policy or recorded.header.policy
        startup_s = recorded.record.startup().seconds().values()
        self.assumed = [
            f"what {request.source} recorded was asked for, and no more",
            f"policy {self._policy}; steps take what the instances last said of themselves",
            f"a start takes {max(startup_s, default=0.0):.3g} s, as the longest kind that was recorded",
            *recorded.doubts(),
        ]

    def rows(self, fleet: Fleet, target: float) -> list[Row]:
        section = self._section(fleet)
        ahead_s = READY_S + self._recorded.record.startup().together_s(len(section.in_order()))
        load = self._recorded.load
        jobs = [job._replace(at_s=job.at_s + ahead_s) for job in load.jobs]
        was = replace(self._recorded, load=replace(load, jobs=jobs))
        return [priced(was.simulated(self._policy, section).row, section.prices)]

    def cannot(self, kind: str) -> str:
        moving: fleets.Moving = "fixed" if kind == "apart" else "keeps"
        try:
            fleets.create(self._policy, self._recorded.header.prefill_tokens_max, moving, is_elastic=kind == "elastic")
        except ValueError as error:
            return str(error)
        return ""

    def guess(self) -> Guess:
        assert self._recorded.record.latency is not None
        return guess(self._recorded.load.jobs[:SAMPLE], self._recorded.record.latency)

    def _section(self, fleet: Fleet) -> FleetSection:
        prices = self._recorded.header.fleet.prices
        told = {"active_per_hour": prices.active_per_hour, "asleep_per_hour": prices.asleep_per_hour}
        return FleetSection.model_validate({"prices": told, **fleet.section})
