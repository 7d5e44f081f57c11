"""llm-d's saturation: thresholds, limits of pace, and what was predicted at dispatch."""

from __future__ import annotations

from helpers.builders import request, slo
from policies.sizes import Asked


def saturate(asked: Asked, share: float, *, paces: bool = False) -> None:
    for number in range(20):
        made = request(number, slo=slo(2.0, 0.05))
        made.predicted_ttft_s, made.predicted_tpot_s = (0.1, share * 0.05) if paces else (share * 2.0, 0.001)
        asked.cluster.requests[number] = made


def test_up_by_saturation_over_the_threshold() -> None:
    for paces in (False, True):
        asked = Asked("llm_d_saturation", instances=4)
        saturate(asked, 1.0, paces=paces)
        assert asked.at(0.0) == 8
        assert asked.at(59.0) == 8


def test_no_more_than_twice_as_many_or_four_more() -> None:
    for instances, expected in ((2, 6), (8, 16)):
        asked = Asked("llm_d_saturation", instances=instances)
        saturate(asked, 5.0)
        assert asked.at(0.0) == expected


def test_between_the_thresholds_nothing_happens() -> None:
    asked = Asked("llm_d_saturation", instances=4)
    saturate(asked, 0.5)
    assert asked.at(0.0, 100.0, 300.0) == 4


def test_down_one_in_two_minutes() -> None:
    asked = Asked("llm_d_saturation", instances=4)
    assert asked.at(0.0) == 3
    assert asked.at(119.0) == 3
    assert asked.at(120.0) == 2
