"""Write docs/results/scaling.md from the raw file of the scaling comparison.

    python benchmarks/scaling_page.py

Every figure on the page is computed from the file. Knows nothing of how runs came about.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import record
import scaling_choice as choice
from scheduling_page import table

RESULTS = record.REPOSITORY / "benchmarks" / "results" / "scaling.json"
PAGE = record.REPOSITORY / "docs" / "results" / "scaling.md"
OURS, STAYS, CLAIRVOYANT = "hyperflexis", "stays", "clairvoyant"
NO_RIVALS = (OURS, STAYS, CLAIRVOYANT)
TITLES = {OURS: "**ours**", STAYS: "ours, nothing moves when an instance goes", CLAIRVOYANT: "told the future"}
DEARER, CHEAPER, CHEAPER_IN = 0.02, 0.10, 2
AZURE, AZURE_SAVES, AZURE_AT_S, PEAKIEST_SAVES = "az", 0.25, 3.0, 0.4981
QUICK_S, SLOW_S = 3.0, 30.0

Results = Mapping[str, Any]
Cell = Mapping[str, Any]


def page(results: Results) -> str:
    """The whole page."""
    return "\n".join(
        [
            _opening(),
            _how(results),
            _loads(results),
            "## What was asked\n\n" + verdict(results),
            _costs(results),
            _bursts(results),
            _parts(results),
            *further(),
            _chosen(results),
            _limits(),
        ]
    )


def further() -> list[str]:
    """Sections of what was measured elsewhere: weights from peers, live fleets. Each begins with `## `."""
    return []


# What is computed.


def runs(cell: Cell, row: str) -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = cell["rows"][row]["runs"]
    return found


def static(results: Results, load: str) -> Sequence[Mapping[str, Any]]:
    """The fixed fleets of the reported seeds."""
    found: Sequence[Mapping[str, Any]] = [each for each in results["static"][load] if each["seed"] in reported(results)]
    return found


def reported(results: Results) -> Sequence[int]:
    first = next(iter(results["cells"]))
    return range(len(runs(first, next(iter(first["rows"])))))


def keeps(results: Results, cell: Cell, row: str) -> bool:
    """Whether every class is within a point of the fixed fleet."""
    return choice.keeps(runs(cell, row), static(results, cell["load"]))


def cost(results: Results, cell: Cell, row: str) -> float:
    """As a share of the fixed fleet's."""
    return choice.instance_s(runs(cell, row)) / choice.instance_s(static(results, cell["load"]))


def best_rival(results: Results, cell: Cell) -> str | None:
    """The cheapest that keeps as much as the fixed fleet."""
    able = [row for row in cell["rows"] if row not in NO_RIVALS and keeps(results, cell, row)]
    return min(able, key=lambda row: cost(results, cell, row), default=None)


def verdict(results: Results) -> str:
    """What was asked beside what was found."""
    cells = [cell for cell in results["cells"] if OURS in cell["rows"]]
    able = [cell for cell in cells if keeps(results, cell, OURS)]
    compared = [(cell, rival) for cell in able if (rival := best_rival(results, cell)) is not None]
    over = {_name(cell): cost(results, cell, OURS) / cost(results, cell, rival) - 1 for cell, rival in compared}
    dearer = [f"{name} {_signed(by)}" for name, by in over.items() if by > DEARER + choice.ROUNDING]
    cheaper = [name for name, by in over.items() if by <= choice.ROUNDING - CHEAPER]
    alone = [_name(cell) for cell in able if best_rival(results, cell) is None]
    unable = [cell for cell in cells if cell not in able]
    behind = [_name(cell) for cell in unable if best_rival(results, cell) is not None]
    only_ours = f" Only ours keeps as much in {_listed(alone)}." if alone else ""
    lines = [
        f"- **Never more than {100 * DEARER:.0f} % dearer than the cheapest rival that keeps as much.** "
        f"{_kept(not dearer and not unable)}: in {len(compared) - len(dearer)} of {len(compared)} cells in which both "
        f"keep as much as the fixed fleet; dearer in {_listed(dearer)}. Ours keeps less than asked in "
        f"{_listed([_name(cell) for cell in unable])}; of these a rival keeps as much in {_listed(behind)}.{only_ours}",
        f"- **At least {100 * CHEAPER:.0f} % cheaper in {CHEAPER_IN} loads or more.** "
        f"{_kept(len({name.split()[0] for name in cheaper}) >= CHEAPER_IN)}: {_listed(cheaper)}.",
    ]
    azure = [cell for cell in cells if (cell["load"], cell["startup_s"]) == (AZURE, AZURE_AT_S)]
    quickest = min((cell["startup_s"] for cell in cells), default=0.0)
    peakiest = max(results["loads"], key=lambda name: fmean(results["loads"][name]["peak_over_mean"]))
    peaky = [cell for cell in cells if cell["load"] == peakiest and cell["startup_s"] in (quickest, AZURE_AT_S)]
    for what, chosen, least in (
        ("as recorded on Azure, starts of 3 s", azure, AZURE_SAVES),
        (f"on the peakiest load ({peakiest})", peaky, PEAKIEST_SAVES),
    ):
        told = [
            f"{100 * (1 - cost(results, cell, OURS)):.1f} % at {cell['startup_s']:g} s"
            + ("" if keeps(results, cell, OURS) else ", keeping less than asked")
            for cell in chosen
        ]
        is_kept = any(1 - cost(results, cell, OURS) >= least and keeps(results, cell, OURS) for cell in chosen)
        lines.append(f"- **Saves {100 * least:g} % of the fixed fleet {what}.** {_kept(is_kept)}: {_listed(told)}.")
    return "\n".join(lines) + "\n"


# What is told.


def _opening() -> str:
    return (
        "# Fleets whose size follows demand: what was simulated\n\n"
        "Made by `benchmarks/scaling_page.py` from `benchmarks/results/scaling.json`; do not edit. Everything is "
        "simulated, on step times of the shipped profile table: nothing was run on a GPU.\n\n"
        "    make bench-scaling TRACES=DIR                        # all of it, into this page\n"
        "    make bench-scaling TRACES=DIR ARGS=--quick           # minutes, into build/\n\n"
        "Weights, time to ready and sleep have [a page of their own](weights.md), nodes of a Ray cluster are in "
        "[ray.md](../ray.md).\n"
    )


def _how(results: Results) -> str:
    machine = results["machine"]
    sources = {each["source"] for cell in results["cells"] for each in cell["rows"].values()}
    several = (
        f" Rows are of {len(sources)} versions of the source; the raw file says which." if len(sources) > 1 else ""
    )
    return (
        "## How it was measured\n\n"
        "- **Cost** is instance-seconds from the launch of an instance to its end, starting and draining included, as "
        "a share of the fixed fleet's. **Attainment** is of requests that keep all their promises, by class.\n"
        f"- **Fixed fleet**: for each seed the smallest in which every class keeps {100 * choice.ENOUGH:.0f} %, known "
        "in hindsight. A scaler *keeps as much* whose every class is within a point of it, over the three seeds; a "
        "row that does not is shown in brackets, and its cost counts as no win.\n"
        "- **Rows**: all dispatch and compute as ours does, and differ in when they start and end instances. Only "
        "ours, and the one that is told the future, move running requests off an instance that is to end. Of each row "
        "the cheapest of its tunings is shown that was within half a point on other windows of the same series; what "
        "was chosen at starts of 3 s serves 1 s, too, and what was chosen at 30 s serves 60 s.\n"
        f"- Every fleet begins with one instance, as if it had just been made: the first {results['warm_s']:g} s are "
        "neither counted nor paid, of the fixed fleet either. A start takes the same however many there are.\n"
        f"- Run at {machine['commit']} on {machine['cores']} {machine['cpu']} cores, Python {machine['python']}, "
        f"{machine['date'][:10]}.{several}\n"
    )


def _loads(results: Results) -> str:
    lines = []
    for name, load in results["loads"].items():
        fixed = static(results, name)
        kept = choice.attainment(fixed)
        promises = "; ".join(
            f"{each} {promised['ttft_s']:.3g} s, {1000 * promised['tpot_s']:g} ms"
            for each, promised in load["classes"].items()
        )
        lines.append(
            [
                name,
                load["title"],
                "/".join(map(str, load["requests"])),
                "/".join(f"{ratio:.1f}" for ratio in load["peak_over_mean"]),
                "/".join(f"{each['instances']}{'' if each['is_enough'] else '*'}" for each in fixed),
                ", ".join(f"{each} {_points(share)}" for each, share in kept.items()),
                promises,
            ]
        )
    head = ["load", "what", "requests", "peak/mean", "fixed fleet", "keeps, %", "first token, each further"]
    return (
        "### Loads\n\n"
        + table(head, lines)
        + "\nBy seed. Peak over mean is of tokens in windows of 30 s. * No fleet up to the largest keeps 99 %: the "
        "smallest within half a point of that one.\n"
    )


def _costs(results: Results) -> str:
    parts = ["## Costs\n"]
    for startup_s in sorted({cell["startup_s"] for cell in results["cells"]}):
        cells = [cell for cell in results["cells"] if cell["startup_s"] == startup_s]
        rows = dict.fromkeys(row for cell in cells for row in cell["rows"])
        lines = [[TITLES.get(row, row), *(_cell(results, cell, row) for cell in cells)] for row in rows]
        best = [_against(results, cell) for cell in cells]
        lines.append(["ours over the cheapest rival", *best])
        parts.append(
            f"**Starts of {startup_s:g} s.** Cost as a share of the fixed fleet's, and the attainment of the class "
            "that falls furthest behind it.\n\n" + table(["", *(cell["load"] for cell in cells)], lines)
        )
    return "\n".join(parts)


def _cell(results: Results, cell: Cell, row: str) -> str:
    if row not in cell["rows"]:
        return "–"
    own, theirs = choice.attainment(runs(cell, row)), choice.attainment(static(results, cell["load"]))
    furthest = min(own, key=lambda name: own[name] - theirs[name])
    text = f"{cost(results, cell, row):.2f} ({_points(own[furthest])})"
    return text if keeps(results, cell, row) else f"[{text}]"


def _against(results: Results, cell: Cell) -> str:
    rival = best_rival(results, cell)
    if rival is None or OURS not in cell["rows"] or not keeps(results, cell, OURS):
        return "–"
    return _signed(cost(results, cell, OURS) / cost(results, cell, rival) - 1)


def _bursts(results: Results) -> str:
    cells = [
        cell for cell in results["cells"] if any(run["violation_s"] for run in runs(cell, next(iter(cell["rows"]))))
    ]
    if not cells:
        return ""
    rows = dict.fromkeys(row for cell in cells for row in cell["rows"])
    lines = [[TITLES.get(row, row), *(_violation(cell, row) for cell in cells)] for row in rows]
    fixed = [each for run in static(results, cells[0]["load"]) for each in run["violation_s"]]
    lines.append(["fixed fleet", *([f"{fmean(fixed):.0f} ({max(fixed)})"] * len(cells))])
    return (
        "## After a burst\n\nFive times as much arrives within two seconds. Seconds from then until 95 % of what "
        "arrives is kept again for five seconds: mean of all bursts (longest), by time of a start.\n\n"
        + table(["", *(f"{cell['startup_s']:g} s" for cell in cells)], lines)
    )


def _violation(cell: Cell, row: str) -> str:
    if row not in cell["rows"]:
        return "–"
    found = [each for run in runs(cell, row) for each in run["violation_s"]]
    return f"{fmean(found):.0f} ({max(found)})"


def _parts(results: Results) -> str:
    by_key = {(cell["load"], cell["startup_s"]): cell for cell in results["cells"]}
    lines = []
    for name in results["loads"]:
        quick, slow = by_key.get((name, QUICK_S)), by_key.get((name, SLOW_S))
        if quick is None or OURS not in quick["rows"]:
            continue
        cells = [(quick, OURS), (slow, OURS), (quick, STAYS)]
        lines.append([name, *(_cell(results, c, row) if c is not None else "–" for c, row in cells)])
    head = ["load", f"starts of {QUICK_S:g} s", f"of {SLOW_S:g} s, as from disk", f"{QUICK_S:g} s, nothing moves"]
    return (
        "## What its parts are worth\n\nWeights from a peer make a start one of seconds. Each part is taken away "
        "alone.\n\n" + table(head, lines)
    )


def _chosen(results: Results) -> str:
    lines = []
    for cell in results["cells"]:
        for row, each in cell["rows"].items():
            tuning = each["deployment"].partition(":")[2] or "as published"
            lines.append([cell["load"], f"{cell['startup_s']:g} s", row, tuning])
    return "## Tunings that were chosen\n\n" + table(["load", "start", "row", "tuning"], lines)


def _limits() -> str:
    return (
        "## What this is not\n\n"
        "- Windows of about ten minutes: hours compressed into them have steeper ramps than they had, and there are "
        "three seeds. Differences of a few per cent are none.\n"
        "- Prefixes are not shared, steps take exactly what is predicted, starts never fail and none is shared. Rivals "
        "are one pool with our scheduling, and not the systems that they were published in.\n"
        "- The one that is told the future uses our formula of what is needed, so that others can be cheaper.\n"
    )


def _name(cell: Cell) -> str:
    return f"{cell['load']} {cell['startup_s']:g} s"


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(texts) or "none"


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def _signed(by: float) -> str:
    return f"{100 * by:+.0f} %"


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
    options.page.write_text(page(json.loads(options.results.read_text(encoding="utf-8"))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
