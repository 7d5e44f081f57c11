"""`hyperflexis simulate`: runs a scenario under every policy, rate and seed asked for, and tells what came of it.

Reads what was asked for into a plan and its cells, and writes the results: a table for people, JSON for programs, a
report for both. How a cell is simulated is told in `cells`.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperflexis.cli import fleets, scenario, trace_files
from hyperflexis.cli.cells import Plan, Stream, simulate_all
from hyperflexis.cli.errors import OperatorError
from hyperflexis.cli.profile_file import check_writable, write
from hyperflexis.cli.results import Cell, Result, table
from hyperflexis.cli.scenario import ScenarioFile
from hyperflexis.core.instance import Capacity
from hyperflexis.policies import POLICIES, split_names
from hyperflexis.sim.fabric import FabricSpec

ALL_POLICIES = "all"
STDOUT = "-"


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asked for, as it was written."""

    file: Path
    policies: str | None = None
    rates: str | None = None
    seeds: str | None = None
    json_file: str | None = None
    report: Path | None = None
    jobs: int = 1
    traces: tuple[Path, ...] = ()
    skip_bad: bool = False
    sets: tuple[str, ...] = ()
    journal: Path | None = None


def run(request: Request) -> int:
    """Simulate all cells, print and write what was asked for; returns the exit code.

    Raises:
        OperatorError: something asked for is wrong or not there.
    """
    loaded = scenario.load(request.file, request.sets)
    cells = _cells(request, loaded)
    _refuse_unwritable(request)
    _refuse_many(request, cells)
    plan = plan_of(request, loaded, cells)
    results = simulate_all(plan, cells, request.jobs)
    tell_skipped(results)
    write_results(request, loaded, results)
    return 0


# What to run.


def _cells(request: Request, loaded: ScenarioFile) -> list[Cell]:
    policies = _policies(request.policies, loaded)
    rates, seeds = rates_of(request.rates), seeds_of(request.seeds) or [loaded.scenario.seed]
    return [Cell(policy, rate, seed) for policy in policies for rate in rates for seed in seeds]


def rates_of(text: str | None) -> list[float]:
    """What --rate says; the trace's own, where it says nothing."""
    return [1.0] if text is None else _numbers("--rate", text, float, _is_rate, "numbers above 0")


def seeds_of(text: str | None) -> list[int]:
    """What --seed says."""
    return [] if text is None else _numbers("--seed", text, int, lambda seed: seed >= 0, "whole numbers from 0")


def _policies(text: str | None, loaded: ScenarioFile) -> list[str]:
    """Those asked for, each of which can serve the scenario's fleet."""
    if text is None:
        where, names = f"policy in {loaded.place('policy')}", [loaded.scenario.policy]
    elif text.strip() == ALL_POLICIES:
        return fleets.able(loaded.moving, is_elastic=loaded.is_elastic)
    else:
        where, names = "bad value for --policy", list(dict.fromkeys(split_names(text)))
    for name in names:
        bare = name.partition(":")[0]
        if close := difflib.get_close_matches(bare, POLICIES, n=1) if bare not in POLICIES else []:
            raise OperatorError(f"unknown policy '{bare}' in --policy: did you mean '{close[0]}'?")
        try:
            loaded.policy(name)
        except ValueError as error:
            raise OperatorError(f"{where}: {error}") from None
    return names


def _words(flag: str, text: str) -> list[str]:
    """What stands between the commas, each once."""
    words = list(dict.fromkeys(word.strip() for word in text.split(",")))
    if not all(words):
        raise OperatorError(f"{flag} {text!r} should be one or more values with commas between them")
    return words


def _numbers(
    flag: str, text: str, kind: Callable[[str], Any], is_possible: Callable[[Any], bool], what: str
) -> list[Any]:
    try:
        numbers = [kind(word) for word in _words(flag, text)]
    except ValueError:
        numbers = []
    if not numbers or not all(is_possible(number) for number in numbers):
        raise OperatorError(f"{flag} {text!r} should be {what} with commas between them")
    return list(dict.fromkeys(numbers))


def _is_rate(rate: float) -> bool:
    return 0 < rate <= scenario.RATE_MAX


def _refuse_unwritable(request: Request) -> None:
    """Before hours of computing, not after."""
    for file in (json_path(request), request.report):
        if file is not None:
            check_writable(file)


def _refuse_many(request: Request, cells: Sequence[Cell]) -> None:
    if request.journal is not None and len(cells) > 1:
        raise OperatorError(f"--journal records one simulation, and {len(cells)} were asked for")


def json_path(request: Request) -> Path | None:
    """The file that is to have the results as JSON, if it is one."""
    return None if request.json_file in (None, STDOUT) else Path(str(request.json_file))


def plan_of(request: Request, loaded: ScenarioFile, cells: Sequence[Cell] = ()) -> Plan:
    """All that these cells need of a scenario.

    Raises:
        OperatorError: a trace is not there, or something asked for is wrong.
    """
    given, profile = loaded.scenario, loaded.profile()
    engine = given.engine
    blocks = profile.kv_tokens // engine.block_tokens
    if not blocks:
        raise OperatorError(
            f"profile in {loaded.place('profile')}: {profile.kv_tokens} KV tokens are less than one block of "
            f"{engine.block_tokens}"
        )
    return Plan(
        classes=given.service_classes(),
        streams=_streams(request, loaded),
        instances=loaded.instances,
        capacity=Capacity(blocks, engine.block_tokens, engine.seqs_max, _kv_token_bytes(loaded, cells)),
        latency=profile.latency,
        truth=loaded.truth(profile.latency),
        noise=given.noise,
        prefill_tokens_max=engine.prefill_tokens_max,
        max_tokens=engine.max_tokens,
        skip_bad=request.skip_bad,
        roles=loaded.roles(),
        moving=loaded.moving,
        fabric=FabricSpec(bytes_s=given.fleet.link_gb_s * 1e9, latency_s=given.fleet.link_latency_ms / 1e3),
        startup=loaded.startup(),
        bounds=loaded.bounds(),
        loss_per_hour=given.fleet.loss_per_hour,
        journal=request.journal,
    )


def _kv_token_bytes(loaded: ScenarioFile, cells: Sequence[Cell]) -> int:
    policies = [loaded.policy(cell.policy) for cell in cells]
    return loaded.kv_token_bytes(is_needed=any(each.binder is not None or each.relief is not None for each in policies))


def _streams(request: Request, loaded: ScenarioFile) -> tuple[Stream, ...]:
    for folder in request.traces:
        if not folder.is_dir():
            raise OperatorError(f"{trace_files.TRACES_FLAG} {str(folder)!r} is no folder")
    places = trace_files.folders(request.traces, os.environ, loaded.file.parent)
    found = []
    for index, section in enumerate(loaded.scenario.workload):
        where = loaded.place("workload", str(index), "trace")
        found.append(Stream(section, _trace(section.trace, where, places), where))
    return tuple(found)


def _trace(name: str, where: str, places: Sequence[Path]) -> Path:
    found = trace_files.find(name, places)
    if found is None:
        looked = "" if Path(name).is_absolute() else f"; looked in {', '.join(str(place) for place in places)}"
        raise OperatorError(
            f"trace in {where}: there is no file {name!r}{looked}",
            f"say where traces lie with {trace_files.TRACES_FLAG} or {trace_files.TRACES_ENV}; "
            "`hyperflexis traces` lists public ones and how to get them",
        )
    return found


# Telling.


def tell_skipped(results: Sequence[Result]) -> None:
    """Say on stderr how many bad rows were left out."""
    skipped = max((result.skipped_rows for result in results), default=0)
    if skipped:
        sys.stderr.write(f"{skipped} bad rows of the traces were skipped\n")


def write_results(request: Request, loaded: ScenarioFile, results: Sequence[Result], what: str = "simulation") -> None:
    """Print and write what was asked for; `what` is what the report calls a result."""
    text = json.dumps({"results": [result.row for result in results]}, indent=2, allow_nan=False) + "\n"
    sys.stdout.write(text if request.json_file == STDOUT else table(results))
    if (file := json_path(request)) is not None:
        write(file, text)
    if request.report is not None:
        from hyperflexis.cli.report import render

        write(request.report, render(loaded, results, what))
