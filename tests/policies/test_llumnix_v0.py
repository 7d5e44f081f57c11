"""Llumnix's freeness with virtual usage."""

from __future__ import annotations

import pytest

from helpers.builders import cluster, decode, place, request
from hyperflexis.policies.llumnix_v0 import Freeness
from policies.choosing import chosen


def test_freeness_is_free_tokens_per_request() -> None:
    fleet = cluster(1, blocks=100)  # 1600 tokens
    decode(request(1, prompt_tokens=99), fleet.ready[0])
    decode(request(2, prompt_tokens=299), fleet.ready[0])
    assert Freeness(True, 0.0).freeness(fleet.ready[0]) == pytest.approx((1600 - 400) / 2)


def test_queued_prompts_are_virtual_usage() -> None:
    fleet = cluster(1, blocks=100)
    place(request(1, prompt_tokens=600), fleet.ready[0])
    place(request(2, prompt_tokens=200, arrived_s=1.0), fleet.ready[0])
    assert Freeness(True, 0.0).freeness(fleet.ready[0]) == 400
    assert Freeness(False, 0.0).freeness(fleet.ready[0]) == 500  # The head of the queue alone.


def test_few_long_requests_can_be_freer_than_many_short_ones() -> None:
    """What counts is for how many steps an instance can go on, not how much it holds."""
    fleet = cluster(2, blocks=100)
    decode(request(1, prompt_tokens=599), fleet.ready[0])
    for number in range(2, 6):
        decode(request(number, prompt_tokens=49), fleet.ready[1])
    assert chosen("llumnix_v0", request(9), fleet) == 0


def test_headroom_keeps_others_away_from_important_work() -> None:
    fleet = cluster(2, blocks=100)
    decode(request(1, prompt_tokens=99, priority=1), fleet.ready[0])
    decode(request(2, prompt_tokens=299), fleet.ready[1])
    assert chosen("llumnix_v0", request(9), fleet) == 0
    assert chosen("llumnix_v0:headroom_share=0.5", request(9), fleet) == 1
