"""Prefix affinity, unless overloaded."""

from __future__ import annotations

from helpers.builders import cluster, place, request
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Why
from policies.choosing import chosen, placement

SESSION = tuple(bytes([number]) for number in range(20))


def with_prefix_at_1() -> Cluster:
    fleet = cluster(3)
    place(request(1, prompt_tokens=160, block_hashes=SESSION[:10]), fleet.ready[1])
    return fleet


def test_next_turn_goes_where_the_last_one_was() -> None:
    placed = placement("prefix_affinity", request(9, prompt_tokens=320, block_hashes=SESSION), with_prefix_at_1())
    assert placed.instance.id == 1
    assert placed.reason.why is Why.HAS_PREFIX


def test_the_longest_prefix_wins() -> None:
    fleet = with_prefix_at_1()
    place(request(2, prompt_tokens=240, block_hashes=SESSION[:15]), fleet.ready[2])
    assert chosen("prefix_affinity", request(9, prompt_tokens=320, block_hashes=SESSION), fleet) == 2


def test_other_work_goes_to_the_least_loaded() -> None:
    assert chosen("prefix_affinity", request(9, prompt_tokens=320), with_prefix_at_1()) == 0


def test_overloaded_holder_is_passed_over() -> None:
    fleet = with_prefix_at_1()
    place(request(2, prompt_tokens=2000), fleet.ready[1])
    turn = request(9, prompt_tokens=320, block_hashes=SESSION)
    assert chosen("prefix_affinity", turn, fleet) == 1
    assert chosen("prefix_affinity:margin_tokens=1000", turn, fleet) == 0


def test_short_match_does_not_bind() -> None:
    fleet = with_prefix_at_1()
    short = request(9, prompt_tokens=3200, block_hashes=(*SESSION[:2], b"x", b"y"))
    assert chosen("prefix_affinity", short, fleet) == 0
