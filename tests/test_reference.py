"""The pages of reference say what the code does, in the code's own words."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from hyperflexis.policies import POLICIES, tunables

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "render_reference.py"))


@pytest.mark.parametrize("name", ["cli.md", "policies.md", "api.md"])
def test_page_is_as_it_would_be_made_now(script: dict[str, Any], name: str) -> None:
    """Renew them with `python scripts/render_reference.py`."""
    page = (DOCS / name).read_text(encoding="utf-8")
    assert script["render"](name, page) == page


def test_a_page_that_is_old_is_made_anew(script: dict[str, Any]) -> None:
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert script["render"]("cli.md", page.replace("`--dry-run`", "`--gone`")) == page


def test_every_command_is_there_with_its_options() -> None:
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    for words in (
        "## hyperflexis serve",
        "## hyperflexis keys new",
        "`--goodput ttft:MS tpot:MS e2el:MS`",
        "[MODEL] [OPTIONS]",
    ):
        assert words in page
    assert "more_targets" not in page, "what --help hides is hidden"


def test_every_policy_is_there_with_what_can_be_tuned() -> None:
    page = (DOCS / "policies.md").read_text(encoding="utf-8")
    for name in POLICIES:
        told = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert all(f"| `{key}` |" in told for key in tunables(name)), name


def test_fields_below_others_are_there() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    assert "| `slo.ttft_ms` | number |  |" in page
    assert "| `messages[].role` | string | required |" in page
    assert "`guided_json`" not in page.partition("## Fields")[2], "what is only refused is no field"
