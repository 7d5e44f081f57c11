"""Service classes: bounds, and quantiles as simulations have them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.core.slo import ServiceClass
from hyperflexis.view.classes import CLASSES_MAX, ENDED_MAX, OTHERS, WINDOW_S, Classes, ClassRecord, Ended, times


@given(st.lists(st.floats(0.001, 100.0), min_size=1, max_size=50))
def test_quantiles_are_those_of_numpy(values: list[float]) -> None:
    told = times([*values, None], 1.0)
    p50, p95 = np.percentile(values, (50, 95))
    assert told.p50_s == pytest.approx(p50)
    assert told.p95_s == pytest.approx(p95)


@given(st.lists(st.tuples(st.floats(0, 40), st.booleans()), max_size=60))
def test_window_counts_those_that_are_in_it(steps: list[tuple[float, bool]]) -> None:
    record, ended, now = ClassRecord(ServiceClass("a")), list[Ended](), 0.0
    for passed_s, is_kept in steps:
        now += passed_s
        ended.append(Ended(now, is_kept))
        record.add(ended[-1])
        within = [each for each in ended if each.at_s > now - WINDOW_S]
        assert record.kept_of(now) == (sum(each.is_kept for each in within), len(within))


def test_no_more_are_remembered_than_there_is_room_for() -> None:
    record = ClassRecord(ServiceClass("a"))
    for number in range(ENDED_MAX + 100):
        record.add(Ended(1.0, is_kept=number >= 100))
    assert record.kept_of(1.0) == (ENDED_MAX, ENDED_MAX)
    assert record.ended == ENDED_MAX + 100


def test_names_without_end_share_one_record() -> None:
    classes = Classes({"chat": ServiceClass("chat")})
    for number in range(3 * CLASSES_MAX):
        classes.record(f"c{number}")
    assert len(classes.records) == CLASSES_MAX + 1
    assert classes.record("another") is classes.records[OTHERS]
