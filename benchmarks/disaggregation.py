"""Prefill and decode together or apart: how much load each way bears, on loads that favour one, the other, or both.

    python benchmarks/disaggregation.py --traces DIR                  # the whole table, hours of one core
    python benchmarks/disaggregation.py --traces DIR --row hyperflexis    # one row anew, the others as they were
    python benchmarks/disaggregation.py --traces DIR --quick          # a smoke run of minutes, into build/

For each load, quality, number of instances and speed of links: the highest rate that each row bears. Ours is one
setting that is told nothing. `static` is the best split of the fleet, chosen in hindsight for each cell, and the
rivals' tunings are chosen so, too. Results are kept in build/disaggregation, so that a run that was stopped goes on.
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
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import disaggregation_loads as loads
import disaggregation_page
import disaggregation_search as search
import record
from disaggregation_runs import COLOCATED, KEPT, OURS, STATIC, Bench, Cell, moves_kv, source_hash
from hyperflexis.cli import trace_files
from hyperflexis.policies import tunings
from hyperflexis.sim import profiles

RESULTS = record.REPOSITORY / "benchmarks" / "results" / "disaggregation.json"
INSTANCES, LINKS_GB_S = (8, 4), (40, 20)


def begun(name: str, beginning: str) -> tuple[str, ...]:
    """A policy with each of its tunings, on a fleet that begins in one way."""
    found = []
    for tuning in tunings.TUNINGS.get(name, ({},)):
        words = {key: str(value).lower() if isinstance(value, bool) else value for key, value in tuning.items()}
        found.append(f"{name}:" + ",".join([beginning, *(f"{key}={word}" for key, word in words.items())]))
    return tuple(found)


SETTING = f"{OURS}:P=half,roles=planned"
"""Ours: one for all cells."""
PUBLISHED = ("arrow", "splitwise", "llumnix_pd", "taichi", "tokenscale", "dynamo_pd")
"""Policies that part prefill from decode, of which each begins with half of the fleet."""
RIVALS: dict[str, tuple[str, ...]] = {
    "chunked": tuple(f"{COLOCATED}:round_robin:chunk={chunk}" for chunk in (512, 2048)),
    "half": (f"{STATIC}:P=half",),
    **{name: begun(name, "P=half") for name in PUBLISHED},
}
"""By row, what is tried of it: stock engines that take turns, a split that is not chosen, published systems tuned."""
JOBS_MAX = 2
QUICK = {"loads": ("sh",), "qualities": (30,), "instances": (4,), "links": (40,), "seeds": (0,)}


class Group(NamedTuple):
    """Cells that differ in their links only: searched by one process, each from what the one before found."""

    load: str
    quality: int
    instances: int
    links_gb_s: tuple[int, ...]
    seeds: tuple[int, ...]
    rows: tuple[str, ...]
    before: Mapping[int, Mapping[str, Any]]
    """By links, the rows of an earlier run, to begin from."""


def tries(row: str, instances: int) -> list[str]:
    """The deployments of which a row is the best."""
    if row == STATIC:
        return [f"{STATIC}:P={prefills}" for prefills in range(1, instances)]
    return [SETTING] if row == OURS else list(RIVALS.get(row, (row,)))


def searched(group: Group, traces: Path) -> dict[str, Any]:
    """All capacities of a group, by row and links, and what they took."""
    began_s, simulations, cpu_s = time.monotonic(), 0, 0.0
    cells = []
    last: dict[str, dict[str, Any]] = {}
    for link_gb_s in group.links_gb_s:
        cell = Cell(group.load, group.quality, group.instances, link_gb_s)
        bench = Bench(cell, traces, group.seeds)
        found: dict[str, dict[str, Any]] = {}
        for row in group.rows:
            texts = tries(row, group.instances)
            if row in last and not any(moves_kv(text) for text in texts):
                found[row] = last[row]
                continue
            before = group.before.get(link_gb_s, {}).get(row)
            near = before or last.get(row) or found.get(STATIC) or found.get(COLOCATED) or {}
            found[row] = _best(bench, row, texts, near, search.NEAR if before else search.FAR)
        last = {**last, **found}
        simulations, cpu_s = simulations + bench.fresh, cpu_s + bench.cpu_s
        cells.append({**asdict(cell), "rows": found})
    took = {"simulations": simulations, "cpu_seconds": round(cpu_s), "seconds": round(time.monotonic() - began_s)}
    return {"cells": cells, "took": took}


def _best(bench: Bench, row: str, texts: Sequence[str], near: Mapping[str, Any], stride: int) -> dict[str, Any]:
    """The best of a row's deployments, beginning with what was best in a similar cell."""
    first, rps = near.get("deployment"), near.get("rps")
    guess = search.step_of(rps / bench.cell.own_rps) if rps else 0
    if row == STATIC:
        start = texts.index(first) if first in texts else bench.likeliest(texts, guess)
        return bench.best_beside(texts, start, guess, stride)
    return bench.best_of(sorted(texts, key=lambda text: text != first), guess, stride)


def groups(options: argparse.Namespace, before: Sequence[Mapping[str, Any]]) -> list[Group]:
    found = []
    for load, instances, quality in itertools.product(options.load, options.instances, options.quality):
        own = [
            cell for cell in before if (cell["load"], cell["instances"], cell["quality"]) == (load, instances, quality)
        ]
        rows = {cell["link_gb_s"]: cell["rows"] for cell in own}
        found.append(
            Group(load, quality, instances, tuple(options.link), tuple(options.seed), tuple(options.row), rows)
        )
    return found


def head(options: argparse.Namespace) -> dict[str, Any]:
    """All that the page tells besides capacities."""
    model = profiles.load_profile(loads.PROFILE).latency
    return {
        "machine": record.machine("numpy"),
        "source": source_hash(),
        "quick": options.quick,
        "profile": loads.PROFILE,
        "kv_token_bytes": loads.KV_TOKEN_BYTES,
        "seeds": list(options.seed),
        "fixed_share": {str(quality): model.decode_base_s / (quality / 1000) for quality in options.quality},
        "classes": {
            name: {"ttft_s": each.slo.ttft_s, "tpot_s": each.slo.tpot_s}
            for name, each in loads.classes(max(loads.QUALITIES)).items()
        },
        "qualities": {str(quality): factor for quality, factor in loads.QUALITIES.items()},
        "loads": {name: loads.described(name) for name in options.load},
    }


def merged(cells: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """New cells with the rows that only the old ones have; old cells that were not asked for stay."""

    def key(cell: Mapping[str, Any]) -> tuple[Any, ...]:
        return cell["load"], cell["quality"], cell["instances"], cell["link_gb_s"]

    found = {key(cell): dict(cell) for cell in before}
    for cell in cells:
        old = found.get(key(cell), {})
        found[key(cell)] = {**cell, "rows": {**old.get("rows", {}), **cell["rows"]}}
    return list(found.values())


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
    rows = [COLOCATED, STATIC, OURS, *RIVALS]
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    words.add_argument("--traces", type=Path, help="folder of the traces; else HYPERFLEXIS_TRACES says")
    words.add_argument("--row", action="append", help=f"only these: {', '.join(rows)}, or any deployment")
    words.add_argument("--load", action="append", choices=list(loads.LOADS), help="only these")
    words.add_argument("--quality", action="append", type=int, choices=list(loads.QUALITIES), help="only these")
    words.add_argument("--instances", action="append", type=int, help="only these")
    words.add_argument("--link", action="append", type=int, help="only these, in GB/s")
    words.add_argument("--seed", action="append", type=int, help="only these")
    words.add_argument("--jobs", type=int, choices=range(1, JOBS_MAX + 1), default=1, help="processes")
    words.add_argument("--quick", action="store_true", help="one load, one seed, few rows, into build/")
    words.add_argument("--out", type=Path, help="file of the results")
    options = words.parse_args()
    quick = QUICK if options.quick else {}
    options.row = options.row or (rows[:3] if options.quick else rows)
    options.load = options.load or list(quick.get("loads", loads.LOADS))
    options.quality = options.quality or list(quick.get("qualities", loads.QUALITIES))
    options.instances = options.instances or list(quick.get("instances", INSTANCES))
    options.link = options.link or list(quick.get("links", LINKS_GB_S))
    options.seed = options.seed or list(quick.get("seeds", loads.SEEDS))
    options.out = options.out or (KEPT / "quick.json" if options.quick else RESULTS)
    return options


def folder(given: Path | None) -> Path | None:
    """Where all traces lie; None where some are missing."""
    places = trace_files.folders([given] if given is not None else [], os.environ)
    return next((place for place in places if not loads.missing(place)), None)


def main() -> int:
    options = _options()
    traces = folder(options.traces)
    if traces is None:
        print(f"skipped: say with --traces which folder has all of {', '.join(loads.TRACES)}", file=sys.stderr)
        return 0
    before = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    report = {**head(options), "took": {}, "cells": before.get("cells", [])}
    report["loads"] = {**before.get("loads", {}), **report["loads"]}
    report["fixed_share"] = {**before.get("fixed_share", {}), **report["fixed_share"]}
    began_s, simulations, cpu_s = time.monotonic(), 0, 0
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        started = {pool.submit(searched, group, traces.resolve()): group for group in groups(options, report["cells"])}
        for future in as_completed(started):
            group, found = started[future], future.result()
            simulations, cpu_s = simulations + found["took"]["simulations"], cpu_s + found["took"]["cpu_seconds"]
            took = {"seconds": round(time.monotonic() - began_s), "simulations": simulations, "cpu_seconds": cpu_s}
            report = {**report, "took": took, "cells": merged(found["cells"], report["cells"])}
            write(options.out, report)
            say(f"{group.load} Q{group.quality} N{group.instances}: {told(found['cells'])}; {found['took']}")
    if disaggregation_page.is_complete(report):
        shown = disaggregation_page.PAGE if options.out == RESULTS else options.out.with_suffix(".md")
        shown.write_text(disaggregation_page.page(report), encoding="utf-8")
    else:
        say(f"no page: not every cell has {', '.join(disaggregation_page.NEEDED)}")
    return 0


def told(cells: Sequence[Mapping[str, Any]]) -> str:
    """Capacities in one line."""
    return "; ".join(
        f"{cell['link_gb_s']} GB/s " + ", ".join(f"{row} {each['rps']:.1f}" for row, each in cell["rows"].items())
        for cell in cells
    )


if __name__ == "__main__":
    sys.exit(main())
