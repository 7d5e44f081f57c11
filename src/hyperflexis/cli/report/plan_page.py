"""`plan --report`: fleets that were tried as one HTML file, cost against what was kept, and what that rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hyperflexis.cli.fleet_search import frontier
from hyperflexis.cli.plan import headline, rows
from hyperflexis.cli.report import Chart, Legend, page
from hyperflexis.cli.report.charts import Axis, Line, line_chart

if TYPE_CHECKING:
    from hyperflexis.cli.plan import Plan

NAMES = {
    "mixed": "instances that do both",
    "apart": "prefill and decode apart",
    "elastic": "a size that follows demand",
    "frontier": "frontier: nothing that was tried keeps more for as little",
}


def render(found: Plan) -> str:
    """The whole page."""
    head, *table = rows(found)
    return page(
        "plan.html",
        name=found.request.source.name,
        found=headline(found),
        target=f"{found.request.target * 100:g} %",
        legend=[Legend(name, number) for number, name in enumerate(NAMES.values())],
        charts=[_chart("worst class", found, low=0.0), _chart("worst class, near the target", found, low=_near(found))],
        head=head,
        rows=table,
        assumed=found.assumed,
        certainty=found.certainty,
    )


def _near(found: Plan) -> float:
    """So far below the target that what just misses it is seen."""
    return max(0.0, 1 - 10 * (1 - min(0.999, found.request.target)))


def _chart(title: str, found: Plan, low: float) -> Chart:
    by_kind = {kind: [trial for trial in found.trials if trial.fleet.kind == kind] for kind in NAMES}
    by_kind["frontier"] = frontier(found.trials)
    lines = [
        Line(name, number, [(trial.cost_per_hour, trial.worst) for trial in by_kind[kind] if trial.worst >= low])
        for number, (kind, name) in enumerate(NAMES.items())
    ]
    x = Axis("cost per hour", lambda cost: f"{cost:g}", padding=0.05)
    y = Axis("attained", lambda share: f"{share:.1%}", low, 1.0)
    return Chart(title, line_chart(title, lines, x, y, guide=found.request.target))
