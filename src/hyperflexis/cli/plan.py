"""`hyperflexis plan SCENARIO|JOURNAL --target 0.99`: the cheapest fleet that keeps the target for every class.

Fleets are tried in the simulator: those whose instances do both, prefill and decode apart, and those that follow
demand. What was assumed, and how far what was found can be relied on, is told with it. How the search goes is told in
`fleet_search`, what is simulated in `trials`.
"""

from __future__ import annotations

import difflib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from hyperflexis.cli.errors import OperatorError
from hyperflexis.cli.fleet_search import Fleet, Search, Trial, frontier
from hyperflexis.cli.profile_file import check_writable, write
from hyperflexis.cli.results import aligned, percent
from hyperflexis.cli.trials import Trials, of_journal, of_scenario
from hyperflexis.journal.parts import SUFFIX
from hyperflexis.policies import parse

STDOUT = "-"
MISSED = 4
"""Exit code where no fleet keeps the target."""
KINDS = ("mixed", "apart", "elastic")


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asked for, as it was written."""

    source: Path
    target: float = 0.99
    policy: str | None = None
    rate: float = 1.0
    seeds: str | None = None
    instances_max: int = 256
    kinds: tuple[str, ...] = KINDS
    json_file: str | None = None
    report: Path | None = None
    jobs: int = 1
    traces: tuple[Path, ...] = ()
    skip_bad: bool = False
    sets: tuple[str, ...] = ()

    @property
    def is_of_journal(self) -> bool:
        return self.source.is_dir() or self.source.suffix == SUFFIX


@dataclass(frozen=True, slots=True)
class Plan:
    """What was found."""

    request: Request
    best: Trial | None
    trials: Sequence[Trial]
    """The cheapest first."""
    assumed: Sequence[str]
    certainty: Sequence[str]


def run(request: Request) -> int:
    """Search, print and write what was found; returns the exit code.

    Raises:
        OperatorError: something asked for is wrong or not there.
    """
    for file in (None if request.json_file in (None, STDOUT) else Path(str(request.json_file)), request.report):
        if file is not None:
            check_writable(file)
    _refuse_unknown(request)
    trials = of_journal(request) if request.is_of_journal else of_scenario(request)
    search = Search(_told(trials, request), request.target, request.instances_max)
    left_out = _searched(search, trials, request)
    found = _found(request, search, [*trials.assumed, *left_out])
    text = json.dumps(as_json(found), indent=2, allow_nan=False) + "\n"
    sys.stdout.write(text if request.json_file == STDOUT else as_text(found))
    if request.json_file not in (None, STDOUT):
        write(Path(str(request.json_file)), text)
    if request.report is not None:
        from hyperflexis.cli.report.plan_page import render

        write(request.report, render(found))
    return 0 if found.best is not None else MISSED


def _refuse_unknown(request: Request) -> None:
    if request.policy is not None:
        try:
            parse(request.policy)
        except ValueError as error:
            raise OperatorError(f"bad value for --policy: {error}") from None
    for kind in request.kinds:
        if kind not in KINDS:
            close = difflib.get_close_matches(kind, KINDS, n=1)
            hint = f": did you mean '{close[0]}'?" if close else f"; there are: {', '.join(KINDS)}"
            raise OperatorError(f"unknown kind '{kind}' in --kinds{hint}")


def _told(trials: Trials, request: Request) -> Callable[[Fleet], Trial]:
    """Tries a fleet, and says so on stderr."""

    def attempt(fleet: Fleet) -> Trial:
        started_s = time.monotonic()
        trial = Trial(fleet, trials.rows(fleet, request.target))
        kept = ", ".join(f"{name} {percent(fmean(each))}" for name, each in trial.by_class().items())
        sys.stderr.write(f"{fleet}: {kept} ({time.monotonic() - started_s:.1f} s)\n")
        return trial

    return attempt


def _searched(search: Search, trials: Trials, request: Request) -> list[str]:
    """Try what has to be tried; returns what was not, and why. How far a fleet may grow goes by a fixed one."""
    reasons = {kind: trials.cannot(kind) for kind in request.kinds}
    begin, count = trials.guess(), None
    if {"mixed", "elastic"} & set(request.kinds) and not reasons.get("mixed"):
        count = search.mixed(begin.instances)
        if count is not None:
            search.beside(count)
    if "apart" in request.kinds and not reasons["apart"]:
        search.apart(count, begin.prefill_share, begin.instances)
    if "elastic" in request.kinds and not reasons["elastic"]:
        if count is not None:
            search.elastic(count)
        else:
            reasons["elastic"] = "no number of instances that do both keeps the target"
    names = {"mixed": "instances that do both", "apart": "prefill and decode apart", "elastic": "a size that changes"}
    return [f"not tried: {names[kind]}: {why}" for kind, why in reasons.items() if why]


def _found(request: Request, search: Search, assumed: Sequence[str]) -> Plan:
    if not search.trials:
        raise OperatorError("no fleet can be tried: " + "; ".join(assumed))
    ordered = sorted(search.trials.values(), key=lambda each: (each.cost_per_hour, -each.worst))
    best = search.best()
    return Plan(request, best, ordered, assumed, certainty(request, best, search))


def certainty(request: Request, best: Trial | None, search: Search) -> list[str]:
    """How far it can be relied on."""
    if best is None:
        closest = max(search.trials.values(), key=lambda each: each.worst)
        return [
            f"no fleet of up to {request.instances_max} instances that was tried keeps it; {closest.fleet} came "
            f"closest, with {percent(closest.worst)} of its worst class. Where more instances gain nothing, some "
            "requests are longer than their promise even when nothing runs beside them"
        ]
    told = []
    for name, found in best.by_class().items():
        requests = fmean(row["requests_by_class"][name] for row in best.rows)
        spread = f" ({percent(min(found))} to {percent(max(found))} by seed)" if len(found) > 1 else ""
        told.append(f"class {name}: {percent(fmean(found))}{spread} of {requests:.0f} requests")
        missable = requests * len(best.rows) * (1 - request.target)
        if missable < MISSABLE_MIN:
            told.append(
                f"class {name} has too few requests to tell {request.target:g} from a little less: "
                f"{missable:.1f} of them may miss; a longer stretch or more seeds would"
            )
    if len(best.rows) > 1 and min(min(each) for each in best.by_class().values()) < request.target:
        told.append("the target is kept in the mean over the seeds, not by every one of them")
    if len(best.rows) == 1:
        told.append("one stretch of load was tried, once: another one of its kind may need more")
    fewer = [each for each in search.trials.values() if _is_one_fewer(each.fleet, best.fleet)]
    told += [f"with one instance fewer, {each.fleet}, the worst class has {percent(each.worst)}" for each in fewer]
    return told


MISSABLE_MIN = 5.0
"""Requests of a class that may miss, over all seeds, for the share to be worth its last digit."""


def _is_one_fewer(fleet: Fleet, than: Fleet) -> bool:
    if than.mixed_max is not None:
        return (fleet.mixed, fleet.mixed_max) == (than.mixed, than.mixed_max - 1)
    return fleet.kind == than.kind == "mixed" and fleet.mixed == than.mixed - 1


# Telling.


def as_text(found: Plan) -> str:
    """For people: the table, what was found, and what it rests on."""
    lines = [f"assumed: {each}" for each in found.assumed] + [f"how sure: {each}" for each in found.certainty]
    return aligned(rows(found)) + f"\n{headline(found)}\n\n" + "".join(f"{line}\n" for line in lines)


def headline(found: Plan) -> str:
    """What was found, in a sentence."""
    target = f"{found.request.target * 100:g} %"
    if found.best is None:
        return f"no fleet that was tried keeps {target} of every class"
    return f"cheapest fleet that keeps {target} of every class: {found.best.fleet}, {_price(found.best)}"


def _price(trial: Trial) -> str:
    mean = f"{trial.instances:.2f} instances on average, " if trial.fleet.mixed_max is not None else ""
    return f"{mean}{trial.cost_per_hour:.2f} per hour"


def rows(found: Plan) -> list[list[str]]:
    """The table's texts, its head first. A star marks the frontier: nothing that was tried keeps more for as little."""
    classes = list(dict.fromkeys(name for trial in found.trials for name in trial.by_class()))
    best = frontier(found.trials)
    head = ["fleet", "cost/h", "instances", *classes, "lowest seed", "seeds", "kept", "frontier"]
    return [head, *(_row(trial, classes, found.request.target, trial in best) for trial in found.trials)]


def _row(trial: Trial, classes: Sequence[str], target: float, is_best: bool) -> list[str]:
    by_class = trial.by_class()
    return [
        *(str(trial.fleet), f"{trial.cost_per_hour:.2f}", f"{trial.instances:.2f}"),
        *(percent(fmean(by_class[name])) if name in by_class else "-" for name in classes),
        *(percent(min(min(each) for each in by_class.values())) if by_class else "-", str(len(trial.rows))),
        *("yes" if trial.keeps(target) else "no", "*" if is_best else ""),
    ]


def as_json(found: Plan) -> dict[str, Any]:
    """For programs."""
    best = frontier(found.trials)
    return {
        "target": found.request.target,
        "rate": found.request.rate,
        "best": None if found.best is None else found.best.fleet.section,
        "fleets": [_trial_json(trial, found.request.target, trial in best) for trial in found.trials],
        "assumed": list(found.assumed),
        "certainty": list(found.certainty),
    }


def _trial_json(trial: Trial, target: float, is_best: bool) -> dict[str, Any]:
    return {
        "fleet": trial.fleet.section,
        "cost_per_hour": trial.cost_per_hour,
        "instances": trial.instances,
        "keeps": trial.keeps(target),
        "is_frontier": is_best,
        "attainment_by_class": {
            name: {"mean": fmean(each), "min": min(each), "max": max(each)} for name, each in trial.by_class().items()
        },
        "results": [dict(row) for row in trial.rows],
    }
