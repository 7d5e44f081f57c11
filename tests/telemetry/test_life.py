"""Lives have no holes: what their phases say is what the verdicts of the same requests say."""

from __future__ import annotations

import itertools

import pytest

from hyperflexis.core.commands import Command, Conclude, Dispatch, Hold, Reason, Why
from hyperflexis.core.events import Event, InstanceReported, RequestArrived
from hyperflexis.core.latency import StepShape
from hyperflexis.core.slo import Slo
from hyperflexis.telemetry.life import Life, Lives
from telemetry.worlds import WORLDS, simulation


def lived(name: str) -> list[Life]:
    """All lives of a world."""
    lives, found = Lives(), list[list[Life]]()

    def observe(now: float, event: Event, commands: list[Command]) -> None:
        called = str(event.request_id) if isinstance(event, RequestArrived) else ""
        if called:
            found.append(lives.follow(called))
        lives.observe(now, event, commands, called)

    simulation(WORLDS[name], observe).run()
    assert not lives._live
    return [life for (life,) in found]


@pytest.mark.parametrize("name", WORLDS)
def test_phases_follow_one_another_from_arrival_to_end(name: str) -> None:
    lives = lived(name)
    assert lives
    for life in lives:
        assert life.ended_s is not None
        chain = [phase for phase in life.phases if phase.name != "transfer"]
        if not chain:
            assert life.is_refused
            assert life.ended_s == life.arrived_s
            continue
        assert chain[0].begin_s == life.arrived_s
        assert chain[-1].end_s == life.ended_s
        for one, next_one in itertools.pairwise(chain):
            assert one.end_s == next_one.begin_s


@pytest.mark.parametrize("name", WORLDS)
def test_phases_say_what_the_verdict_says(name: str) -> None:
    for life in lived(name):
        if life.verdict is None:
            continue
        times = life.verdict.timeline
        first = {phase.name: phase for phase in reversed(life.phases)}
        assert first["prefill"].begin_s == pytest.approx(times.prefill_started_s, abs=1e-3)
        assert min(each.begin_s for each in life.phases if each.name in ("decode", "stand")) == times.first_token_s
        moved = [each for each in life.phases if each.name == "transfer" and each.told["outcome"] == "done"]
        sent = [each for each in life.moments if each.name == "dispatch"]
        assert len(moved) + len(sent) - 1 == life.verdict.migrations
        ends = [phase.told["instance"] for phase in life.phases if phase.name == "decode"]
        assert ends[-1] == life.verdict.instance


def test_worlds_have_all_phases() -> None:
    names = {phase.name for name in WORLDS for life in lived(name) for phase in life.phases}
    assert names == {"hold", "queue", "prefill", "stand", "decode", "transfer"}


def test_only_what_is_followed_is_kept() -> None:
    lives = Lives()
    followed = lives.follow("mine")
    for number, name in enumerate(("other", "mine", "", "mine")):
        lives.observe(1.0, RequestArrived(number, 5, 5, Slo()), [Hold(number, Reason(Why.NO_INSTANCE))], name)
    lives.observe(2.0, RequestArrived(9, 5, 5, Slo()), [Dispatch(1, 0, Reason(Why.FEASIBLE))], "other")
    report = InstanceReported(0, StepShape(1, 1, 0, 0), 0.5, started=[0, 1], began=[0, 1])
    lives.observe(3.0, report, [])
    assert [life.arrival.request_id for life in followed] == [1, 3]
    assert [(each.name, each.begin_s) for each in followed[0].phases] == [
        ("hold", 1.0),
        ("queue", 2.0),
        ("prefill", 2.5),
        ("decode", 3.0),
    ]
    lives.forget("mine")
    lives.observe(4.0, report, [Conclude(1, None, Reason(Why.ENDED))])
    assert followed[0].ended_s is None
