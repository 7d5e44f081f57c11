"""Write examples/monitoring/dashboard.json, which Grafana imports, from the short list of panels below."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).parent.parent / "examples" / "monitoring" / "dashboard.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS, HEIGHT = 24, 8
PER_INTERVAL = "[$__rate_interval]"
JOB = 'job=~"$job"'
CLASS = f'{JOB}, class=~"$class"'


class Panel(NamedTuple):
    """One chart."""

    title: str
    unit: str
    queries: Sequence[tuple[str, str]]
    """PromQL, and how its lines are called."""
    kind: str = "timeseries"
    width: int = 8
    description: str = ""
    is_stacked: bool = False


def rate(metric: str, by: str, matchers: str = JOB) -> str:
    return f"sum by ({by}) (rate(hyperflexis_{metric}{{{matchers}}}{PER_INTERVAL}))"


def quantile(share: float, metric: str) -> str:
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', 'le, class', CLASS)})"


def mean(metric: str) -> str:
    return f"{rate(f'{metric}_sum', 'class', CLASS)} / {rate(f'{metric}_count', 'class', CLASS)}"


def target(slo: str) -> tuple[str, str]:
    return f'max by (class) (hyperflexis_slo_target_seconds{{{CLASS}, slo="{slo}"}})', "{{class}} promised"


def attainment(window: str) -> str:
    """Of the gateway where it is lowest."""
    return f'min by (class) (hyperflexis_attainment{{{CLASS}, window="{window}"}})'


def burn(window: str) -> str:
    """Of the gateway where it is highest."""
    return f'max by (class) (hyperflexis_error_budget_burn{{{CLASS}, window="{window}"}})'


ROWS: Sequence[tuple[str, Sequence[Panel]]] = (
    (
        "Promises",
        (
            Panel("Attainment, last hour", "percentunit", [(attainment("1h"), "{{class}}")], "stat"),
            Panel(
                "Error budget burn, last hour",
                "none",
                [(burn("1h"), "{{class}}")],
                "stat",
                description="1 uses the error budget up exactly; 14.4 within two days of 30.",
            ),
            Panel(
                "Requests judged",
                "reqps",
                [(rate("judged_requests_total", "outcome", CLASS), "{{outcome}}")],
                is_stacked=True,
            ),
            Panel("Attainment, 5 minutes", "percentunit", [(attainment("5m"), "{{class}}")], width=12),
            Panel(
                "Error budget burn, 6 hours",
                "none",
                [(burn("6h"), "{{class}}")],
                width=12,
            ),
        ),
    ),
    (
        "Latency",
        (
            Panel("Time to first token, p95", "s", [(quantile(0.95, "ttft_seconds"), "{{class}}"), target("ttft")]),
            Panel("Time per output token, p95", "s", [(quantile(0.95, "tpot_seconds"), "{{class}}"), target("tpot")]),
            Panel("End to end, p95", "s", [(quantile(0.95, "e2e_seconds"), "{{class}}"), target("e2e")]),
            Panel(
                "Time to first token, mean: predicted and actual",
                "s",
                [(mean("predicted_ttft_seconds"), "{{class}} predicted"), (mean("ttft_seconds"), "{{class}}")],
            ),
            Panel(
                "Time per output token, mean: predicted and actual",
                "s",
                [(mean("predicted_tpot_seconds"), "{{class}} predicted"), (mean("tpot_seconds"), "{{class}}")],
            ),
            Panel("Arrival to prefill, p95", "s", [(quantile(0.95, "queue_seconds"), "{{class}}")]),
        ),
    ),
    (
        "Requests",
        (
            Panel("Answers by status", "reqps", [(rate("requests_total", "code", CLASS), "{{code}}")], is_stacked=True),
            Panel("Held now", "short", [(f"sum by (class) (hyperflexis_queue_requests{{{CLASS}}})", "{{class}}")]),
            Panel("Held for, p95", "s", [(quantile(0.95, "hold_seconds"), "{{class}}")]),
            Panel(
                "Dispatches by reason",
                "reqps",
                [(rate("dispatches_total", "reason", CLASS), "{{reason}}")],
                is_stacked=True,
            ),
            Panel(
                "Holds and rejections by reason",
                "reqps",
                [
                    (rate("holds_total", "reason", CLASS), "held: {{reason}}"),
                    (rate("rejections_total", "reason", CLASS), "refused: {{reason}}"),
                ],
            ),
            Panel(
                "Tokens per second",
                "short",
                [
                    (rate("prompt_tokens_total", "job", CLASS), "prompts"),
                    (rate("completion_tokens_total", "job", CLASS), "completions"),
                ],
            ),
        ),
    ),
    (
        "Fleet",
        (
            Panel(
                "Instances",
                "short",
                [
                    (f"sum by (role, state) (hyperflexis_instances{{{JOB}}})", "{{role}} {{state}}"),
                    (f"sum by (role) (hyperflexis_instances_wanted{{{JOB}}})", "{{role}} wanted"),
                ],
            ),
            Panel(
                "KV blocks in use",
                "percentunit",
                [
                    (
                        f"1 - sum by (role) (hyperflexis_instance_blocks_free{{{JOB}}})"
                        f" / sum by (role) (hyperflexis_instance_blocks{{{JOB}}})",
                        "{{role}}",
                    )
                ],
            ),
            Panel("Cost per hour", "none", [(f"3600 * {rate('cost_total', 'job')}", "{{job}}")]),
            Panel(
                "Decisions to grow and shrink",
                "ops",
                [
                    (
                        rate("scale_decisions_total", "direction, reason, proposed"),
                        "{{direction}}: {{reason}} (proposed: {{proposed}})",
                    )
                ],
            ),
            Panel(
                "Instances started, switched, drained, ended and lost",
                "ops",
                [
                    (rate("launches_total", "source, reason"), "started from {{source}}: {{reason}}"),
                    (rate("role_switches_total", "role, reason"), "to {{role}}: {{reason}}"),
                    (rate("drains_total", "reason"), "drained: {{reason}}"),
                    (rate("stops_total", "reason"), "ended: {{reason}}"),
                    (rate("losses_total", "state"), "lost while {{state}}"),
                ],
            ),
            Panel(
                "Time to ready, p95",
                "s",
                [(f"histogram_quantile(0.95, {rate('start_seconds_bucket', 'le, source')})", "{{source}}")],
            ),
        ),
    ),
    (
        "Moves",
        (
            Panel(
                "Migrations by reason and outcome",
                "ops",
                [(rate("migrations_total", "reason, outcome"), "{{reason}}: {{outcome}}")],
            ),
            Panel(
                "Time to copy KV, p95",
                "s",
                [(f"histogram_quantile(0.95, {rate('kv_transfer_seconds_bucket', 'le')})", "copy")],
            ),
            Panel(
                "Under way, and preempted",
                "short",
                [
                    (f"sum by (job) (hyperflexis_migrations_under_way{{{JOB}}})", "moves under way"),
                    (rate("preemptions_total", "job"), "preemptions per second"),
                ],
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """What Grafana imports."""
    return {
        "uid": "hyperflexis",
        "title": "HyperFlexis",
        "tags": ["llm", "hyperflexis"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                _datasource(),
                _variable("job", "hyperflexis_attainment_min"),
                _variable("class", "hyperflexis_attainment_min"),
            ]
        },
        "panels": list(_panels()),
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _variable(label: str, metric: str) -> dict[str, Any]:
    return {
        "name": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": f"label_values({metric}, {label})", "refId": label},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _panels() -> Iterator[dict[str, Any]]:
    number = y = 0
    for title, panels in ROWS:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": _place(0, y, COLUMNS, 1),
        }
        x, y = 0, y + 1
        for panel in panels:
            if x + panel.width > COLUMNS:
                x, y = 0, y + HEIGHT
            number += 1
            yield _panel(panel, number, _place(x, y, panel.width, HEIGHT))
            x += panel.width
        y += HEIGHT


def _place(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    custom = {
        "fillOpacity": 60 if panel.is_stacked else 0,
        "stacking": {"mode": "normal" if panel.is_stacked else "none"},
    }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, **({"custom": custom} if panel.kind == "timeseries" else {})},
            "overrides": [],
        },
        "options": {},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": query, "legendFormat": legend}
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def render() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
