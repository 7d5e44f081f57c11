"""Llumnix v1: predicted TTFT and TPOT, a filter, the lowest."""

from __future__ import annotations

import pytest

from helpers.builders import cluster, decode, place, request, slo
from hyperflexis.core.commands import Why
from hyperflexis.policies import forecast
from policies.choosing import chosen, placement


def test_forecast_counts_queue_steps_and_decodes() -> None:
    fleet = cluster(1)
    place(request(1, prompt_tokens=900), fleet.ready[0])
    for number in (2, 3):
        decode(request(number), fleet.ready[0])
    predicted = forecast.first_come(request(9, prompt_tokens=100), fleet.ready[0], 500, 0.0)
    # 1000 tokens in two chunks, each beside two decodes: 2 (10 + 2 ms) + 1000 ms; then a step of four decodes. The
    # step that runs now is taken for one of decodes that has just begun.
    assert predicted.ttft_s == pytest.approx(2 * 0.012 + 1.0 + fleet.ready[0].residual_s(0.0))
    assert predicted.tpot_s == pytest.approx(0.014)


def test_lowest_ttft_wins() -> None:
    fleet = cluster(2)
    place(request(1, prompt_tokens=300), fleet.ready[0])
    decode(request(2, prompt_tokens=900), fleet.ready[1])
    assert chosen("llumnix_v1", request(9, slo=slo(5.0, 0.1)), fleet) == 1


def test_instance_near_the_promised_pace_is_dropped() -> None:
    fleet = cluster(2)
    for number in range(8):
        decode(request(number), fleet.ready[0])  # A step with one more takes 19 ms.
    place(request(20, prompt_tokens=300), fleet.ready[1])
    newcomer = request(30, slo=slo(5.0, 0.02))
    assert chosen("llumnix_v1", newcomer, fleet) == 1
    assert chosen("llumnix_v1:threshold=1.0", newcomer, fleet) == 0


def test_where_nothing_passes_the_lowest_of_all_is_taken() -> None:
    fleet = cluster(2)
    place(request(1, prompt_tokens=3000), fleet.ready[0])
    place(request(2, prompt_tokens=2000), fleet.ready[1])
    placed = placement("llumnix_v1", request(9, slo=slo(1.0, 0.1)), fleet)
    assert placed.instance.id == 1
    assert placed.reason.why is Why.LEAST_HARM
