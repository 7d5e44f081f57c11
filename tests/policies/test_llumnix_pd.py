"""Llumnix v1's split: packed decodes, prefill on what has none, conversions."""

from __future__ import annotations

from helpers.builders import decode, place, request, slo
from hyperflexis.core.instance import Instance, Role
from hyperflexis.core.request import Request, RequestState
from hyperflexis.policies import create
from policies.choosing import bound, fleet, prefill, relabel, stand

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED
SLO = slo(0.5, 0.05)


def newcomer(number: int = 90, prompt_tokens: int = 10) -> Request:
    return request(number, prompt_tokens, slo=SLO)


def fill(instance: Instance, decodes: int, since: int = 0) -> None:
    for number in range(decodes):
        decode(newcomer(since + number), instance)


def test_prompt_goes_to_the_lowest_ttft() -> None:
    made, among = create("llumnix_pd", 512), fleet(P, P, D)
    place(newcomer(1, 50), among.ready[0])
    assert prefill(made, newcomer(), among) == 1


def test_decodes_are_packed_up_to_a_share_of_the_promise() -> None:
    made, among = create("llumnix_pd", 512), fleet(P, D, D, D)
    fill(among.ready[1], 5, 100)
    fill(among.ready[2], 20, 200)
    fill(among.ready[3], 35, 300)  # With one more a step takes 46 ms.
    source = among.ready[0]
    assert bound(made, stand(newcomer(), source), source, among) == 2
    assert bound(create("llumnix_pd:threshold=0.95", 512), newcomer(91), source, among) == 3


def test_least_busy_prefill_instance_is_converted_where_nobody_can_take_a_decode() -> None:
    made, among = create("llumnix_pd", 512), fleet(P, P, P, D)
    fill(among.ready[3], 40, 100)
    place(newcomer(1, 50), among.ready[1])
    source = among.ready[0]
    place(newcomer(2, 50), source)
    held = stand(newcomer(), source)
    held.state = RequestState.PREFILLING
    assert bound(made, held, source, among) is None
    assert relabel(made, among) == {}
    held.state = RequestState.STANDING
    assert bound(made, held, source, among) is None
    assert relabel(made, among) == {2: D}
    assert bound(made, held, source, among) == 2


def test_last_prefill_instance_is_reserved() -> None:
    made, among = create("llumnix_pd", 512), fleet(P, D, D)
    fill(among.ready[1], 50, 100)
    fill(among.ready[2], 45, 200)
    source = among.ready[0]
    assert bound(made, stand(newcomer(), source), source, among) == 2
    assert relabel(made, among) == {}


def test_instance_without_decodes_prefills_and_one_is_reserved_to_decode() -> None:
    made, among = create("llumnix_pd", 512), fleet(P, D, D)
    fill(among.ready[2], 1, 100)
    assert relabel(made, among) == {1: P}
    among.ready[2].remove(next(iter(among.ready[2].decoding.values())))
    assert relabel(made, among) == {}


def test_fleet_without_roles_is_split_by_what_is_there() -> None:
    made, among = create("llumnix_pd", 512), fleet(M, M, M)
    fill(among.ready[1], 1, 100)
    assert relabel(made, among) == {0: P, 1: D, 2: P}
    every = fleet(M, M)
    fill(every.ready[0], 2, 100)
    fill(every.ready[1], 1, 200)
    assert relabel(create("llumnix_pd", 512), every) == {0: D, 1: P}
    assert relabel(create("llumnix_pd", 512), fleet(M)) == {}
