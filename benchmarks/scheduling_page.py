"""Write the tables and curves of docs/results/scheduling.md from the raw files of the scheduling comparison.

    python benchmarks/scheduling_page.py

Tables stand between marks; what is written around them stays. Knows nothing of how the figures came about.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import record
import scheduling_search as search
from scheduling_curves import drawing

RESULTS = record.REPOSITORY / "benchmarks" / "results" / "scheduling"
PAGE = record.REPOSITORY / "docs" / "results" / "scheduling.md"
OURS, PLAIN = "hyperflexis", "round_robin"
SUMMARY = "summary"
END = "<!-- end of figures -->\n"

Report = Mapping[str, Any]
By = dict[tuple[str, float], list[dict[str, Any]]]


def begin(name: str) -> str:
    return f"<!-- figures: {name}, made by benchmarks/scheduling_page.py -->\n"


def filled(page: str, name: str, text: str) -> str:
    """The page with one block made anew; a block that it lacks goes to its end, under a heading."""
    if begin(name) not in page:
        page += f"\n## {name}\n\n{begin(name)}{END}"
    before, _, rest = page.partition(begin(name))
    _, _, after = rest.partition(END)
    return f"{before}{begin(name)}\n{text}\n{END}{after}"


def complete(report: Report, *, disturbed: bool = False) -> By:
    """All loads that a policy was shown under every seed."""
    found: By = defaultdict(list)
    for point in report["points"]:
        if point["disturbed"] == disturbed:
            found[point["policy"], point["rate"]].append(point)
    return {key: points for key, points in found.items() if search.seeds_complete(points, report["seeds"]["test"])}


# Tables.


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def summary(reports: Sequence[Report]) -> str:
    """Ours beside the best rival and the plain policy, in requests per second, at each criterion."""
    rows = []
    for report in reports:
        for criterion in report["criteria"]:
            name = criterion["name"]
            ours, best, plain = report["capacity"][OURS][name], best_rival(report, name), plain_of(report)
            theirs, least = report["capacity"][best][name], report["capacity"][plain][name]
            rows.append(
                [
                    report["scenario"],
                    kept(criterion),
                    per_second(report, ours),
                    f"{per_second(report, theirs)} ({bare(best)})",
                    f"**{ratio(ours, theirs)}**",
                    per_second(report, least),
                    ratio(ours, least),
                ]
            )
    return table(["scenario", "every class keeps", "ours /s", "best rival /s", "×", "round robin /s", "×"], rows)


def scenario(report: Report) -> str:
    """All tables of one scenario."""
    name = report["scenario"]
    parts = [
        settings(report),
        promises(report),
        f"![{name}: attainment against load](scheduling-{name}.svg)\n",
        "Capacity, requests/s (as a share of ours), and the wait for first tokens at the 95 % capacity, mean over the "
        f"seeds (from–to):\n\n{capacity(report)}",
    ]
    if "fifth" in report:
        parts += [fifth(report, "overall", "of all requests"), fifth(report, "worst", "of its worst class")]
    if "loads" in report:
        parts.append(latencies(report))
    if "disturbed" in report:
        parts.append(
            f"Steps a tenth longer than predicted, with 10 % noise, requests/s (share left):\n\n{disturbed(report)}"
        )
    if "parts" in report:
        parts.append(f"What each part gives, requests/s (as a share of ours):\n\n{pieces(report)}")
    return "\n".join(parts)


def settings(report: Report) -> str:
    windows, seeds = report["windows_s"], report["seeds"]
    early, late = (f"{windows[name][0]:g}–{windows[name][1]:g}" for name in ("tuning", "test"))
    return (
        f"{report['instances']} instances of `{report['profile']}`; {report['requests_per_s']:.3g} requests/s at the "
        f"trace's own speed. Rivals tuned on seconds {early} ({_listed(seeds['tuning'])}), all judged on seconds "
        f"{late} ({_listed(seeds['test'])}).\n"
    )


def promises(report: Report) -> str:
    rows = []
    for name, each in report["classes"].items():
        idle = each["idle_ttft_ms"]
        rows.append(
            [
                name,
                str(each["requests"]),
                *(f"{each[kind]['p50']} / {each[kind]['p90']}" for kind in ("prompt_tokens", "output_tokens")),
                promise(each["ttft_ms"], (idle["p50"], idle["p90"])),
                promise(each["tpot_ms"], (each["idle_tpot_ms"],)),
                promise(each["e2e_ms"], ()),
                str(each["priority"]),
            ]
        )
    head = ["class", "requests", "prompt p50 / p90", "answer p50 / p90", "TTFT (× idle, p50 / p90)"]
    return table([*head, "TPOT (× idle)", "end to end", "priority"], rows)


def promise(target_ms: float | None, idle_ms: Sequence[float]) -> str:
    """A target, and how many times longer it is than what an idle instance takes."""
    if target_ms is None:
        return "–"
    multiples = " / ".join(f"{target_ms / each:.1f}" for each in idle_ms if each)
    said = f"{target_ms / 1000:g} s" if target_ms >= 1000 else f"{target_ms:g} ms"
    return f"{said} ({multiples})" if multiples else said


def capacity(report: Report) -> str:
    points, found = complete(report), report["capacity"]
    names = [criterion["name"] for criterion in report["criteria"]]
    order = sorted(found, key=lambda text: [-(found[text][name] or 0.0) for name in names])
    rows = []
    for text in order:
        at = points.get((text, found[text]["95"] or 0), [])
        rows.append(
            [
                shown(text),
                *(_share(report, found[text][name], found[OURS][name]) for name in names),
                spread([point["ttft_s"]["p99"] for point in at], "{:.2f}"),
                spread([point["longest_ttft_s"] for point in at], "{:.1f}"),
            ]
        )
    head = ["policy", *(kept(each) for each in report["criteria"]), "TTFT p99 s", "longest s"]
    return table(head, rows)


def fifth(report: Report, which: str, what: str) -> str:
    """Everybody at the load where the plain policy keeps a fifth."""
    rate, plain = report["fifth"][which], plain_of(report)
    if rate is None:
        return f"Round robin keeps no fifth {what} at any load that was tried.\n"
    points = complete(report)
    base = _mean(points[plain, rate], lambda point: point["attainment"])
    rows = []
    for text in report["policies"].values():
        at = points[text, rate]
        overall = _mean(at, lambda point: point["attainment"])
        cells = [spread([100 * each["attainment"] for each in at], "{:.1f}"), f"{overall / base:.2f}" if base else "–"]
        cells += [
            spread(_percents(each["classes"][name]["attainment"] for each in at), "{:.1f}")
            for name in report["classes"]
        ]
        cells.append(spread([each["longest_ttft_s"] for each in at], "{:.0f}"))
        rows.append((overall, [shown(text), *cells]))
    rows.sort(key=lambda row: -row[0])
    head = ["policy", "all %", "× round robin", *(f"{name} %" for name in report["classes"]), "longest TTFT s"]
    said = f"At {per_second(report, rate)} requests/s (rate {rate:g}), the highest where round robin keeps 20 % {what}:"
    return f"{said}\n\n{table(head, [cells for _, cells in rows])}"


def latencies(report: Report) -> str:
    """Mean end-to-end latencies at loads that ours bears."""
    points, plain = complete(report), plain_of(report)
    best, everyone = report["best_rival"], list(report["policies"].values())
    loads = report["loads"]

    def mean(text: str, rate: float) -> float:
        return _mean(points[text, rate], lambda point: point["e2e_s"]["mean"])

    def cell(text: str, rate: float) -> str:
        own = [each["e2e_s"]["mean"] for each in points[text, rate]]
        return f"{spread(own, '{:.2f}')}, {100 * (mean(OURS, rate) / mean(text, rate) - 1):+.1f} %"

    rows = [[shown(text), *(cell(text, rate) for rate in loads.values())] for text in everyone]
    lowest = [min((mean(text, rate), text) for text in everyone if text != OURS) for rate in loads.values()]
    rows.append(["lowest of a rival", *(f"{value:.2f} ({bare(text)})" for value, text in lowest)])
    head = ["policy", *(f"{float(share):g} × ours: {per_second(report, rate)}/s" for share, rate in loads.items())]
    said = (
        "Mean end-to-end latency in seconds (from–to over the seeds), and ours against it, at shares of our 95 % "
        f"capacity (most capacity of all rivals: {bare(best)}; plain: {bare(plain)}):"
    )
    return f"{said}\n\n{table(head, rows)}"


def disturbed(report: Report) -> str:
    found, calm = report["disturbed"], report["capacity"]
    used = _used(report, found)
    rows = [
        [shown(text), *(_share(report, each[name], calm[text][name]) for name in used)] for text, each in found.items()
    ]
    return table(["policy", *used.values()], rows)


def pieces(report: Report) -> str:
    ours, plain = report["capacity"][OURS], plain_of(report)
    found = {OURS: ours, **report["parts"], plain: report["capacity"][plain]}
    used = _used(report, found)
    rows = [[part(text), *(_share(report, each[name], ours[name]) for name in used)] for text, each in found.items()]
    return table(["what runs", *used.values()], rows)


# Words.


def part(text: str) -> str:
    """What runs where and inside: of a policy, or of one whose rules inside are others."""
    words = {
        "arrival": "ours, but first come first served inside",
        "fixed": "ours, but fixed chunks inside",
        "arrival+fixed": "our choice of instance alone, stock engines",
    }
    name, _, inside = text.partition("/")
    if inside in words:
        return words[inside]
    name, _, tuning = text.partition(":")
    if tuning == "engine=ours":
        return f"{name.replace('_', ' ')}, our rules inside"
    if name == OURS:
        return "ours, all work shared evenly" if tuning == "separation=0" else "ours"
    return f"{shown(text)}, stock engines" if tuning else f"{name}, as published"


def shown(text: str) -> str:
    """A policy's name, and its tuning in small print."""
    name, _, tuning = text.partition(":")
    name = f"**{name}**" if name == OURS else name
    return f"{name} `{tuning.replace(',', ' ')}`" if tuning else name


def bare(text: str) -> str:
    return text.partition(":")[0]


def kept(criterion: Mapping[str, Any]) -> str:
    share = f"≥ {100 * criterion['share']:g} %"
    return f"{share} in its worst minute" if criterion["figure"] == "worst_minute" else share


def best_rival(report: Report, name: str) -> str:
    """The rival with the highest capacity by one criterion."""
    rivals = [text for text in report["capacity"] if text != OURS]
    return max(rivals, key=lambda text: report["capacity"][text][name] or 0.0)


def plain_of(report: Report) -> str:
    return str(report["policies"][PLAIN])


def per_second(report: Report, rate: float | None) -> str:
    return "none" if rate is None else f"{rate * report['requests_per_s']:.2f}"


def ratio(ours: float | None, theirs: float | None) -> str:
    return "–" if ours is None or not theirs else f"{ours / theirs:.2f}"


def spread(values: Sequence[float | None], form: str) -> str:
    """Mean and extremes."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean, low, high = (form.format(value) for value in (fmean(known), min(known), max(known)))
    return mean if low == high else f"{mean} ({low}–{high})"


def _percents(shares: Iterable[float | None]) -> list[float | None]:
    return [None if share is None else 100 * share for share in shares]


def _share(report: Report, rate: float | None, of: float | None) -> str:
    return per_second(report, rate) if rate is None or not of else f"{per_second(report, rate)} ({rate / of:.2f})"


def _mean(points: Sequence[Mapping[str, Any]], figure: Callable[[Mapping[str, Any]], float]) -> float:
    return fmean(figure(point) for point in points)


def _used(report: Report, found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The criteria that all were judged by, and how a head calls them."""
    return {
        each["name"]: kept(each) for each in report["criteria"] if all(each["name"] in one for one in found.values())
    }


def _listed(numbers: Sequence[int]) -> str:
    return f"seed{'s' * (len(numbers) > 1)} {', '.join(str(number) for number in numbers)}"


def main() -> int:
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    words.add_argument("--results", type=Path, default=RESULTS, help="folder of the raw files")
    words.add_argument("--page", type=Path, default=PAGE, help="the page that is written")
    options = words.parse_args()
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(options.results.glob("*.json"))]
    if not reports:
        print(f"no raw files in {options.results}", file=sys.stderr)
        return 1
    page = options.page.read_text(encoding="utf-8") if options.page.is_file() else "# Scheduling: what was simulated\n"
    page = filled(page, SUMMARY, summary(reports))
    for report in reports:
        name = report["scenario"]
        page = filled(page, name, scenario(report))
        curves = drawing(name, list(report["policies"].values()), complete(report), report["requests_per_s"])
        (options.page.parent / f"scheduling-{name}.svg").write_text(curves, encoding="utf-8")
    options.page.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
