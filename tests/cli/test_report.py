"""The report as a page: complete, sound, and in need of nothing outside itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis import __version__
from hyperflexis.cli import report, scenario
from hyperflexis.cli.report.charts import Axis, Line, line_chart, log_ticks, ticks
from hyperflexis.cli.results import Cell, Result
from hyperflexis.policies import POLICIES

Run = Callable[..., Any]
"""Words in; (code, out, err) out. A fixture of this folder."""

TEXT = """\
# <b>ours</b> & theirs
classes: {code: {ttft_ms: 500}, chat: {tpot_ms: 50}}
fleet: {mixed: 2}
profile: llama-3-70b/h100/tp4/bfloat16
workload:
  - {trace: sample_code.jsonl.gz, window_s: [0, 30]}
  - {trace: sample_chat.jsonl.gz, window_s: [0, 30]}
"""
VOID = {"meta", "path", "circle"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "s.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def result(policy: str, rate: float, seed: int = 0, share: float = 0.5, **changed: Any) -> Result:
    spread = {"mean": 1.0, "p50": 1.0, "p90": 1.0, "p99": 1.0}
    row: dict[str, Any] = {
        **{"policy": policy, "rate": rate, "seed": seed, "requests": 9, "finished": 9, "rejected": 0},
        **{"attainment": share, "attainment_by_class": {"code": share, "chat": None}, "worst_minute": None},
        **{"goodput_rps": 1.0, "ttft_s": spread, "tpot_s": spread, "e2e_s": spread, "longest_ttft_s": 1.0},
        "instance_seconds": 10.0,
        "cost": 0.01,
        "scale_events": 0,
    }
    points = tuple(index / 100 for index in range(101))
    curves = {"ttft_s": points, "tpot_s": (), "e2e_s": points}
    return Result(Cell(policy, rate, seed), row, curves | changed)


def test_page_of_a_simulation_is_sound_and_needs_nothing_else(run: Run, file: Path) -> None:
    out = file.parent / "out.html"
    assert run("simulate", str(file), "--policy", "all", "--rate", "1,2", "--report", str(out)).code == 0
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert not [tag for tag, _ in page.found if tag in ("script", "link", "img", "iframe")]
    assert not [attrs for _, attrs in page.found if {"src", "href", "srcset"} & set(attrs)]
    assert not re.search(r"https?://|url\(|@import", text)
    charts = [attrs for tag, attrs in page.found if tag == "svg" and attrs.get("role") == "img"]
    assert [chart["aria-label"] for chart in charts] == [
        *("all requests", "class code", "class chat", "worst minute of any class"),
        *("time to first token (ttft)", "time per token after the first (tpot)", "time to last token (e2e)"),
        "Instance-seconds against load",
    ]
    assert all(policy in text for policy in POLICIES)
    assert "&lt;b&gt;ours&lt;/b&gt; &amp; theirs" in text
    assert f"hyperflexis {__version__}" in text
    assert "prefers-color-scheme: dark" in text
    assert str(file.parent) not in text
    assert sum(tag == "tr" for tag, _ in page.found) == 1 + 2 * len(POLICIES)


def test_page_names_what_the_command_line_changed(run: Run, file: Path) -> None:
    out = file.parent / "out.html"
    words = ("simulate", str(file), "--report", str(out))
    assert run(*words).code == 0
    assert "Changed on the command line" not in out.read_text(encoding="utf-8")
    assert run(*words, "--set", "fleet.mixed=3").code == 0
    assert "Changed on the command line: fleet.mixed=3." in out.read_text(encoding="utf-8")


def test_many_policies_get_lines_that_differ(file: Path) -> None:
    results = [result(f"p{number}", rate) for number in range(14) for rate in (1.0, 2.0)]
    text = report.render(scenario.load(file), results)
    Page(text)
    looks = re.findall(r"\.n\d+ path \{ (.*?) \}", text)
    assert len(looks) == len(set(looks)) == 14


def test_figures_that_are_not_there_are_no_lines(file: Path) -> None:
    text = report.render(scenario.load(file), [result("p", 1.0)])
    assert text.count("no request has this figure") == 3  # class chat, worst minute, tpot


@pytest.mark.parametrize(
    ("rates", "shown"), [([1.0], 1.0), ([0.5, 1.0, 2.0, 3.0], 1.0), ([2.0, 3.0, 4.0], 3.0), ([0.5], 0.5)]
)
def test_latencies_are_those_at_rate_1_or_the_middle_one(rates: list[float], shown: float) -> None:
    assert report.shown_rate([result("p", rate) for rate in rates]) == shown


def test_seeds_are_averaged_and_spanned(file: Path) -> None:
    results = [result("p", rate, seed, share) for rate in (1.0, 2.0) for seed, share in ((0, 0.2), (1, 0.6))]
    text = report.render(scenario.load(file), results)
    assert "p: 40% at 1" in text
    assert 'class="span"' in text
    assert "lines are means over 2 seeds" in text


# Charts.

PLAIN = Axis("x", str)


def test_chart_escapes_what_it_says() -> None:
    chart = line_chart("<t>", [Line("<n>", 0, [(0, 1), (1, 2)])], Axis("<x>", lambda value: f"<{value:g}>"), PLAIN)
    assert not re.search(r"<[txn0]>", chart)
    assert "&lt;n&gt;" in chart


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1)), max_size=150))
def test_points_stay_in_the_frame(points: list[tuple[float, float]]) -> None:
    chart = line_chart("t", [Line("n", 0, points)], Axis("x", str, may_be_log=True), Axis("y", str, 0.0, 1.0))
    Page(chart)
    assert "nan" not in chart
    for x, y in re.findall(r'cx="(.*?)" cy="(.*?)"', chart):
        assert 0 <= float(x) <= 460
        assert 0 <= float(y) <= 300


@given(st.floats(0, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_and_within(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert len(found) <= 8
    assert found == sorted(found)
    assert all(low - span * 1e-3 <= value <= low + span * 1.001 for value in found)


def test_ticks_are_round() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert ticks(3, 3) == [3]
    assert log_ticks(0.02, 30) == pytest.approx([0.1, 1, 10])
    assert log_ticks(0.2, 11) == pytest.approx([0.2, 0.5, 1, 2, 5, 10])
