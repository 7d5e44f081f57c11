"""The dashboard is one that Grafana's own model of dashboards holds whole, and asks for metrics that there are."""

from __future__ import annotations

import itertools
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from monitoring.queries import known_labels, wrong

pytest.importorskip("grafana_foundation_sdk")

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

ROOT = Path(__file__).parents[2]
FILE = ROOT / "examples" / "monitoring" / "dashboard.json"


@pytest.fixture
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return loaded


def test_it_is_what_the_script_writes() -> None:
    """Renew it with `python scripts/render_dashboard.py`."""
    assert runpy.run_path(str(ROOT / "scripts" / "render_dashboard.py"))["render"]() == FILE.read_text(encoding="utf-8")


def lost(given: Any, kept: Any, path: str = "") -> list[str]:
    """What a reader that knows the fields of a dashboard has left out."""
    if isinstance(given, dict) and isinstance(kept, dict):
        missing = [f"{path}.{name}" for name in given if name not in kept]
        return missing + [
            line for name in given if name in kept for line in lost(given[name], kept[name], f"{path}.{name}")
        ]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [
            line for index, pair in enumerate(zip(given, kept, strict=True)) for line in lost(*pair, f"{path}[{index}]")
        ]
    return [] if given == kept else [path]


def read_by_grafana(dashboard: dict[str, Any]) -> Any:
    register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))


def test_grafana_knows_every_field(dashboard: dict[str, Any]) -> None:
    assert lost(dashboard, read_by_grafana(dashboard)) == []
    dashboard["panels"][1]["gridPosition"] = dashboard["panels"][1].pop("gridPos")
    assert lost(dashboard, read_by_grafana(dashboard)) == [".panels[1].gridPosition"]


def queries(dashboard: dict[str, Any]) -> list[str]:
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    return [query.replace("$__rate_interval", "5m") for query in found]


def test_queries_ask_for_metrics_that_there_are(dashboard: dict[str, Any]) -> None:
    assert queries(dashboard)
    assert {query: found for query in queries(dashboard) if (found := wrong(query))} == {}


def test_variables_take_their_values_from_metrics_that_there_are(dashboard: dict[str, Any]) -> None:
    names = {each["name"] for each in dashboard["templating"]["list"]}
    used = {name for query in queries(dashboard) for name in re.findall(r"\$(\w+)", query)}
    assert used | {"datasource"} == names
    for each in dashboard["templating"]["list"]:
        if each["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", each["query"]["query"]).groups()
            assert label in (known_labels(metric) or ()) or label == "job"


def test_panels_lie_beside_one_another(dashboard: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)


def test_lines_are_called_by_labels_that_they_have(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            (summed, *_) = re.findall(r"by \(([\w, ]+)\)", target["expr"])
            assert named <= set(summed.split(", ")), panel["title"]
