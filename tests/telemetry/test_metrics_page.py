"""The page about metrics has each of them, with its kind, its labels and what it means, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from hyperflexis.core.commands import Why
from hyperflexis.telemetry.tally import spelled
from telemetry.exposition import shown

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def rows() -> list[str]:
    """As they have to stand on the page."""
    return [
        f"| `{name}` | {each.kind} | {', '.join(sorted(each.labels))} | {each.meaning} |"
        for name, each in sorted(shown().items())
    ]


def test_page_has_every_metric_in_the_words_of_the_code() -> None:
    listed = re.findall(r"^\| `hyperflexis_.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == rows(), "what the page should say:\n" + "\n".join(rows())


def test_page_has_every_reason() -> None:
    listed = re.findall(r"^\| `(\w+)` \| ([^|]*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == [(spelled(why), why.value) for why in Why]
