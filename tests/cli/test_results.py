"""The table of results, figure by figure."""

from __future__ import annotations

from typing import Any

import pytest

from hyperflexis.cli.results import Cell, Result, percent, table

NOTHING = {"mean": None, "p50": None, "p90": None, "p99": None}


def result(**changed: Any) -> Result:
    row: dict[str, Any] = {
        "policy": "a_policy",
        "rate": 1.5,
        "seed": 3,
        "requests": 1000,
        "finished": 990,
        "rejected": 10,
        "attainment": 0.98765,
        "attainment_by_class": {"code": 0.95, "chat": 1.0},
        "worst_minute": 0.5,
        "goodput_rps": 12.345,
        "ttft_s": {"mean": 0.2, "p50": 0.123, "p90": 0.3, "p99": 1.5},
        "tpot_s": {"mean": 0.03, "p50": 0.0211, "p90": 0.04, "p99": 0.0999},
        "e2e_s": NOTHING,
        "longest_ttft_s": 33.333,
        "instance_seconds": 100.0,
        "cost": 0.0278,
        "scale_events": 0,
    } | changed
    return Result(Cell(row["policy"], row["rate"], row["seed"]), row, {})


def test_columns_are_aligned_and_complete() -> None:
    lines = table([result(), result(policy="x", rate=10.0, attainment=1.0)]).splitlines()
    figures = "95.0 %  100 %  code 95.0 %        50.0 %        0.12   1.50      33.33         21.1    99.9      12.35"
    assert lines == [
        "policy    rate  seed  requests  rejected  attained    code   chat  worst class  worst minute  "
        "ttft p50 s  p99 s  longest s  tpot p50 ms  p99 ms  goodput/s",
        "a_policy   1.5     3      1000        10    98.8 %  " + figures,
        "x           10     3      1000        10     100 %  " + figures,
    ]


def test_cost_is_told_where_fleets_change_their_size() -> None:
    head, first, second = table([result(), result(scale_events=3, instance_seconds=80.4, cost=0.5)]).splitlines()
    assert head.split()[-2:] == ["instance-s", "cost"]
    assert [line.split()[-2:] for line in (first, second)] == [["100", "0.03"], ["80", "0.50"]]


def test_figures_that_are_not_there_are_dashes() -> None:
    nothing = result(
        attainment=None,
        attainment_by_class={"code": None},
        worst_minute=None,
        ttft_s=NOTHING,
        tpot_s=NOTHING,
        longest_ttft_s=None,
        goodput_rps=0.0,
    )
    assert table([nothing]).splitlines()[1].split()[5:] == ["-", "-", "-", "-", "-", "-", "-", "-", "0.00"]


def test_one_class_has_no_column_of_its_own() -> None:
    head = table([result(attainment_by_class={"code": 0.5})]).splitlines()[0]
    assert "code" not in head


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "-"), (0.0, "0.0 %"), (0.5, "50.0 %"), (0.9994, "99.9 %"), (0.99999, "99.9 %"), (1.0, "100 %")],
)
def test_less_than_all_is_never_said_to_be_all(share: float | None, text: str) -> None:
    assert percent(share) == text
