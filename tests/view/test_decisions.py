"""Decisions that are kept: the usual ones do not push out what is rare."""

from __future__ import annotations

from hyperflexis.core.commands import Dispatch, Reason, Resize, Why
from hyperflexis.core.events import Wakeup
from hyperflexis.core.instance import Role
from hyperflexis.view.decisions import KEPT, Decisions
from view.streams import FITS, ORIGIN_S, finished


def test_rare_decisions_stay_among_many_usual_ones() -> None:
    decisions = Decisions()
    decisions.hear(ORIGIN_S, Wakeup(), [Resize(Role.MIXED, 1, 2, Reason(Why.DEMAND))])
    for number in range(1000):
        decisions.hear(ORIGIN_S + number, Wakeup(), [Dispatch(number, 0, FITS)])
    latest = decisions.latest(ORIGIN_S)
    assert len(latest) == KEPT + 1
    assert [each.request for each in latest[:3]] == [999, 998, 997]
    assert (latest[-1].kind, latest[-1].at_s) == ("fleet", 0.0)


def test_only_broken_promises_are_told_of() -> None:
    decisions = Decisions()
    kept = finished(ORIGIN_S + 2, 1, ORIGIN_S, 0.4, 101)
    broken = finished(ORIGIN_S + 2, 2, ORIGIN_S, 0.6, 101)
    for now, event, commands, _ in (kept, broken):
        decisions.hear(now, event, commands)
    (told,) = decisions.latest(ORIGIN_S)
    assert (told.kind, told.request) == ("broken", 2)
    assert told.text.startswith("broken: ttft 600 ms of 500 ms")
