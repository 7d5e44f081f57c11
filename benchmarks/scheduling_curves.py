"""Attainment against load as one SVG file per scenario: of all requests, and of the class that has least.

The charts are those of `simulate --report`; what that page gives them by its style, this puts into the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import scheduling_search as search
from hyperflexis.cli.report.charts import HEIGHT, WIDTH, Axis, Line, line_chart

COLOURS = ("#0065bd", "#c2410c", "#007a5a", "#9c2f84", "#6b5b00", "#5b4bc4", "#00758f", "#444b57")
DASHES = ("none", "7 4", "2 3")
LEGEND_ROW, LEGEND_COLUMNS, HEAD = 18, 4, 24
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#5c5f66}.head{font-weight:600;fill:#1b1b1f}.label{text-anchor:middle}"
    ".grid{stroke:#d9dbe0}.frame{stroke:#5c5f66;fill:none}.guide{stroke:#5c5f66;stroke-dasharray:2 4}"
    ".line path{fill:none;stroke-width:2;stroke-linejoin:round}.line .span{stroke-width:1;stroke-dasharray:none}"
)

By = Mapping[tuple[str, float], Sequence[Mapping[str, Any]]]
"""The points of every seed, by policy and rate."""


def drawing(title: str, policies: Sequence[str], points: By, requests_per_s: float) -> str:
    """Both charts beside each other over one legend."""
    overall = [_line(name, number, points, requests_per_s, _overall) for number, name in enumerate(policies)]
    worst = [_line(name, number, points, requests_per_s, _worst) for number, name in enumerate(policies)]
    height = HEAD + HEIGHT + LEGEND_ROW * (1 + -(-len(policies) // LEGEND_COLUMNS))
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {height}" role="img">',
            f"<title>{escape(title)}</title><style>{STYLE}{_line_styles(len(policies))}</style>",
            f'<rect width="{2 * WIDTH}" height="{height}" fill="#fff"/>',
            *_chart("all requests", overall, 0),
            *_chart("the class that has least", worst, WIDTH),
            *_legend(policies),
            "</svg>\n",
        ]
    )


def _chart(head: str, lines: Sequence[Line], left: int) -> list[str]:
    x = Axis("requests/s", lambda value: f"{value:g}")
    y = Axis("promises kept", lambda share: f"{share:.0%}", 0.0, 1.0)
    drawn = line_chart(head, lines, x, y, guide=search.CRITERIA[0].share)
    placed = drawn.replace("<svg ", f'<svg x="{left}" y="{HEAD}" width="{WIDTH}" height="{HEIGHT}" ', 1)
    return [f'<text class="head" x="{left + WIDTH / 2}" y="18" text-anchor="middle">{escape(head)}</text>', placed]


def _line(name: str, number: int, points: By, requests_per_s: float, figure: search.Figure) -> Line:
    """One policy's line, and at each load the span of its seeds."""
    loads = sorted(rate for policy, rate in points if policy == name)
    values = [[figure(point) for point in points[name, rate]] for rate in loads]
    at = [rate * requests_per_s for rate in loads]
    means = [sum(each) / len(each) for each in values]
    spans = [(min(each), max(each)) for each in values]
    return Line(name.partition(":")[0], number, list(zip(at, means, strict=True)), spans)


def _overall(point: search.Point) -> float:
    return float(point["attainment"])


def _worst(point: search.Point) -> float:
    return search.worst([point])


def _line_styles(lines: int) -> str:
    return "".join(
        f".n{number} path{{stroke:{_colour(number)};stroke-dasharray:{_dash(number)}}}"
        f".n{number} circle{{fill:{_colour(number)};r:2.5px}}"
        for number in range(lines)
    )


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _dash(number: int) -> str:
    return DASHES[(number % len(COLOURS) + number // len(COLOURS)) % len(DASHES)]


def _legend(policies: Sequence[str]) -> list[str]:
    width = 2 * WIDTH / LEGEND_COLUMNS
    parts = []
    for number, name in enumerate(policies):
        x = 20 + width * (number % LEGEND_COLUMNS)
        y = HEAD + HEIGHT + LEGEND_ROW * (1 + number // LEGEND_COLUMNS) - 6
        parts.append(f'<g class="line n{number}"><path d="M{x:g} {y - 4:g}h34"/></g>')
        parts.append(f'<text x="{x + 42:g}" y="{y:g}">{escape(name.partition(":")[0])}</text>')
    return parts
