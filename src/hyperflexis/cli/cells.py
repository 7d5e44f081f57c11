"""Cells, the single simulations that a comparison is made of: each turns a plan into jobs, runs them, and sums up.

Cells know nothing of one another: in processes of their own they give the very same results. Where the scenario came
from and what becomes of the results is the command's.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hyperflexis.cli import fleets
from hyperflexis.cli.errors import OperatorError, StartError
from hyperflexis.cli.results import Cell, Result
from hyperflexis.cli.scenario import RANDOM, SECONDS_MAX, StreamSection
from hyperflexis.core.control import ControlPlane, Policy
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Capacity, Role
from hyperflexis.core.latency import LatencyModel
from hyperflexis.core.slo import ServiceClass
from hyperflexis.sim import summary, workload
from hyperflexis.sim.errors import InputError
from hyperflexis.sim.fabric import FabricSpec
from hyperflexis.sim.job import Job
from hyperflexis.sim.outcome import Outcome
from hyperflexis.sim.startup import StartupSpec
from hyperflexis.sim.traces import Options, TraceError

if TYPE_CHECKING:
    from hyperflexis.sim.simulation import Observer


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream of the scenario, its trace found."""

    section: StreamSection
    trace: Path
    where: str
    """The place of its trace in the scenario."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a cell needs, ready to be sent to another process."""

    classes: Mapping[str, ServiceClass]
    streams: tuple[Stream, ...]
    instances: int
    capacity: Capacity
    latency: LatencyModel
    truth: LatencyModel | None
    noise: float
    prefill_tokens_max: int
    max_tokens: int
    skip_bad: bool
    roles: tuple[Role, ...] = ()
    """Of the instances; mixed where nothing is said."""
    moving: fleets.Moving = "keeps"
    fabric: FabricSpec = field(default_factory=FabricSpec)
    startup: StartupSpec = field(default_factory=StartupSpec)
    bounds: FleetBounds | None = None
    """Of a fleet whose size follows demand."""
    loss_per_hour: float = 0.0
    journal: Path | None = None
    """Where to record the only cell."""


# Many.


def simulate_all(plan: Plan, cells: Sequence[Cell], jobs: int) -> list[Result]:
    """All results, in the order of the cells."""
    workers = min(jobs, len(cells))
    with _progress(len(cells)) as advance:
        if workers <= 1:
            return [_advanced(simulate_cell(plan, cell), advance) for cell in cells]
        return _in_processes(plan, cells, workers, advance)


def _advanced(result: Result, advance: Callable[[], None]) -> Result:
    advance()
    return result


def _in_processes(plan: Plan, cells: Sequence[Cell], workers: int, advance: Callable[[], None]) -> list[Result]:
    # Spawned, not forked: the progress bar has a thread, and a fork would copy its locks in whatever state they are.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_interrupts_to_parent) as pool:
        futures: list[Future[Result]] = [pool.submit(simulate_cell, plan, cell) for cell in cells]
        try:
            for done in as_completed(futures):
                done.result()
                advance()
        except BrokenProcessPool:
            raise StartError("a process that simulates was killed", "it may lack memory: lower --jobs") from None
        except BaseException:
            _abandon(pool)
            raise
        return [future.result() for future in futures]


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _abandon(pool: ProcessPoolExecutor) -> None:
    """End the workers at once: nobody waits for their results any more."""
    for worker in multiprocessing.active_children():
        worker.terminate()
    pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _progress(cells: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr where a person looks at it; yields what to call when a cell is done."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("simulating", total=cells)
        yield lambda: bar.advance(task)


# One.


def simulate_cell(plan: Plan, cell: Cell) -> Result:
    """Run one cell in this process.

    Raises:
        OperatorError: a trace cannot be used as it is, or does not fit the scenario.
    """
    started_s = time.process_time()
    try:
        jobs = mixed(plan, cell)
        outcome = _outcome(plan, cell, checked(jobs, plan))
    except (TraceError, InputError) as error:
        raise OperatorError(str(error)) from None
    row = {
        "policy": cell.policy,
        "rate": cell.rate,
        "seed": cell.seed,
        **summary.row(outcome),
        "cpu_seconds": time.process_time() - started_s,
    }
    return Result(cell, row, summary.curves(outcome), jobs.skipped)


def mixed(plan: Plan, cell: Cell) -> workload.Workload:
    """All streams on one clock."""
    return workload.mix([stream(plan, cell, index) for index in range(len(plan.streams))])


def stream(plan: Plan, cell: Cell, index: int) -> workload.Stream:
    """One stream as the simulator takes it, with chance of its own."""
    section = plan.streams[index].section
    chance = np.random.default_rng([cell.seed, index])
    seed = int(chance.integers(2**32))
    start_s, end_s = section.window_s or (0.0, math.inf)
    length_s = min(end_s - start_s, SECONDS_MAX)
    return workload.Stream(
        plan.streams[index].trace,
        service_class=section.class_name or "",
        bands=tuple(
            workload.Band(math.inf if band.up_to is None else band.up_to, band.class_name)
            for band in section.class_by_prompt_tokens or ()
        ),
        format=section.format,
        options=_options(plan, section),
        seed=seed,
        window_s=(start_s, end_s),
        rotate_s=float(chance.uniform(0, length_s)) if section.rotate_s == RANDOM else section.rotate_s,
        repeat=section.repeat,
        rate=section.rate * cell.rate if section.requests_per_s is None else 1.0,
        requests_per_s=None if section.requests_per_s is None else section.requests_per_s * cell.rate,
        offset_s=section.offset_s,
        limit=section.limit,
    )


def _options(plan: Plan, section: StreamSection) -> Options:
    return Options(
        block_tokens=plan.capacity.block_tokens,
        skip_bad=plan.skip_bad,
        context_tokens_max=section.context_tokens_max,
        arrivals_per_s=section.arrivals_per_s,
        cv=section.cv,
        spread=section.spread,
        origin=section.origin,
        hash_tokens=section.hash_tokens,
        think_s_max=section.think_s_max,
        clients=tuple(section.clients),
    )


def checked(jobs: Iterable[Job], plan: Plan) -> Iterable[Job]:
    """The same jobs; where a trace names classes itself, each has to be one of the scenario's."""
    unnamed = [stream.where for stream in plan.streams if not stream.section.classes]
    if not unnamed:
        return jobs
    return (_known(job, plan.classes, " or ".join(unnamed)) for job in jobs)


def _known(job: Job, classes: Container[str], where: str) -> Job:
    if job.service_class in classes:
        return job
    given = f"class '{job.service_class}', which has no entry in classes" if job.service_class else "no class"
    raise InputError(f"the trace in {where} gives its requests {given}; say 'class' there")


def _outcome(plan: Plan, cell: Cell, jobs: Iterable[Job]) -> Outcome:
    """The one place that knows how the simulation is called."""
    from hyperflexis.sim.simulation import FleetSpec, simulate

    bounds = plan.bounds or FleetBounds.fixed(plan.instances, plan.roles)
    fleet = FleetSpec(
        instances=plan.instances,
        capacity=plan.capacity,
        latency=plan.latency,
        truth=plan.truth,
        noise=plan.noise,
        max_tokens=plan.max_tokens,
        roles=plan.roles,
        fabric=plan.fabric,
        startup=plan.startup,
        bounds=bounds,
        loss_per_hour=plan.loss_per_hour,
    )
    policy = fleets.create(cell.policy, plan.prefill_tokens_max, plan.moving, is_elastic=bounds.is_elastic)
    with _recording(plan, cell, policy, bounds) as observe:
        return simulate(jobs, plan.classes, policy, fleet, seed=cell.seed, observe=observe)


@contextlib.contextmanager
def _recording(plan: Plan, cell: Cell, policy: Policy, bounds: FleetBounds) -> Iterator[Observer | None]:
    """What is to see every event, if a journal is to be written."""
    if plan.journal is None:
        yield None
        return
    from hyperflexis.cli import recordings
    from hyperflexis.sim.simulation import REQUESTS_MAX

    header = recordings.header(
        fleets.spelled(cell.policy, plan.moving, is_elastic=bounds.is_elastic),
        plan.prefill_tokens_max,
        ControlPlane(policy, bounds, REQUESTS_MAX),
        plan.classes.values(),
        seed=cell.seed,
        max_tokens=plan.max_tokens,
    )
    with recordings.recording(plan.journal, header) as recorder:
        yield recorder.observe
