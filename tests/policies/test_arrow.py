"""Arrow: overflow to decode instances, first fit of decodes, and changes of side."""

from __future__ import annotations

import pytest

from helpers.builders import decode, place, request, slo
from hyperflexis.core.instance import Instance, Role
from hyperflexis.core.request import Request
from hyperflexis.policies import create
from policies.choosing import bound, fleet, prefill, relabel, stand

P, D = Role.PREFILL, Role.DECODE
SLO = slo(0.5, 0.05)


def newcomer(number: int = 90, prompt_tokens: int = 10) -> Request:
    return request(number, prompt_tokens, slo=SLO)


def fill(instance: Instance, decodes: int, since: int = 0) -> list[Request]:
    return [decode(newcomer(since + number), instance) for number in range(decodes)]


def test_prompt_goes_where_the_least_prefill_is_accumulated() -> None:
    made, among = create("arrow", 512), fleet(P, P, D)
    place(newcomer(1, 50), among.ready[0])
    assert prefill(made, newcomer(), among) == 1


@pytest.mark.parametrize(("queued", "decodes", "expected"), [(400, 0, 0), (600, 0, 2), (600, 20, 0)])
def test_prompt_overflows_to_a_light_decode_instance(queued: int, decodes: int, expected: int) -> None:
    """Light is a step below 50 ms x 1/2 on both; with 20 decodes and one more it takes 31 ms."""
    made, among = create("arrow", 512), fleet(P, D, D)
    place(newcomer(1, queued), among.ready[0])
    fill(among.ready[1], decodes + 1, 100)
    fill(among.ready[2], decodes, 200)
    assert prefill(made, newcomer(), among) == expected


def test_first_decode_instance_under_the_target_takes_it() -> None:
    made, among = create("arrow", 512), fleet(P, D, D, D)
    fill(among.ready[1], 40, 100)
    fill(among.ready[2], 20, 200)
    source = among.ready[0]
    assert bound(made, stand(newcomer(), source), source, among) == 2
    assert bound(create("arrow:target_share=0.5", 512), newcomer(91), source, among) == 3


def test_prefill_instance_changes_where_no_decode_instance_is_under_the_target() -> None:
    made, among = create("arrow", 512), fleet(P, P, D)
    fill(among.ready[2], 45, 100)
    source = among.ready[1]
    assert bound(made, stand(newcomer(), source), source, among) == 2
    assert relabel(made, among) == {1: D}
    fill(among.ready[1], 45, 200)
    source = among.ready[0]
    assert bound(made, stand(newcomer(91), source), source, among) is not None
    assert relabel(made, among) == {}  # The last one stays.


def test_prefill_instances_stay_while_they_are_busy_and_few() -> None:
    made, among = create("arrow", 512), fleet(P, P, D, D)
    for number in (0, 1):
        place(newcomer(number, 400), among.ready[number])
        fill(among.ready[2 + number], 45, 100 * (1 + number))
    source = among.ready[0]
    assert bound(made, stand(newcomer(), source), source, among) is not None
    assert relabel(made, among) == {}


def test_nobody_without_room_takes_it() -> None:
    made, among = create("arrow", 512), fleet(P, D, blocks=10)
    decode(request(1, 140), among.ready[1])
    source = among.ready[0]
    assert bound(made, stand(newcomer(), source), source, among) is None


def test_decode_instance_whose_requests_have_ended_prefills() -> None:
    made, among = create("arrow", 512), fleet(P, D, D)
    assert relabel(made, among) == {}
    held = [fill(among.ready[number], 1, 100 * number) for number in (1, 2)]
    assert relabel(made, among) == {}
    for number, (only,) in zip((1, 2), held, strict=True):
        among.ready[number].remove(only)
    assert relabel(made, among) == {1: P}  # One stays.
