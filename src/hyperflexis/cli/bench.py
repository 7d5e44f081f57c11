"""`hyperflexis bench URL SCENARIO`: a scenario's traces against an endpoint, and what of its promises was kept there.

The scenario is `simulate`'s; its classes and workload are taken, fleet and policy are the endpoint's own. Reads what
was asked for, runs one rate and seed after the other, and writes what `simulate` writes. How requests are sent and
answers read is told in `bench`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import uvloop

from hyperflexis import __version__
from hyperflexis.bench.answer import End
from hyperflexis.bench.endpoint import KEY_ENV, Endpoint, EndpointError, Wanted, meet
from hyperflexis.bench.load import Limits, Load, Promise
from hyperflexis.bench.prompts import Prompts
from hyperflexis.cli import cells, goodput, measured, scenario, simulate
from hyperflexis.cli.errors import OperatorError, StartError
from hyperflexis.cli.profile_file import check_writable
from hyperflexis.cli.results import Cell, Result, percent
from hyperflexis.cli.scenario import ScenarioFile
from hyperflexis.core.slo import ServiceClass
from hyperflexis.sim.errors import InputError
from hyperflexis.sim.job import Job
from hyperflexis.sim.traces import TraceError

MISSED = 4
"""Exit code where a class attained less than --target."""
NOTHING = 3
"""Exit code where no request was answered at all."""
INTERRUPTED = 130
KEEP_ALIVE_S = 3.0
"""Less than any server keeps an idle connection: one that it closes just then would be a failure of ours."""
CONNECT_S = 30.0
REQUESTS_MAX = 10_000
"""Under way at a time, where nothing is said."""
FILES_MAX, FILES_SPARE = 1 << 20, 64
LINE_S = 10.0
"""Between two lines of progress where nobody looks at a bar."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asked for, as it was written."""

    url: str
    scenario: simulate.Request
    goodput: tuple[str, ...] = ()
    duration_s: float | None = None
    limit: int | None = None
    warmup_s: float = 0.0
    timeout_s: float = 600.0
    requests_max: int | None = None
    """None: as many as this process may have, within reason."""
    is_plain: bool = False
    is_by_name: bool = False
    is_chat: bool = False
    is_text: bool = False
    model: str | None = None
    headers: tuple[str, ...] = ()
    name: str | None = None
    target: float | None = None


class Run(NamedTuple):
    """One rate and seed, read."""

    cell: Cell
    jobs: list[Job]
    skipped: int


def run(request: Request) -> int:
    """Run all that was asked for, print and write it; returns the exit code.

    Raises:
        OperatorError: something asked for is wrong or not there, or nothing answers at the address.
    """
    url = checked(request.url)
    loaded = scenario.load(request.scenario.file, request.scenario.sets)
    classes = goodput.promised(loaded.scenario.service_classes(), goodput.read(request.goodput))
    if request.is_plain and request.is_by_name:
        raise OperatorError("--plain sends no promises and --by-name sends their names: one or the other")
    headers = _headers(request)
    for file in (simulate.json_path(request.scenario), request.scenario.report):
        if file is not None:
            check_writable(file)
    runs = _runs(request, loaded, urlsplit(url).netloc)
    limits = Limits(request.timeout_s, _allowed(request.requests_max))
    gc.collect()
    gc.freeze()  # Jobs by the hundred thousand, which no pause should go through again.
    playing = _play(
        request, url, headers, classes, runs, limits=limits, block_tokens=loaded.scenario.engine.block_tokens
    )
    results = uvloop.run(playing)
    is_interrupted = len(results) < len(runs) or any(result.row["interrupted"] for result in results)
    simulate.tell_skipped(results)
    simulate.write_results(request.scenario, loaded, results, what="run")
    return _exit_code(request, results, is_interrupted=is_interrupted)


def checked(url: str) -> str:
    """An address without /v1 and what may follow it.

    Raises:
        OperatorError: it is none.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise OperatorError(f"{url!r} is no server's address", "such as http://127.0.0.1:8000")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme}://{parts.netloc}{path}"


# What to send.


def _runs(request: Request, loaded: ScenarioFile, netloc: str) -> list[Run]:
    """Every rate with every seed, their traces read: while requests are sent there is no time for that."""
    plan = simulate.plan_of(request.scenario, loaded)
    seeds = simulate.seeds_of(request.scenario.seeds) or [loaded.scenario.seed]
    label = request.name or netloc
    chosen = [Cell(label, rate, seed) for rate in simulate.rates_of(request.scenario.rates) for seed in seeds]
    return [_read(request, plan, cell) for cell in chosen]


def _read(request: Request, plan: cells.Plan, cell: Cell) -> Run:
    mixed = cells.mixed(plan, cell)
    end_s = _end_s(request)
    try:
        due = itertools.takewhile(lambda job: job.at_s < end_s, cells.checked(mixed, plan))
        jobs = list(itertools.islice(due, request.limit))
    except (TraceError, InputError) as error:
        raise OperatorError(str(error)) from None
    if not any(job.at_s >= request.warmup_s for job in jobs):
        raise OperatorError("nothing is due after the warm-up", "make --warmup shorter, or --duration longer")
    return Run(cell, jobs, mixed.skipped)


def _end_s(request: Request) -> float:
    return float("inf") if request.duration_s is None else request.duration_s


def promises(classes: Mapping[str, ServiceClass], *, is_plain: bool, is_by_name: bool) -> dict[str, Promise]:
    """What goes with the requests of each class: nothing, the class's name, or its targets and priority in numbers."""
    if is_plain:
        return dict.fromkeys(classes, Promise())
    if is_by_name:
        return {name: Promise(members={"service_tier": name}) for name in classes}
    return {name: Promise(headers=_numbers(each)) for name, each in classes.items()}


def _numbers(promised: ServiceClass) -> dict[str, str]:
    """Headers that llm-d and ours read; the priority's is Dynamo's."""
    slo = promised.slo
    targets = {"x-llm-d-slo-ttft-ms": slo.ttft_s, "x-llm-d-slo-tpot-ms": slo.tpot_s, "x-slo-e2e-ms": slo.e2e_s}
    headers = {name: f"{target_s * 1000:g}" for name, target_s in targets.items() if target_s is not None}
    return headers | ({"x-dynamo-request-priority": str(promised.priority)} if promised.priority else {})


def _headers(request: Request) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "User-Agent": f"hyperflexis/{__version__}"}
    if key := os.environ.get(KEY_ENV):
        headers["Authorization"] = f"Bearer {key}"
    for text in request.headers:
        name, colon, value = text.partition(":")
        if not colon or not name.strip() or not text.isprintable():
            raise OperatorError(f"--header {text!r} should be NAME:VALUE")
        headers[name.strip()] = value.strip()
    return headers


# Sending it.


async def _play(
    request: Request,
    url: str,
    headers: Mapping[str, str],
    classes: Mapping[str, ServiceClass],
    runs: Sequence[Run],
    *,
    limits: Limits,
    block_tokens: int,
) -> list[Result]:
    sent = promises(classes, is_plain=request.is_plain, is_by_name=request.is_by_name)
    results: list[Result] = []
    async with session_to(headers) as session:
        wanted = Wanted(url, request.model, is_chat=request.is_chat, is_text=request.is_text)
        try:
            endpoint = await asyncio.wait_for(meet(session, wanted), CONNECT_S)
        except EndpointError as error:
            raise StartError(str(error), error.hint) from None
        except TimeoutError:
            raise StartError(f"{url} does not answer within {CONNECT_S:g} s") from None
        _tell(_how(endpoint))
        for each in runs:
            prompts = Prompts(endpoint.form, block_tokens, each.cell.seed)
            load = Load(session, endpoint, prompts, sent, clock=time.perf_counter, limits=limits)
            begun_s = time.process_time()
            is_interrupted = await _until_end(load, each, request)
            cpu_s = time.process_time() - begun_s
            result = measured.result(each.cell, load, classes, request.warmup_s, cpu_s)
            row = {**result.row, "url": endpoint.address, "model": endpoint.model, "interrupted": is_interrupted}
            results.append(Result(result.cell, row, result.curves, each.skipped))
            for said in measured.complaints(row):
                _tell(f"rate {each.cell.rate:g}, seed {each.cell.seed}: {said}")
            if is_interrupted:
                break
    return results


@contextlib.asynccontextmanager
async def session_to(headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientSession]:
    """Connections without a bound of their own: how many requests there are at a time is the load's."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        yield session


async def _until_end(load: Load, each: Run, request: Request) -> bool:
    """Play it, unless the operator has seen enough; returns whether so."""
    loop = asyncio.get_running_loop()
    playing = asyncio.create_task(load.play(each.jobs, _end_s(request)))
    loop.add_signal_handler(signal.SIGINT, playing.cancel)
    try:
        with _progress(load, each) as show:
            while not playing.done():
                await asyncio.wait([playing], timeout=0.5)
                show()
        await playing
    except asyncio.CancelledError:
        _tell("interrupted: what has ended by now counts")
        return True
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        playing.cancel()
    return False


def _allowed(requests_max: int | None) -> int:
    """How many requests may be under way, each of which has a socket; lets this process have as many files.

    Raises:
        OperatorError: the system does not let it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = (hard if hard != resource.RLIM_INFINITY else FILES_MAX) - FILES_SPARE
    chosen = min(REQUESTS_MAX, allowed) if requests_max is None else requests_max
    if chosen > allowed:
        raise OperatorError(
            f"--concurrency-max {chosen} needs {chosen + FILES_SPARE} open files, and {hard} are allowed here",
            f"--concurrency-max {max(1, allowed)}, or raise `ulimit -n`",
        )
    if soft != resource.RLIM_INFINITY and soft < chosen + FILES_SPARE:
        resource.setrlimit(resource.RLIMIT_NOFILE, (chosen + FILES_SPARE, hard))
    return chosen


# Telling.


def _how(endpoint: Endpoint) -> str:
    form = endpoint.form
    if endpoint.has_exact_prompts:
        how = "token ids"
    else:
        how = f"text, {form.tokens_per_unit:.3g} tokens a word and {form.tokens_besides:.3g} besides"
    ends = "" if "ignore_eos" in endpoint.members else "; it does not take ignore_eos, so answers may end early"
    return f"{endpoint.address}, model {endpoint.model}: prompts are {how}{ends}"


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


@contextlib.contextmanager
def _progress(load: Load, each: Run) -> Iterator[Any]:
    """A bar where a person looks at it, else a line now and then; yields what to call often."""
    total = len(each.jobs)
    if not sys.stderr.isatty():
        yield _Lines(load, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("rate {task.fields[rate]:g}"), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, rate=each.cell.rate)
        yield lambda: bar.update(task, completed=len(load.answers), description=standing(load, total))


class _Lines:
    """A line of progress whenever one is due."""

    def __init__(self, load: Load, total: int) -> None:
        self._load, self._total, self._due_s = load, total, LINE_S

    def __call__(self) -> None:
        if self._load.now_s >= self._due_s:
            self._due_s += LINE_S
            _tell(f"{self._load.now_s:.0f} s: {standing(self._load, self._total)}")


def standing(load: Load, total: int) -> str:
    """How far it is, in words. A later turn of a session is in none of the numbers before it is due."""
    ended = [each for each in load.answers if each.ended_s == each.ended_s]
    done = sum(each.end is End.DONE for each in ended)
    lost = len(ended) - done
    words = f"{len(load.answers)} of {total} sent, {len(load.answers) - len(ended)} under way, {done} done"
    return words + (f", {lost} not" if lost else "")


def _exit_code(request: Request, results: Sequence[Result], *, is_interrupted: bool) -> int:
    if is_interrupted:
        return INTERRUPTED
    if not any(result.row["finished"] or result.row["rejected"] for result in results):
        _tell("error: no request was answered")
        return NOTHING
    if request.target is None:
        return 0
    missed = [
        f"{name} {percent(share)} at rate {result.cell.rate:g}, seed {result.cell.seed}"
        for result in results
        for name, share in result.row["attainment_by_class"].items()
        if share is not None and share < request.target
    ]
    if missed:
        _tell(f"less than {request.target:g} was attained: {'; '.join(missed)}")
    return MISSED if missed else 0
