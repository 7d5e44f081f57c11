"""The fleet of modelled instances keeps exact time and loses nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from helpers.builders import SIMPLE, capacity
from helpers.fleet import STOP, Fleet, Job
from hyperflexis.core.commands import Conclude, Launch
from hyperflexis.core.control import ControlPlane, FixedFleet
from hyperflexis.core.slo import Verdict
from hyperflexis.policies import create


def fleet(instances: int = 1, **options: Any) -> Fleet:
    plane = ControlPlane(create("hyperflexis", 2048), FixedFleet(instances))
    return Fleet(plane, capacity(), SIMPLE, checks=True, **options)


def verdict(of: Fleet, request_id: int) -> Verdict:
    end = of.ends[request_id]
    assert isinstance(end, Conclude)
    assert end.verdict is not None
    return end.verdict


def test_one_request_takes_what_the_model_says() -> None:
    made = fleet()
    made.arrive_at(5.0, Job(0, range(20), 4))
    made.run()
    timeline = verdict(made, 0).timeline
    assert (timeline.ttft_s, timeline.tpot_s) == (pytest.approx(0.030), pytest.approx(0.011))
    assert timeline.predicted_ttft_s == pytest.approx(timeline.ttft_s)
    assert made.tokens[0] == [0, 1, 2, STOP]


def test_truth_may_differ_from_what_is_predicted() -> None:
    made = fleet(truth=replace(SIMPLE, prefill_base_s=0.02))
    made.arrive_at(0.0, Job(0, range(20), 1))
    made.run()
    timeline = verdict(made, 0).timeline
    assert (timeline.predicted_ttft_s, timeline.ttft_s) == (pytest.approx(0.030), pytest.approx(0.040))


def test_requests_wait_for_an_instance_to_start() -> None:
    made = fleet(startup_s=3.0)
    made.arrive_at(1.0, Job(0, range(20), 1))
    made.run()
    assert verdict(made, 0).timeline.ttft_s == pytest.approx(2.030)


def test_lost_instance_costs_time_and_no_token() -> None:
    made = fleet(startup_s=1.0)
    made.arrive_at(1.0, Job(0, range(20), 40, answer_tokens=30))
    made.at(1.1, lambda: made.lose(0, made.now))
    made.run()
    assert made.tokens[0] == [*range(29), STOP]
    assert verdict(made, 0).migrations == 1
    assert [command.instance_id for _, command in made.journal if isinstance(command, Launch)] == [0, 1]


def test_clock_stops_where_it_is_told() -> None:
    made = fleet()
    made.arrive_at(1.0, Job(0, range(20), 1000))
    made.run(until_s=2.0)
    assert 1.9 < made.now <= 2.0
    assert list(made.live) == [0]
    made.run()
    assert list(made.ends) == [0]
