"""HFX by our reading: more once promises were broken or will be, fewer after a while in which fewer were enough."""

from __future__ import annotations

from helpers.builders import place, request, slo
from hyperflexis.core.instance import Role
from policies.sizes import Asked


def test_a_request_that_will_be_late_wants_more() -> None:
    asked = Asked("hfx_reactive:step=2")
    place(request(1, 500, slo=slo(1.0)), asked.cluster.ready[0])
    assert asked.at(0.0) == 2
    place(request(2, 2000, slo=slo(1.0)), asked.cluster.ready[0])
    assert asked.at(1.0) == 4


def test_nothing_more_while_a_start_is_under_way() -> None:
    asked = Asked("hfx_reactive")
    place(request(2, 2000, slo=slo(1.0)), asked.cluster.ready[0])
    asked.cluster.launch(9, Role.MIXED)
    assert asked.at(0.0, 1.0) == 2


def test_broken_promises_of_the_window_want_more_until_they_are_past() -> None:
    asked = Asked("hfx_reactive:window_s=10")
    assert asked.at(0.0) == 2
    asked.cluster.ended, asked.cluster.kept = 100, 98
    assert asked.at(1.0) == 3
    assert asked.at(15.0) == 3


def test_fewer_after_a_cool_down_one_by_one() -> None:
    asked = Asked("hfx_reactive:cool_down_s=30", instances=3, least=1)
    assert asked.at(0.0, 10.0, 29.0) == 3
    assert asked.at(30.0) == 2
    assert asked.at(45.0) == 2
    assert asked.at(60.0) == 1
