"""TokenScale's number of instances: tokens that come over velocities, and bursts."""

from __future__ import annotations

import pytest

from helpers.builders import request, slo
from policies.sizes import Asked


def arrive(asked: Asked, count: int, begin_s: float, lasts_s: float) -> float:
    """Prompts of 90 tokens, 0.1 s of prefill each, without answers to speak of. Gives when the last came."""
    for number in range(count):
        now = begin_s + lasts_s * (number + 1) / count
        made = request(number, 90, 1, slo=slo(1.0, 0.05), arrived_s=now)
        asked.policy.dispatcher.choose(made, asked.cluster.ready, asked.cluster, now)
    return begin_s + lasts_s


@pytest.mark.parametrize(("per_s", "expected"), [(10, 2), (40, 5)])
def test_tokens_over_velocity(per_s: int, expected: int) -> None:
    asked = Asked("tokenscale_scaler", instances=1)
    now = arrive(asked, per_s * 60, 0.0, 60.0)
    assert asked.at(now) == expected


def test_a_burst_counts_at_once() -> None:
    calm, burst = Asked("tokenscale_scaler", instances=1), Asked("tokenscale_scaler", instances=1)
    assert calm.at(arrive(calm, 60, 0.0, 10.0)) < burst.at(arrive(burst, 60, 9.0, 1.0))


def test_headroom_divides() -> None:
    asked = Asked("tokenscale_scaler:headroom=0.5", instances=1)
    assert asked.at(arrive(asked, 2400, 0.0, 60.0)) == 9


def test_fewer_after_a_cool_down() -> None:
    asked = Asked("tokenscale_scaler:cool_down_s=20", instances=1)
    now = arrive(asked, 2400, 0.0, 60.0)
    high = asked.at(now)
    assert asked.at(now + 15) == high
    assert asked.at(now + 20) < high


def test_a_request_that_is_dispatched_again_counts_once() -> None:
    asked = Asked("tokenscale_scaler")
    again = request(1, 500, slo=slo(1.0, 0.05))
    again.dispatches = 1
    asked.policy.dispatcher.choose(again, asked.cluster.ready, asked.cluster, 0.0)
    assert asked.at(0.0, 30.0) == 0
