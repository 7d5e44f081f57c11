"""The power of two choices."""

from __future__ import annotations

from collections import Counter

from helpers.builders import cluster, place, request
from hyperflexis.policies.chance import draw
from policies.choosing import chosen


def test_draws_are_even_and_depend_on_the_request_alone() -> None:
    counts = Counter(draw(number, 0, 5) for number in range(10_000))
    assert set(counts) == set(range(5))
    assert all(abs(count - 2000) < 200 for count in counts.values())
    assert [draw(7, 1, 100) for _ in range(3)] == [draw(7, 1, 100)] * 3


def test_the_busiest_is_never_taken_and_others_are() -> None:
    fleet = cluster(4)
    for number, tokens in enumerate((400, 300, 200, 100)):
        place(request(number, prompt_tokens=tokens), fleet.ready[number])
    counts = Counter(chosen("power_of_two:count=outstanding", request(number), fleet) for number in range(600))
    # Pairs of four are six: the idlest is in three of them, the next in two where it wins, and so on.
    assert counts[0] == 0
    assert [round(counts[number] / 100) for number in (1, 2, 3)] == [1, 2, 3]


def test_one_instance_is_enough() -> None:
    assert chosen("power_of_two", request(9), cluster(1)) == 0


def test_queue_lengths_are_compared_unless_said() -> None:
    fleet = cluster(2)
    place(request(1, prompt_tokens=900), fleet.ready[0])
    for number in (2, 3):
        place(request(number, prompt_tokens=100), fleet.ready[1])
    assert chosen("power_of_two", request(9), fleet) == 0
    assert chosen("power_of_two:count=outstanding", request(9), fleet) == 1
