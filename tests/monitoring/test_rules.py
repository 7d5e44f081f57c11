"""Rules and alerts for Prometheus ask for metrics that there are, and alarm when they should."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.queries import wrong

HERE = Path(__file__).parent
MONITORING = HERE.parents[1] / "examples" / "monitoring"
PROMTOOL = shutil.which("promtool")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("record") or rule["alert"])
def test_rules_ask_for_metrics_that_there_are(rule: dict[str, Any]) -> None:
    recorded = frozenset(each["record"] for each in rules() if "record" in each)
    assert wrong(rule["expr"], recorded) == []


def test_what_is_recorded_is_used() -> None:
    """In which an alert's two windows are a long one and a short one, too."""
    alerts = " ".join(rule["expr"] for rule in rules() if "alert" in rule)
    assert [rule["record"] for rule in rules() if "record" in rule and rule["record"] not in alerts] == []


def test_the_check_bites() -> None:
    assert wrong("rate(hyperflexis_nothing_total[5m])") == ["there is no metric hyperflexis_nothing_total"]
    assert wrong("sum by (colour) (hyperflexis_queue_requests)") == ["hyperflexis_queue_requests has no label colour"]
    assert wrong('hyperflexis_holds_total{outcome="kept"}') == ["hyperflexis_holds_total has no label outcome"]
    with pytest.raises(ValueError, match="unclosed"):
        wrong("sum by (class")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    "words", [("check", "config", str(MONITORING / "prometheus.yaml")), ("test", "rules", "alerts.yaml")]
)
def test_promtool_finds_nothing_wrong(words: tuple[str, ...]) -> None:
    done = subprocess.run([str(PROMTOOL), *words], cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
