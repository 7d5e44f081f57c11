"""Dynamo's conditional disaggregation: the decode instance first, then where to prefill."""

from __future__ import annotations

from helpers.builders import decode, place, request
from hyperflexis.core.instance import Role
from hyperflexis.core.request import RequestState
from hyperflexis.policies import create
from policies.choosing import bound, fleet, prefill, stand

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED
NAME = "dynamo_pd:local_tokens=20,queue_max=1"


def test_short_prompt_is_prefilled_where_it_decodes() -> None:
    made, among = create(NAME, 512), fleet(P, D, D)
    decode(request(1, 50), among.ready[1])
    assert prefill(made, request(9, 20), among) == 2


def test_cached_tokens_do_not_count() -> None:
    made, among = create(NAME, 512), fleet(P, D, D)
    hashes = tuple(bytes([number]) for number in range(4))
    decode(request(1, 64, block_hashes=hashes), among.ready[2])
    among.ready[2].remove(among.ready[2].decoding[1])
    assert prefill(made, request(9, 68, block_hashes=hashes), among) == 2
    assert prefill(made, request(10, 68), among) == 0


def test_long_prompt_is_prefilled_elsewhere_and_decodes_where_it_was_bound() -> None:
    made, among = create(NAME, 512), fleet(P, P, D, D)
    place(request(1, 50), among.ready[0])
    decode(request(2, 50), among.ready[2])
    newcomer = request(9, 60)
    assert prefill(made, newcomer, among) == 1
    stand(newcomer, among.ready[1])
    decode(request(3, 500), among.ready[3])  # Too late to be bound elsewhere.
    assert bound(made, newcomer, among.ready[1], among) == 3


def test_prompt_is_prefilled_where_it_decodes_while_the_queue_is_long() -> None:
    made, among = create(NAME, 512), fleet(P, D)
    for number in (1, 2):
        assert prefill(made, request(10 + number, 60), among) == 0
        place(request(number, 50), among.ready[0]).state = RequestState.WAITING
    assert prefill(made, request(9, 60), among) == 1
    among.ready[0].waiting[1].state = RequestState.PREFILLING
    assert prefill(made, request(9, 60), among) == 0


def test_what_is_bound_counts_before_it_arrives() -> None:
    made, among = create(NAME, 512), fleet(P, D, D)
    for number, expected in ((1, 1), (2, 2), (3, 1)):
        newcomer = request(number, 60)
        among.requests[number] = newcomer
        assert prefill(made, newcomer, among) == 0
        assert bound(made, newcomer, among.ready[0], among) == expected


def test_instances_take_turns() -> None:
    made, among = create("dynamo_pd:worker=turn", 512), fleet(P, D, D)
    assert [prefill(made, request(number), among) for number in range(4)] == [1, 2, 1, 2]


def test_dead_instance_is_replaced_and_a_full_one_waited_for() -> None:
    made, among = create(NAME, 512), fleet(P, D, D, blocks=10)
    newcomer = request(9, 60)
    assert prefill(made, newcomer, among) == 0
    stand(newcomer, among.ready[0])
    blocker = decode(request(1, 120), among.ready[1])
    assert bound(made, newcomer, among.ready[0], among) is None
    among.ready[1].remove(blocker)
    assert bound(made, newcomer, among.ready[0], among) == 1
    del among.ready[1]
    assert bound(made, newcomer, among.ready[0], among) == 2


def test_fleet_without_pools_prefills_where_it_decodes() -> None:
    made, among = create(NAME, 512), fleet(M, M)
    place(request(1, 60), among.ready[0])
    assert prefill(made, request(9, 60), among) == 1
