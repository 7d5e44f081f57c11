"""Least outstanding tokens."""

from __future__ import annotations

from helpers.builders import cluster, decode, place, request
from policies.choosing import chosen


def test_prompts_and_answers_to_come_count() -> None:
    fleet = cluster(3)
    place(request(1, prompt_tokens=100, max_tokens=100), fleet.ready[0])
    decode(request(2, prompt_tokens=1000, max_tokens=150), fleet.ready[1], emitted_tokens=50)
    place(request(3, prompt_tokens=150, max_tokens=100), fleet.ready[2])
    assert chosen("least_tokens", request(9), fleet) == 1  # 100 to come, against 200 and 250


def test_progress_and_cached_tokens_do_not_count() -> None:
    fleet = cluster(2)
    place(request(1, prompt_tokens=500, max_tokens=10), fleet.ready[0])
    place(request(2, prompt_tokens=300, max_tokens=10), fleet.ready[1])
    fleet.ready[0].progress_tokens = 400
    assert chosen("least_tokens", request(9), fleet) == 0


def test_prompts_alone_or_requests_can_count() -> None:
    fleet = cluster(2)
    place(request(1, prompt_tokens=100, max_tokens=10), fleet.ready[0])
    for number in (2, 3):
        decode(request(number, prompt_tokens=10, max_tokens=1000), fleet.ready[1])
    assert chosen("least_tokens", request(9), fleet) == 0
    assert chosen("least_tokens:count=prompts", request(9), fleet) == 1
    assert chosen("least_tokens:count=requests", request(9), fleet) == 1  # 2 against 4 x 1


def test_idle_instances_take_turns() -> None:
    fleet = cluster(3)
    fleet.ready[0].dispatches = 1
    assert chosen("least_tokens", request(9), fleet) == 1
