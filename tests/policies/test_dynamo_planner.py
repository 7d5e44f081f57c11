"""Dynamo's two loops: throughput is the floor; load adds and takes one."""

from __future__ import annotations

import pytest

from helpers.builders import decode, request, slo
from hyperflexis.core.demand import Asked as Sums
from hyperflexis.core.instance import Instance, Role
from policies.sizes import Asked


def fill(instance: Instance, decodes: int) -> None:
    """A step takes 10 ms, and 1 ms more for each; 30 ms are promised."""
    for number in range(decodes):
        decode(request(100 * instance.id + number, slo=slo(1.0, 0.03)), instance)


@pytest.mark.parametrize(
    ("decodes", "expected"), [((25, 25), 3), ((25, 18), 2), ((18, 18), 2), ((5, 5), 1), ((5, 18), 2)]
)
def test_load_adds_one_where_all_are_over_and_takes_one_where_all_are_under(
    decodes: tuple[int, int], expected: int
) -> None:
    asked = Asked("dynamo_planner")
    for instance, count in zip(asked.cluster.ready, decodes, strict=True):
        fill(instance, count)
    assert asked.at(0.0) == expected
    assert asked.at(4.9) == expected


def test_one_at_a_time() -> None:
    asked = Asked("dynamo_planner")
    for instance in asked.cluster.ready:
        fill(instance, 25)
    asked.cluster.launch(9, Role.MIXED)
    assert asked.at(0.0, 5.0) == 2


def test_throughput_is_a_floor() -> None:
    asked = Asked("dynamo_planner:throughput_s=100,headroom=0.8")
    assert asked.at(0.0) == 1
    asked.cluster.asked = {"chat": Sums(requests=500.0, prefill_s=300.0, pace_s=100.0)}
    assert asked.at(99.0) == 0
    assert asked.at(100.0) == 5  # And a second of decodes per second: 500 answers of 200 tokens.
    assert asked.at(110.0, 120.0) == 5
    assert asked.at(200.0) == 4
