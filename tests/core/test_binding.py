"""Which instance decodes what another has prefilled, by hand: steps take 10 ms and 1 ms for each decode."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.builders import cluster, decode, place, request, slo
from hyperflexis.core.binding import LeastPace, has_room, used_share, wait_share
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Why
from hyperflexis.core.dispatch import Placement
from hyperflexis.core.instance import Instance, Role
from hyperflexis.core.request import Request

KV_TOKEN_BYTES = 1000


def fleet(instances: int = 3, **limits: int) -> Cluster:
    """The first one prefills for the others."""
    made = cluster(instances, **limits)
    for instance in made.ready:
        instance.capacity = replace(instance.capacity, kv_token_bytes=KV_TOKEN_BYTES)
    made.ready[0].role = Role.PREFILL
    made.note_ready()
    return made


def standing(among: Cluster, number: int = 90, prompt_tokens: int = 10, tpot_s: float = 0.05) -> Request:
    """It has its first token, and is counted with that there."""
    source = among.ready[0]
    made = request(number, prompt_tokens, slo=slo(tpot_s=tpot_s))
    made.instance_id = source.id
    source.place(made, prompt_tokens + 1, 0.0)
    made.first_token_s = 0.0
    source.begin_decoding(made)
    source.stand(made)
    return made


def fill(instance: Instance, decodes: int, prompt_tokens: int = 10, tpot_s: float | None = None) -> None:
    for number in range(decodes):
        decode(request(1000 * instance.id + number, prompt_tokens, slo=slo(tpot_s=tpot_s)), instance)


def choose(among: Cluster, one: Request, *, stays: bool = True, now: float = 0.0) -> Placement | None:
    targets = [each for each in among.ready if each.role is not Role.PREFILL]
    return LeastPace(stays=stays).choose(one, among.ready[0], targets, among, now)


def chosen(among: Cluster, one: Request, *, stays: bool = True) -> int | None:
    found = choose(among, one, stays=stays)
    return None if found is None else found.instance.id


def test_share_is_a_step_with_it_over_the_strictest_pace() -> None:
    made = fleet()
    one = standing(made)
    target = made.ready[1]
    assert used_share(one, target, 10) == pytest.approx(0.011 / 0.05)
    fill(target, 3)
    assert used_share(one, target, 10) == pytest.approx(0.014 / 0.05)
    fill(made.ready[2], 3, tpot_s=0.02)
    assert used_share(one, made.ready[2], 10) == pytest.approx(0.014 / 0.02)
    assert used_share(request(), target, 10) == pytest.approx(0.014 / 0.2), "the cap, where nothing was promised"


def test_least_share_takes_it_and_the_first_of_equals() -> None:
    made = fleet()
    one = standing(made)
    assert chosen(made, one) == 1
    fill(made.ready[1], 1)
    assert chosen(made, one) == 2
    found = choose(made, one)
    assert found is not None
    assert found.reason.why is Why.PREFILLED


def test_what_is_on_its_way_counts_as_there() -> None:
    made = fleet()
    one = standing(made)
    made.ready[1].expect(request(5, 10), 20, 0.0)
    assert chosen(made, one) == 2


def test_copies_that_are_queued_before_it_count_as_their_share_of_its_answers_time() -> None:
    made = fleet()
    one = standing(made)
    made.network.send(0, 1, 10 * made.network.bytes_s, 0.0)
    assert chosen(made, one, stays=False) == 1, "the way out of its source is as long for both"
    made = fleet(4)
    one = standing(made)
    made.network.send(3, 1, 10 * made.network.bytes_s, 0.0)
    assert chosen(made, one) == 2
    waits_s = 10.0 + made.network.copy_s(0, 1, one.context_tokens * KV_TOKEN_BYTES)
    assert wait_share(one, made.ready[0], made.ready[1], made, 0.0) == pytest.approx(waits_s / (0.05 * 10))


def test_room_is_for_all_that_it_and_the_others_will_hold_in_the_end() -> None:
    made = fleet(2, blocks=4, block_tokens=16)
    one = standing(made, prompt_tokens=22)
    target = made.ready[1]
    assert has_room(one, target, 10)
    fill(target, 1, prompt_tokens=10)
    assert has_room(one, target, 10), "two blocks each"
    assert not has_room(one, target, 11)
    seats = fleet(2, seqs_max=1)
    assert has_room(one, seats.ready[1], 10)
    fill(seats.ready[1], 1)
    assert not has_room(one, seats.ready[1], 10)


def test_own_blocks_are_counted_once_where_it_is() -> None:
    made = fleet(2, blocks=3, block_tokens=16)
    one = standing(made, prompt_tokens=15)
    source = made.ready[0]
    assert source.planned_blocks == 1
    assert has_room(one, source, 17)


def full(prompt_tokens: int = 90) -> tuple[Cluster, Request]:
    """The other instance has no block left."""
    made = fleet(2, blocks=10, block_tokens=16)
    fill(made.ready[1], 1, prompt_tokens=150)
    return made, standing(made, prompt_tokens=prompt_tokens)


def test_where_none_has_room_it_stays_if_no_prefill_waits_there() -> None:
    made, one = full()
    found = choose(made, one)
    assert found is not None
    assert (found.instance.id, found.reason.why) == (0, Why.NO_DECODE)
    assert choose(made, one, stays=False) is None
    place(request(7, prompt_tokens=110), made.ready[0])
    assert choose(made, one) is None, "110 ms of prefill"


def test_where_neither_has_room_it_is_held() -> None:
    made, one = full(prompt_tokens=120)
    fill(made.ready[0], 1, prompt_tokens=60)
    assert choose(made, one) is None


def test_where_promises_would_break_it_stays_if_none_does_there() -> None:
    made = fleet(2)
    fill(made.ready[1], 45)
    one = standing(made)
    assert chosen(made, one) == 0
    assert chosen(made, one, stays=False) == 1, "and goes where least is broken otherwise"
    fill(made.ready[0], 45)
    assert chosen(made, one) == 1


@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from([None, 0.02, 0.05])), min_size=1, max_size=5),
    st.integers(1, 150),
    st.booleans(),
)
def test_whoever_takes_it_has_room_and_is_the_least_pressed(
    loads: list[tuple[int, float | None]], prompt_tokens: int, waits: bool
) -> None:
    made = fleet(len(loads) + 1, blocks=20, block_tokens=16, seqs_max=12)
    for target, (decodes, tpot_s) in zip(made.ready[1:], loads, strict=True):
        fill(target, decodes, tpot_s=tpot_s)
    one = standing(made, prompt_tokens=prompt_tokens)
    if waits:
        place(request(7, prompt_tokens=150), made.ready[0])
    expected = made.expected_tokens(one)
    able = [target for target in made.ready[1:] if has_room(one, target, expected)]
    found = choose(made, one)
    if found is None:
        assert not able
    elif found.instance is made.ready[0]:
        assert not waits
        assert has_room(one, found.instance, expected)
    else:
        assert found.instance in able
        assert used_share(one, found.instance, expected) == min(used_share(one, each, expected) for each in able)
