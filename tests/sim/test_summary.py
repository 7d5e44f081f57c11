"""Figures of hand-made outcomes, and against a slow reading of the same definitions."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.sim import summary
from hyperflexis.sim.outcome import Outcome, Usage

NAN = math.nan


def outcome(requests: list[tuple[int, float, float, bool]], **changed: Any) -> Outcome:
    """One from (class, arrival, ttft, attained) each; a ttft of NaN was rejected."""
    ttft = np.array([each[2] for each in requests], dtype=np.float64)
    columns: dict[str, Any] = {
        "classes": ("code", "chat"),
        "service_class": np.array([each[0] for each in requests], dtype=np.int64),
        "arrived_s": np.array([each[1] for each in requests], dtype=np.float64),
        "ttft_s": ttft,
        "tpot_s": ttft / 10,
        "e2e_s": ttft * 2,
        "attained": np.array([each[3] for each in requests], dtype=np.bool_),
        "rejected": np.isnan(ttft),
        "finished": ~np.isnan(ttft),
        "output_tokens": np.ones(len(requests), dtype=np.int64),
        "usage": Usage(400.0, 50.0, 7.5),
        "migrations": 1,
        "role_changes": 2,
        "scale_events": 3,
        "sim_seconds": 100.0,
    }
    return Outcome(**(columns | changed))


def test_row_of_a_hand_made_outcome() -> None:
    made = outcome([(0, 0.0, 1.0, True), (0, 1.0, 3.0, False), (1, 2.0, 2.0, True), (1, 3.0, NAN, False)])
    row = summary.row(made)
    assert list(row) == [
        *("requests", "finished", "rejected", "attainment", "attainment_by_class", "requests_by_class"),
        *("worst_minute", "goodput_rps"),
        *("ttft_s", "tpot_s", "e2e_s", "longest_ttft_s"),
        *("instance_seconds", "asleep_seconds", "cost", "migrations", "role_changes", "scale_events", "sim_seconds"),
    ]
    assert (row["requests"], row["finished"], row["rejected"]) == (4, 3, 1)
    assert row["attainment"] == 0.5
    assert row["attainment_by_class"] == {"code": 0.5, "chat": 0.5}
    assert row["requests_by_class"] == {"code": 2, "chat": 2}
    assert row["worst_minute"] is None
    assert row["goodput_rps"] == 2 / 100
    assert row["ttft_s"] == {"mean": 2.0, "p50": 2.0, "p90": pytest.approx(2.8), "p99": pytest.approx(2.98)}
    assert row["longest_ttft_s"] == 3.0
    assert [row[name] for name in ("instance_seconds", "asleep_seconds", "cost")] == [400, 50, 7.5]
    assert [row[name] for name in ("migrations", "role_changes", "scale_events")] == [1, 2, 3]
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_row_of_nothing_is_none_not_nan() -> None:
    row = summary.row(outcome([], sim_seconds=0.0))
    assert (row["requests"], row["attainment"], row["goodput_rps"]) == (0, None, 0.0)
    assert row["attainment_by_class"] == {"code": None, "chat": None}
    assert row["ttft_s"] == {"mean": None, "p50": None, "p90": None, "p99": None}
    assert row["longest_ttft_s"] is None
    json.dumps(row, allow_nan=False)
    assert summary.curves(outcome([])) == {"ttft_s": (), "tpot_s": (), "e2e_s": ()}


def test_worst_minute_is_that_of_one_class() -> None:
    """Ten chats of which two fail in the second minute; the many good ones of the other class do not hide them."""
    good = [(0, 60.0 + index / 100, 1.0, True) for index in range(100)]
    chats = [(1, 70.0 + index, 1.0, index >= 2) for index in range(10)]
    assert summary.worst_minute(outcome(good + chats)) == 0.8


def test_minute_with_few_arrivals_does_not_count() -> None:
    few = [(1, 70.0 + index, 1.0, False) for index in range(9)]
    assert summary.worst_minute(outcome(few)) is None
    assert summary.worst_minute(outcome([*few, (1, 119.9, 1.0, False)])) == 0.0
    assert summary.worst_minute(outcome([*few, (1, 120.0, 1.0, False)])) is None


def test_curves_run_from_the_smallest_to_the_largest() -> None:
    curve = summary.curves(outcome([(0, 0.0, float(value), True) for value in range(201)]))["ttft_s"]
    assert curve == pytest.approx([2 * point for point in range(101)])


requests = st.lists(
    st.tuples(
        st.sampled_from([0, 1]),
        st.floats(0, 300),
        st.one_of(st.just(NAN), st.floats(0.001, 100)),
        st.booleans(),
    ),
    max_size=60,
)


@given(requests)
def test_figures_agree_with_a_slow_reading(made: list[tuple[int, float, float, bool]]) -> None:
    row = summary.row(outcome(made))
    kept = [each[3] for each in made]
    assert row["attainment"] == (sum(kept) / len(kept) if kept else None)
    minutes: dict[tuple[int, int], list[bool]] = {}
    for index, arrived_s, _, attained in made:
        minutes.setdefault((index, int(arrived_s // 60)), []).append(attained)
    shares = [sum(flags) / len(flags) for flags in minutes.values() if len(flags) >= summary.MINUTE_ARRIVALS_MIN]
    assert row["worst_minute"] == min(shares, default=None)
    ttfts = sorted(each[2] for each in made if not math.isnan(each[2]))
    assert row["longest_ttft_s"] == max(ttfts, default=None)
    for share, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99")):
        assert row["ttft_s"][name] == (pytest.approx(_linear(ttfts, share)) if ttfts else None)


@given(requests)
def test_order_of_requests_changes_nothing(made: list[tuple[int, float, float, bool]]) -> None:
    there, back = summary.row(outcome(made)), summary.row(outcome(made[::-1]))
    for metric in summary.METRICS:  # a sum depends on its order by a last digit
        assert there[metric].pop("mean") == pytest.approx(back[metric].pop("mean"))
    assert there == back


@given(requests)
def test_curves_never_fall(made: list[tuple[int, float, float, bool]]) -> None:
    for points in summary.curves(outcome(made)).values():
        assert list(points) == sorted(points)
        assert len(points) in (0, summary.CURVE_POINTS)


def _linear(ordered: list[float], share: float) -> float:
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])
