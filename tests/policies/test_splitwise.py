"""Splitwise: shortest queues, and a mixed pool that grows from either side and shrinks again."""

from __future__ import annotations

from helpers.builders import decode, place, request
from hyperflexis.core.instance import Role
from hyperflexis.core.request import RequestState
from hyperflexis.policies import create
from policies.choosing import bound, fleet, prefill, relabel, stand

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED


def test_prompt_joins_the_shortest_queue_of_the_prefill_pool() -> None:
    made, among = create("splitwise", 512), fleet(P, P, D)
    place(request(1, 50), among.ready[0])
    place(request(2, 20), among.ready[1])
    place(request(3, 20), among.ready[1])
    assert prefill(made, request(9), among) == 1


def test_decode_pool_helps_where_queues_are_long_and_gets_its_instance_back() -> None:
    made, among = create("splitwise:queue_tokens=100", 512), fleet(P, D, D)
    decode(request(1), among.ready[1])
    place(request(2, 95), among.ready[0])
    helped = request(3, 10)
    assert prefill(made, helped, among) == 2
    place(helped, among.ready[2])
    assert prefill(made, request(4, 50), among) == 2  # Mixed before it is relabelled.
    assert relabel(made, among) == {2: M}
    assert relabel(made, among) == {}
    among.ready[2].begin_decoding(helped)
    assert relabel(made, among) == {2: D}
    assert prefill(made, request(5, 5), among) == 0


def test_decodes_go_where_most_memory_is_free() -> None:
    made, among = create("splitwise", 512), fleet(P, D, D, M)
    decode(request(1, 100), among.ready[1])
    assert bound(made, stand(request(9), among.ready[0]), among.ready[0], among) == 2


def test_mixed_pool_decodes_what_the_decode_pool_has_no_room_for() -> None:
    made, among = create("splitwise", 512), fleet(P, D, M, blocks=10)
    decode(request(1, 100), among.ready[1])
    decode(request(2, 60), among.ready[2])
    assert bound(made, stand(request(9, 60), among.ready[0]), among.ready[0], among) == 2


def test_prefill_instance_becomes_mixed_where_nobody_has_room_for_a_decode() -> None:
    made, among = create("splitwise", 512), fleet(P, P, D, blocks=10)
    source = among.ready[0]
    prefill(made, request(0), among)
    decode(request(1, 100), among.ready[2])
    newcomer = stand(request(9, 60), source)
    newcomer.state = RequestState.PREFILLING
    assert bound(made, newcomer, source, among) is None
    newcomer.state = RequestState.STANDING
    assert bound(made, newcomer, source, among) == 0
    source.go_on(newcomer)
    assert relabel(made, among) == {0: M}
    source.remove(newcomer)
    assert relabel(made, among) == {0: P}


def test_without_pools_the_shortest_queue_of_all_takes_it() -> None:
    made, among = create("splitwise:queue_tokens=0", 512), fleet(M, M)
    place(request(1), among.ready[0])
    assert prefill(made, request(2), among) == 1
    place(request(3, 50), among.ready[1])
    assert prefill(made, request(4), among) == 0
    assert relabel(made, among) == {}
