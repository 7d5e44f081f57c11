"""Write docs/results/disaggregation.md from the raw file of the disaggregation comparison.

    python benchmarks/disaggregation_page.py

Every figure on the page is computed from the file. Knows nothing of how capacities came about.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import disaggregation_search as search
import record
from scheduling_page import table

RESULTS = record.REPOSITORY / "benchmarks" / "results" / "disaggregation.json"
TUNINGS = record.REPOSITORY / "benchmarks" / "results" / "disaggregation_tunings.json"
PAGE = record.REPOSITORY / "docs" / "results" / "disaggregation.md"
OURS, COLOCATED, STATIC = "hyperflexis", "colocated", "static"
NEEDED = (OURS, COLOCATED, STATIC)
"""Rows without which there is no page."""
HOLDS, SHIFTS, MEAN = 0.97, 1.1, 1.15
"""What is asked: of the better of colocated and static in every cell, of it on loads that shift, of the best rival."""
TITLES = {
    OURS: "**ours**",
    COLOCATED: "together, our scheduling",
    STATIC: "apart, best split in hindsight",
    "half": "apart, half and half",
    "chunked": "together, stock engines in turn",
}

Results = Mapping[str, Any]
Column = Mapping[str, Any]


def page(results: Results) -> str:
    """The whole page."""
    return "\n".join(
        [
            _opening(),
            _how(results),
            _loads(results),
            _promises(results),
            "## What was asked\n\n" + verdict(results),
            "## Capacities\n\n" + _capacities(results),
            *tuned(TUNINGS),
            _chosen(results),
            _limits(results),
        ]
    )


# What is computed.


def is_complete(results: Results) -> bool:
    """Whether every cell has the rows that what was asked is about."""
    return bool(results["cells"]) and all(row in cell["rows"] for cell in results["cells"] for row in NEEDED)


def columns(results: Results) -> list[Column]:
    """The cells, in the order in which they are told."""
    order = list(results["loads"])
    return sorted(
        results["cells"],
        key=lambda cell: (-cell["quality"], -cell["instances"], order.index(cell["load"]), -cell["link_gb_s"]),
    )


def rows(results: Results) -> list[str]:
    """Those that some cell has, ours first."""
    found = dict.fromkeys(row for cell in results["cells"] for row in cell["rows"])
    return [*NEEDED, *(row for row in found if row not in NEEDED)]


def having(cells: Iterable[Column], row: str) -> list[Column]:
    """The cells in which a row was measured: rivals need not be in all of them."""
    return [cell for cell in cells if row in cell["rows"]]


def rps(cell: Column, row: str) -> float:
    return float(cell["rows"][row]["rps"])


def relative(cell: Column, row: str) -> float | None:
    """A capacity as a share of what the fleet bears together; None where that is nothing, or it was not measured."""
    return rps(cell, row) / rps(cell, COLOCATED) if row in cell["rows"] and rps(cell, COLOCATED) else None


def mean(cells: Iterable[Column], row: str) -> float:
    """Over cells, of capacities as shares of what the fleet bears together."""
    known = [share for cell in cells if (share := relative(cell, row)) is not None]
    return fmean(known) if known else 0.0


def held(cell: Column) -> float | None:
    """Ours as a share of the better of together and the best split."""
    better = max(rps(cell, COLOCATED), rps(cell, STATIC))
    return rps(cell, OURS) / better if better else None


def best_rival(results: Results) -> str | None:
    """The row with the highest mean beside ours in the same cells, of those that are told as little."""
    rivals = [row for row in rows(results) if row not in NEEDED]
    cells = results["cells"]
    return max(rivals, key=lambda row: mean(cells, row) / mean(having(cells, row), OURS), default=None)


def verdict(results: Results) -> str:
    """What was asked beside what was found."""
    cells = columns(results)
    shifting = [cell for cell in cells if results["loads"][cell["load"]]["is_shifting"]]
    lines = [
        _held("every cell", cells, HOLDS, f"ours is to bear {HOLDS:g} of the better of the two, at least"),
        _held("loads that shift", shifting, SHIFTS, f"ours is to bear {SHIFTS:g} of it, at least"),
    ]
    ours, best = mean(cells, OURS), best_rival(results)
    if best is not None:
        same = having(cells, best)
        beside, theirs = mean(same, OURS), mean(same, best)
        found = beside / theirs if theirs else 0.0
        lines.append(
            f"- **Mean over cells: ours is to bear {MEAN:g} of the best rival's mean, at least.** "
            f"{_kept(found >= MEAN)}: {_two(beside)} against {_two(theirs)} ({_title(best)}), which is {_two(found)}, "
            f"in {_counted(len(same), 'cell')}."
        )
    static = mean(cells, STATIC)
    lines.append(
        f"- Means for comparison, as shares of together: ours {_two(ours)}, the best split of each cell in hindsight "
        f"{_two(static)}, the better of that and together "
        f"{_two(fmean(max(1.0, relative(cell, STATIC) or 0.0) for cell in cells))}."
    )
    return "\n".join(lines) + "\n"


def _held(where: str, cells: Sequence[Column], least: float, asked: str) -> str:
    known = [(share, cell) for cell in cells if (share := held(cell)) is not None]
    if not known:
        return f"- **{where.capitalize()}**: nothing was run."
    kept = sum(share >= least for share, _ in known)
    lowest, cell = min(known, key=lambda each: each[0])
    return (
        f"- **{where.capitalize()}: {asked}.** {_kept(kept == len(known))}: kept in {kept} of {len(known)} cells; mean "
        f"{_two(fmean(share for share, _ in known))}, lowest {_two(lowest)} ({_name(cell)})."
    )


# What is told.


def _opening() -> str:
    return (
        "# Prefill and decode, together and apart: what was simulated\n\n"
        "Made by `benchmarks/disaggregation_page.py` from `benchmarks/results/disaggregation.json`; do not edit. "
        "Everything is simulated, on step times of the shipped profile table and a modelled network: nothing was run "
        "on a GPU.\n\n"
        "    make bench-disaggregation TRACES=DIR                        # all of it, into this page\n"
        "    make bench-disaggregation TRACES=DIR ARGS=--quick           # minutes, into build/\n"
    )


def _how(results: Results) -> str:
    machine, took = results["machine"], results.get("took", {})
    shares = ", ".join(f"{_two(share)} at {quality} ms" for quality, share in results["fixed_share"].items())
    return (
        "## How it was measured\n\n"
        f"- **Fleet**: instances of `{results['profile']}`, {results['kv_token_bytes']:,} bytes of KV per token, each "
        "with one link out and one in. Its fixed part of a step is a share of chat's pace that is "
        f"{shares}.\n"
        "- **Capacity** is the highest rate at which the load's share of all requests keeps its promises, in the mean "
        f"over {_counted(len(results['seeds']), 'seed')}, found on a grid of {100 * (search.GRID - 1):.0f} % and read "
        "off the line between the last rate that is borne and the first that is not. A seed is another window of the "
        "traces, or other draws from them. All requests count, and a run goes on until the last has ended.\n"
        "- **Rows**: ours is one setting for all cells, and is told nothing of the load. *Together* is the same "
        "scheduling with every instance mixed. *Best split in hindsight* takes, for each cell, the number of "
        "prefilling instances that bears most. Of each rival, each cell has the best of the tunings that were tried; a "
        "row that names its tuning was run with that one only, and a dash means that it was not run.\n"
        f"- Run at {machine['commit']} on {machine['cores']} {machine['cpu']} cores, Python {machine['python']}, "
        f"{machine['date'][:10]}; the rows run last took {took.get('simulations', 0)} simulations and "
        f"{took.get('cpu_seconds', 0) / 60:.0f} CPU minutes.{_sources(results)}\n"
    )


def _sources(results: Results) -> str:
    sources = {each["source"] for cell in results["cells"] for each in cell["rows"].values()}
    return "" if len(sources) <= 1 else f" Rows are of {len(sources)} versions of the source; the raw file says which."


def _loads(results: Results) -> str:
    lines = []
    for name, load in results["loads"].items():
        cells = [cell for cell in results["cells"] if cell["load"] == name]
        requests = [n for cell in cells for n in cell["rows"].get(COLOCATED, {}).get("at_step", {}).get("requests", [])]
        lasts = f"{load['lasts_s']:g} s" if load["lasts_s"] else f"{load['window_s']:g} s of the trace, compressed"
        phases = f", phases of {load['phase_s']:g} s" if load["is_shifting"] else ""
        counted = f"{min(requests)}–{max(requests)}" if requests else "–"
        lines.append([name, load["title"], lasts + phases, counted, f"{100 * load['attainment_min']:g} %"])
    return "### Loads\n\n" + table(["load", "what", "arrivals last", "requests of a run", "to be kept"], lines)


def _promises(results: Results) -> str:
    lines = [
        [name, f"{each['ttft_s']:.3g} s", *(f"{1000 * factor * each['tpot_s']:g} ms" for factor in _factors(results))]
        for name, each in results["classes"].items()
    ]
    head = ["class", "first token", *(f"each further, Q {quality}" for quality in results["qualities"])]
    return "### Promises\n\n" + table(head, lines)


def _factors(results: Results) -> list[float]:
    return list(results["qualities"].values())


def _capacities(results: Results) -> str:
    found = []
    cells = columns(results)
    for quality, instances in dict.fromkeys((cell["quality"], cell["instances"]) for cell in cells):
        chosen = [cell for cell in cells if (cell["quality"], cell["instances"]) == (quality, instances)]
        found.append(
            f"**Q {quality} ms, {instances} instances.** Requests/s of the fleet together, all others as shares of it; "
            "load and GB/s of links above.\n\n" + _capacity(results, chosen)
        )
    return "\n".join([*found, _means(results, cells)])


def _capacity(results: Results, cells: Sequence[Column]) -> str:
    head = ["", *(f"{cell['load']} {cell['link_gb_s']}" for cell in cells), "mean"]
    lines = []
    for row in rows(results):
        if row == COLOCATED:
            values = [f"{rps(cell, row):.1f}/s" for cell in cells]
        else:
            values = [_two(relative(cell, row)) for cell in cells]
        if having(cells, row):
            lines.append([_title(row), *values, _two(mean(cells, row))])
    better = [held(cell) for cell in cells]
    known = [share for share in better if share is not None]
    lines.append(["ours / better of the two", *map(_two, better), _two(fmean(known) if known else None)])
    return table(head, lines)


def _means(results: Results, cells: Sequence[Column]) -> str:
    """Means by what cells have in common."""
    kinds: dict[str, list[Column]] = {"all": list(cells)}
    for cell in cells:
        for name in (f"Q {cell['quality']}", f"{cell['instances']} instances", f"{cell['link_gb_s']} GB/s"):
            kinds.setdefault(name, []).append(cell)
    kinds = {name: kinds[name] for name in sorted(kinds, key=lambda name: (name != "all", name))}
    lines = [
        [_title(row), *(_two(mean(each, row) if having(each, row) else None) for each in kinds.values())]
        for row in rows(results)
    ]
    return "**Means** of capacities as shares of the fleet together:\n\n" + table(["", *kinds], lines)


def tuned(file: Path) -> list[str]:
    """What tuning gains for rivals, by the file of `disaggregation_tunings.py` if there is one."""
    if not file.is_file():
        return []
    found = json.loads(file.read_text(encoding="utf-8"))
    cells = list(next(iter(found["best"].values())))
    lines = []
    for row, best in found["best"].items():
        tried = found["points_beyond_what_is_asked"][row]
        means = {text: fmean(points.values()) for text, points in tried.items()}
        single = max(means, key=lambda text: means[text])
        lines.append(
            [
                _title(row),
                str(len(tried)),
                f"{means[single]:+.1f} ({single})",
                f"{fmean(best.values()):+.1f}",
                *(f"{best[cell]:+.0f}" for cell in cells),
            ]
        )
    missing = ", ".join(f"{row} ({count})" for row, count in found.get("not_run", {}).items()) or "none"
    head = ["", "tunings", "best single one, mean", "best of each cell, mean", *cells]
    return [
        "## Rivals tuned\n\n"
        f"Each tuning at the rate that ours bears, {found['instances']} instances, {found['link_gb_s']} GB/s, one seed "
        "in place of three: points of attainment above what the load asks for, and below where negative. This says "
        "which tuning is best and how near it comes, not how much it bears. Tunings that were not run: "
        f"{missing}.{_provenance(found)}\n\n" + table(head, lines)
    ]


def _provenance(found: Mapping[str, Any]) -> str:
    """Of a file that was not written by one run to its end."""
    return f" The file is put together {found['put_together']}." if "put_together" in found else ""


def _chosen(results: Results) -> str:
    """What hindsight chose."""
    cells = columns(results)
    kinds = list(dict.fromkeys((cell["quality"], cell["instances"], cell["link_gb_s"]) for cell in cells))
    lines = []
    for load in results["loads"]:
        own = {(c["quality"], c["instances"], c["link_gb_s"]): c for c in cells if c["load"] == load}
        values = [own[kind]["rows"][STATIC]["deployment"].partition("P=")[2] if kind in own else "–" for kind in kinds]
        lines.append([load, *values])
    head = ["prefilling instances", *(f"Q {q}, {n} × {link} GB/s" for q, n, link in kinds)]
    return "## What hindsight chose\n\n" + table(head, lines)


def _limits(results: Results) -> str:
    return (
        "## What this is not\n\n"
        "- Capacities are exact to the grid, and seeds differ by more: single cells that differ by less than a few "
        "per cent are equal.\n"
        "- Prefixes are not shared, steps take exactly what is predicted, and nothing is lost. Rates of compressed "
        "traces make bursts shorter than they were.\n"
        "- The constants of ours were chosen on the same loads: on other draws, and on other windows of the traces, of "
        "which half is in these for az, little for lo, nothing for r1.\n"
        "- Loads that shift begin half a phase before their first shift and end half a phase behind their second.\n"
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _title(row: str) -> str:
    return TITLES.get(row, row)


def _name(cell: Column) -> str:
    return f"{cell['load']}, Q {cell['quality']}, {cell['instances']} instances, {cell['link_gb_s']} GB/s"


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _kept(is_kept: bool) -> str:
    return "Reached" if is_kept else "**Missed**"


def main() -> int:
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    words.add_argument("--results", type=Path, default=RESULTS, help="the raw file")
    words.add_argument("--page", type=Path, default=PAGE, help="the page that is written")
    options = words.parse_args()
    if not options.results.is_file():
        print(f"no raw file {options.results}", file=sys.stderr)
        return 1
    results = json.loads(options.results.read_text(encoding="utf-8"))
    if not is_complete(results):
        print(f"not every cell has {', '.join(NEEDED)}", file=sys.stderr)
        return 1
    options.page.write_text(page(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
