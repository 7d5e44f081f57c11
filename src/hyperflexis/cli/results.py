"""Results of simulations, and the table of them that a person reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Curves = Mapping[str, tuple[float, ...]]
"""By metric, its quantiles from 0 to 1 in equal steps."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One simulation of a scenario: by which policy, how fast, and how chance falls."""

    policy: str
    rate: float
    seed: int


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one cell."""

    cell: Cell
    row: Mapping[str, Any]
    curves: Curves
    skipped_rows: int = 0


def table(results: Sequence[Result]) -> str:
    """A row for each result, columns aligned."""
    return aligned(cells(results))


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Texts in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(_line(line, widths) for line in lines)


def cells(results: Sequence[Result]) -> list[list[str]]:
    """The table's texts, its head first."""
    classes = list(dict.fromkeys(name for result in results for name in result.row["attainment_by_class"]))
    is_elastic = any(result.row["scale_events"] for result in results)
    is_live = any("failed" in result.row for result in results)
    head = [
        *("policy", "rate", "seed", "requests", "rejected"),
        *(("failed", "cut") if is_live else ()),
        "attained",
        *(name for name in classes if len(classes) > 1),
        *("worst class", "worst minute", "ttft p50 s", "p99 s", "longest s", "tpot p50 ms", "p99 ms", "goodput/s"),
        *(("instance-s", "cost") if is_elastic else ()),
    ]
    return [head, *(_cells(result.row, classes, is_elastic, is_live) for result in results)]


def _cells(row: Mapping[str, Any], classes: Sequence[str], is_elastic: bool, is_live: bool) -> list[str]:
    by_class = row["attainment_by_class"]
    known = {name: share for name, share in by_class.items() if share is not None}
    worst = min(known, key=lambda name: known[name], default=None)
    return [
        *(row["policy"], f"{row['rate']:g}", str(row["seed"]), str(row["requests"]), str(row["rejected"])),
        *((str(row["failed"]), str(row["cut"])) if is_live else ()),
        percent(row["attainment"]),
        *(percent(by_class.get(name)) for name in classes if len(classes) > 1),
        "-" if worst is None else f"{worst} {percent(known[worst])}",
        percent(row["worst_minute"]),
        *(_seconds(row["ttft_s"]["p50"]), _seconds(row["ttft_s"]["p99"]), _seconds(row["longest_ttft_s"])),
        *(_milliseconds(row["tpot_s"]["p50"]), _milliseconds(row["tpot_s"]["p99"])),
        f"{row['goodput_rps']:.2f}",
        *((f"{row['instance_seconds']:.0f}", f"{row['cost']:.2f}") if is_elastic else ()),
    ]


def percent(share: float | None) -> str:
    """A share as a person reads it. Never 100 % for less than all."""
    if share is None:
        return "-"
    return "100 %" if share == 1 else f"{min(share * 100, 99.9):.1f} %"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.1f}"


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, figures to the right."""
    first, *others = zip(texts, widths, strict=True)
    return "  ".join([f"{first[0]:<{first[1]}}", *(f"{text:>{width}}" for text, width in others)]).rstrip() + "\n"
