"""`simulate --report`: results as one HTML file that needs nothing else, neither network nor scripts.

Attainment against load for all and for each class, latency distributions at one load, instance-seconds, the table, and
the scenario that it all came from. Seeds are averaged; where they differ, a stroke spans them.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import jinja2
import numpy as np

from hyperflexis import __version__
from hyperflexis.cli.report.charts import Axis, Line, line_chart
from hyperflexis.cli.results import Result, cells
from hyperflexis.cli.scenario import ScenarioFile

COLOURS = 8
"""Lines beyond as many repeat the colours with other dashes."""
PROMISE = 0.95
"""Drawn across attainment: the share that capacity is measured by."""
METRICS = {"ttft_s": "time to first token", "tpot_s": "time per token after the first", "e2e_s": "time to last token"}


class Chart(NamedTuple):
    title: str
    svg: str


class Legend(NamedTuple):
    """A policy and the number of its line."""

    policy: str
    number: int


def render(loaded: ScenarioFile, results: Sequence[Result], what: str = "simulation") -> str:
    """The whole page; `what` is what a result is called."""
    legend = [Legend(name, number) for number, name in enumerate(_policies(results))]
    rate = shown_rate(results)
    head, *rows = cells(results)
    return page(
        "page.html",
        name=loaded.file.name,
        what=what,
        legend=legend,
        attainment=list(_attainment_charts(results, legend)),
        latency=[_latency_chart(metric, title, results, legend, rate) for metric, title in METRICS.items()],
        cost=_cost_chart(results, legend) if any(result.row["cost"] is not None for result in results) else None,
        rate=f"{rate:g}",
        promise=f"{PROMISE:.0%}",
        head=head,
        rows=rows,
        seeds=len({result.cell.seed for result in results}),
        scenario=loaded.text,
        sets=loaded.sets,
    )


def page(template: str, **values: Any) -> str:
    """A page of this package's, filled in."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        loader=jinja2.PackageLoader("hyperflexis.cli", "report"),
    )
    versions = {"hyperflexis": __version__, "Python": platform.python_version(), "numpy": np.__version__}
    return environment.get_template(template).render(colours=COLOURS, versions=versions, **values)


def shown_rate(results: Sequence[Result]) -> float:
    """The rate whose latencies are drawn: 1 if it was simulated, else the middle one."""
    rates = sorted({result.cell.rate for result in results})
    return 1.0 if 1.0 in rates else rates[len(rates) // 2]


def _policies(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.cell.policy for result in results))


def _attainment_charts(results: Sequence[Result], legend: Sequence[Legend]) -> list[Chart]:
    classes = list(dict.fromkeys(name for result in results for name in result.row["attainment_by_class"]))
    figures: dict[str, Callable[[Any], float | None]] = {"all requests": lambda row: row["attainment"]}
    for name in classes:
        figures[f"class {name}"] = partial(_of_class, name)
    figures["worst minute of any class"] = lambda row: row["worst_minute"]
    y = Axis("attained", lambda share: f"{share:.0%}", 0.0, 1.0)
    return [_load_chart(title, results, legend, figure, y=y, guide=PROMISE) for title, figure in figures.items()]


def _of_class(name: str, row: Any) -> float | None:
    share: float | None = row["attainment_by_class"].get(name)
    return share


def _cost_chart(results: Sequence[Result], legend: Sequence[Legend]) -> Chart:
    y = Axis("instance-seconds", lambda value: f"{value:,.0f}", low=0.0)
    return _load_chart("Instance-seconds against load", results, legend, lambda row: row["instance_seconds"], y=y)


def _load_chart(
    title: str,
    results: Sequence[Result],
    legend: Sequence[Legend],
    figure: Callable[[Any], float | None],
    *,
    y: Axis,
    guide: float | None = None,
) -> Chart:
    lines = [_load_line(results, policy, number, figure) for policy, number in legend]
    return Chart(title, line_chart(title, lines, Axis("rate", lambda rate: f"{rate:g}", padding=0.05), y, guide))


def _load_line(results: Sequence[Result], policy: str, number: int, figure: Callable[[Any], float | None]) -> Line:
    """One figure of a policy against the rate, mean and range over the seeds."""
    by_rate: dict[float, list[float]] = {}
    for result in results:
        value = figure(result.row)
        if result.cell.policy == policy and value is not None:
            by_rate.setdefault(result.cell.rate, []).append(value)
    ordered = sorted(by_rate.items())
    return Line(
        policy,
        number,
        points=[(rate, fmean(values)) for rate, values in ordered],
        spans=[(min(values), max(values)) for _, values in ordered],
    )


def _latency_chart(metric: str, title: str, results: Sequence[Result], legend: Sequence[Legend], rate: float) -> Chart:
    lines = [_distribution(results, metric, policy, number, rate) for policy, number in legend]
    x = Axis("seconds", lambda seconds: f"{seconds:g}", may_be_log=True)
    y = Axis("share of requests", lambda share: f"{share:.0%}", 0.0, 1.0)
    title = f"{title} ({metric.removesuffix('_s')})"
    return Chart(title, line_chart(title, lines, x, y))


def _distribution(results: Sequence[Result], metric: str, policy: str, number: int, rate: float) -> Line:
    """A policy's distribution at one rate; of several seeds, the mean of each quantile."""
    chosen = [result.curves[metric] for result in results if result.cell.policy == policy and result.cell.rate == rate]
    quantiles = [fmean(values) for values in zip(*(curve for curve in chosen if curve), strict=True)]
    return Line(policy, number, [(value, index / (len(quantiles) - 1)) for index, value in enumerate(quantiles)])
