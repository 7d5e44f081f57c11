"""What a fleet costs that changes its size with demand, and what it keeps of its promises meanwhile.

    python benchmarks/scaling.py --traces DIR                 # the whole table, about an hour of two cores
    python benchmarks/scaling.py --traces DIR --row kpa       # one row anew, the others as they were
    python benchmarks/scaling.py --traces DIR --quick         # a smoke run of minutes, into build/

For each load and time that a start takes: instance-seconds and attainment of ours, of published scalers, of the fixed
fleet that is just large enough, and of one that knows the future. All of them dispatch and compute as ours does. Of
each scaler the cheapest of its tunings is taken that keeps enough on other windows of the series than are reported.
Results are kept in build/scaling, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import record
import scaling_choice as choice
import scaling_loads as loads
import scaling_page
from hyperflexis.cli import trace_files
from hyperflexis.policies import tunings
from scaling_runs import CLAIRVOYANT, KEPT, OURS, STATIC, STAYS, Run, kept, source_hash

RESULTS = record.REPOSITORY / "benchmarks" / "results" / "scaling.json"
STARTUPS_S = (3.0, 30.0, 1.0, 60.0)
"""The first two first: what is chosen there serves the others, too."""
TUNED_AT_S = {1.0: 3.0, 3.0: 3.0, 30.0: 30.0, 60.0: 30.0}
RIVALS = (
    "hfx_reactive",
    "dynamo_planner",
    "blitzscale",
    "tokenscale_scaler",
    "chiron",
    "kpa",
    "llm_d_saturation",
)
ROWS = (OURS, STAYS, *RIVALS, CLAIRVOYANT)
LATE_SHARES = {3.0: (0.02, 0.01, 0.005, 0.0025), 30.0: (0.02, 0.005, 0.0025, 0.0001)}
"""Of ours: what is tried of `late_share`, by the time of a start."""
FACTORS = (1.0, 1.15)
"""Of what a clairvoyant fleet is told to have, tried as others' tunings are."""
TRIED = {3.0: slice(0, 4), 30.0: slice(-4, None)}
"""By the time of a start, which of a rival's tunings: those for quick starts come first, those for slow ones last."""
JOBS_MAX = 2
QUICK = {"loads": ("bu",), "startups": (3.0,), "rows": (OURS, "kpa")}


def tries(row: str, at_s: float) -> list[str]:
    """The deployments of which a row is one, with starts of so long."""
    if row == CLAIRVOYANT:
        return [f"{row}:{factor}" for factor in FACTORS]
    if row == OURS:
        return [f"{row}:late_share={share}" for share in LATE_SHARES[at_s]]
    found = []
    for tuning in tunings.TUNINGS[row]:
        words = ",".join(f"{key}={value}" for key, value in tuning.items())
        found.append(f"{row}:{words}" if words else row)
    return found[TRIED[at_s]]


def peak(load: str, seed: int, traces: Path) -> dict[str, Any]:
    """The smallest fixed fleet that keeps enough of every class, or else the best."""
    return choice.smallest(
        lambda count: kept(Run(load, 0.0, f"{STATIC}:{count}", seed), traces), loads.LOADS[load].instances_max
    )


def chosen(load: str, startup_s: float, row: str, peaks: Mapping[int, Mapping[str, Any]], traces: Path) -> str:
    """The deployment of a row that is reported, by the seeds that are not."""
    at_s = TUNED_AT_S[startup_s]
    return choice.cheapest(
        tries(row, at_s),
        lambda text, seed: kept(Run(load, at_s, text, seed), traces),
        {s: peaks[s] for s in loads.TUNED},
    )


def row_of(
    load: str, startup_s: float, row: str, peaks: Mapping[int, Mapping[str, Any]], traces: Path
) -> dict[str, Any]:
    """What one row gave under the reported seeds."""
    deployment = chosen(load, startup_s, OURS if row == STAYS else row, peaks, traces)
    if row == STAYS:  # As ours but for one thing.
        deployment = deployment.replace(OURS, STAYS)
    return {"deployment": deployment, "source": source_hash(), "runs": _told(load, startup_s, deployment, traces)}


def _told(load: str, startup_s: float, deployment: str, traces: Path) -> list[dict[str, Any]]:
    runs = [kept(Run(load, startup_s, deployment, seed), traces) for seed in loads.REPORTED]
    return [{key: value for key, value in run.items() if key not in asdict(Run("", 0, "", 0))} for run in runs]


def described(name: str, traces: Path) -> dict[str, Any]:
    """A load as the page tells it."""
    load = loads.LOADS[name]
    found = [loads.jobs(name, seed, traces) for seed in loads.REPORTED]
    return {
        "title": load.title,
        "profile": load.profile,
        "lasts_s": load.lasts_s - loads.WARM_S,
        "requests": [len(jobs) for jobs in found],
        "peak_over_mean": [round(loads.peak_over_mean(jobs), 2) for jobs in found],
        "classes": {
            each.name: {"ttft_s": each.slo.ttft_s, "tpot_s": each.slo.tpot_s}
            for each in loads.classes(name).values()
            if any(job.service_class == each.name for jobs in found for job in jobs)
        },
    }


def write(file: Path, report: Mapping[str, Any]) -> None:
    """As JSON with a line for each row of each cell."""
    cells = []
    for cell in report["cells"]:
        rows = ",\n".join(f"        {json.dumps(row)}: {json.dumps(each)}" for row, each in cell["rows"].items())
        cells.append("    " + json.dumps({**cell, "rows": {}}).replace('"rows": {}', '"rows": {\n' + rows + "\n    }"))
    text = json.dumps({**report, "cells": []}, indent=2)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.replace('"cells": []', '"cells": [\n' + ",\n".join(cells) + "\n  ]") + "\n", encoding="utf-8")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _options() -> argparse.Namespace:
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    words.add_argument("--traces", type=Path, help="folder of the traces; else HYPERFLEXIS_TRACES says")
    words.add_argument("--load", action="append", choices=list(loads.LOADS), help="only these")
    words.add_argument("--startup", action="append", type=float, choices=STARTUPS_S, help="only these, seconds")
    words.add_argument("--row", action="append", choices=ROWS, help="only these")
    words.add_argument("--jobs", type=int, choices=range(1, JOBS_MAX + 1), default=1, help="processes")
    words.add_argument("--quick", action="store_true", help="one load, one start, two rows, into build/")
    words.add_argument("--out", type=Path, help="file of the results")
    options = words.parse_args()
    quick = QUICK if options.quick else {}
    options.load = options.load or list(quick.get("loads", loads.LOADS))
    options.startup = options.startup or list(quick.get("startups", STARTUPS_S))
    options.row = options.row or list(quick.get("rows", ROWS))
    options.out = options.out or (KEPT / "quick.json" if options.quick else RESULTS)
    return options


def folder(given: Path | None) -> Path | None:
    """Where all traces lie; None where some are missing."""
    places = trace_files.folders([given] if given is not None else [], os.environ)
    return next((place for place in places if not loads.missing(place)), None)


def peaks_of(names: Sequence[str], traces: Path, pool: ProcessPoolExecutor) -> dict[str, dict[int, dict[str, Any]]]:
    """By load and seed."""
    pairs = list(itertools.product(names, (*loads.REPORTED, *loads.TUNED)))
    found = pool.map(peak, *zip(*pairs, strict=True), itertools.repeat(traces))
    peaks: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in names}
    for (name, seed), each in zip(pairs, found, strict=True):
        peaks[name][seed] = each
    return peaks


def main() -> int:
    options = _options()
    traces = folder(options.traces)
    if traces is None:
        print(f"skipped: say with --traces which folder has all of {', '.join(loads.TRACES)}", file=sys.stderr)
        return 0
    traces = traces.resolve()
    before = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    cells = {(cell["load"], cell["startup_s"]): cell for cell in before.get("cells", [])}
    report = {
        "machine": record.machine("numpy"),
        "source": source_hash(),
        "quick": options.quick,
        "warm_s": loads.WARM_S,
        "loads": {**before.get("loads", {}), **{name: described(name, traces) for name in options.load}},
        "static": before.get("static", {}),
    }
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        peaks = peaks_of(options.load, traces, pool)
        report["static"] = {**report["static"], **{name: list(each.values()) for name, each in peaks.items()}}
        started: dict[Future[dict[str, Any]], tuple[str, float, str]] = {
            pool.submit(row_of, load, startup_s, row, peaks[load], traces): (load, startup_s, row)
            for startup_s, load, row in itertools.product(options.startup, options.load, options.row)
        }
        for future in as_completed(started):
            load, startup_s, row = started[future]
            cell = cells.setdefault((load, startup_s), {"load": load, "startup_s": startup_s, "rows": {}})
            cell["rows"][row] = future.result()
            ordered = [cells[key] for key in sorted(cells)]
            write(options.out, {**report, "cells": ordered})
            say(f"{load} {startup_s:g} s {cell['rows'][row]['deployment']}: {choice.told(cell['rows'][row]['runs'])}")
    shown = scaling_page.PAGE if options.out == RESULTS else options.out.with_suffix(".md")
    shown.write_text(scaling_page.page(json.loads(options.out.read_text(encoding="utf-8"))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
