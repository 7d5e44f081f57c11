"""How many promises each tuning of each rival keeps at the rate that ours bears: what tuning could gain, coarsely.

    python benchmarks/disaggregation_tunings.py --traces DIR --json benchmarks/results/disaggregation_tunings.json

Eight instances, links of 40 GB/s, one seed, one simulation for each cell and tuning, at ours' capacity of the cell as
`benchmarks/results/disaggregation.json` has it. A rival that keeps as much as is asked there bears as much as ours.
Written after each tuning; what the file has is not run again, so that it can be stopped, and goes on where it was.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean

import disaggregation
import record
from disaggregation_loads import LOADS, QUALITIES
from disaggregation_runs import OURS, Cell, fleet_of
from disaggregation_runs import loads as load_of
from hyperflexis.sim.simulation import simulate

INSTANCES, LINK_GB_S, SEED = 8, 40, 0
ROWS = {OURS: (disaggregation.SETTING,), **disaggregation.RIVALS}
POINTS = "points_beyond_what_is_asked"


def kept(cell: Cell, deployment: str, rate: float, traces: Path) -> float:
    """Share of promises, in points beyond what the load has to keep."""
    jobs = load_of.jobs(cell.load, rate, SEED, traces)
    policy, fleet = fleet_of(cell, deployment)
    outcome = simulate(jobs, load_of.classes(cell.quality), policy, fleet, seed=SEED)
    return 100 * (float(outcome.attained.mean()) - LOADS[cell.load].attainment_min)


def rates() -> dict[Cell, float]:
    """Ours' capacity of each cell, requests per second."""
    known = json.loads(disaggregation.RESULTS.read_text(encoding="utf-8"))["cells"]
    return {
        Cell(each["load"], each["quality"], INSTANCES, LINK_GB_S): each["rows"][OURS]["rps"]
        for each in known
        if (each["instances"], each["link_gb_s"]) == (INSTANCES, LINK_GB_S)
    }


def known_points(path: Path | None) -> dict[str, dict[str, dict[str, float]]]:
    """What a file has of an earlier run: points of each cell, of each tuning, of each row."""
    if path is None or not path.exists():
        return {}
    found: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text(encoding="utf-8"))[POINTS]
    return found


def write(path: Path | None, found: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Returns the best of each row's tunings in each cell."""
    best = {
        row: {cell: max(points[cell] for points in tried.values()) for cell in next(iter(tried.values()))}
        for row, tried in found.items()
        if tried
    }
    report = {
        "machine": record.machine("numpy"),
        "instances": INSTANCES,
        "link_gb_s": LINK_GB_S,
        "seed": SEED,
        "qualities": list(QUALITIES),
        POINTS: found,
        "best": best,
    }
    record.write(path, report)
    return best


def main() -> int:
    words = record.parser(__doc__)
    words.add_argument("--traces", type=Path)
    words.add_argument("--jobs", type=int, default=2)
    options = words.parse_args()
    traces = disaggregation.folder(options.traces)
    if traces is None:
        print("skipped: say with --traces which folder has all traces", file=sys.stderr)
        return 0
    known = known_points(options.json)
    found = {row: {text: known[row][text] for text in ROWS[row] if text in known.get(row, {})} for row in ROWS}
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for row, text in [(name, each) for name in ROWS for each in ROWS[name] if each not in found[name]]:
            asked = {cell: pool.submit(kept, cell, text, rate, traces) for cell, rate in rates().items()}
            points = {f"{cell.load} Q{cell.quality}": round(each.result(), 1) for cell, each in asked.items()}
            found[row][text] = points
            print(f"{text}: mean {fmean(points.values()):.1f}, {points}", flush=True)
            write(options.json, found)
    for row, points in write(options.json, found).items():
        print(f"{row:12} best of {len(ROWS[row])}: mean {fmean(points.values()):6.1f}  {points}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
