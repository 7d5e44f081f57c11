"""Moves from the order to the target's word, and what every loss makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from helpers.builders import cluster, place, request, slo
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Abandon, Cancel, Migrate, Reason, Why
from hyperflexis.core.events import Arrival
from hyperflexis.core.instance import InstanceStep
from hyperflexis.core.links import Links
from hyperflexis.core.migration import Migrations
from hyperflexis.core.prefix import block_hashes
from hyperflexis.core.request import Request, RequestState, RequestStep

WHY = Reason(Why.PREFILLED)


def world(instances: int = 2) -> tuple[Cluster, Migrations]:
    """All linked with all."""
    made, links = cluster(instances), Links()
    for instance in made.ready:
        for link in links.connect(instance, made.ready, 0.0):
            links.up(link.source_id, link.target_id, link.version)
    return made, Migrations(made, links)


def decoding(among: Cluster, number: int = 7, prompt_tokens: int = 10, **fields: Any) -> Request:
    """It decodes on the first instance."""
    one = request(number, prompt_tokens, slo=slo(tpot_s=0.1), **fields)
    among.requests[number] = one
    one.step(RequestStep.DISPATCH)
    place(one, among.ready[0])
    for step in (RequestStep.START, RequestStep.TOKEN):
        one.step(step)
    one.first_token_s = 1.0
    among.ready[0].begin_decoding(one)
    return one


def standing(among: Cluster, **fields: Any) -> Request:
    one = decoding(among, **fields)
    one.step(RequestStep.STAND)
    among.ready[0].stand(one)
    return one


def check(among: Cluster, moves: Migrations) -> None:
    among.check()
    moves.check()


def begun(among: Cluster, moves: Migrations, one: Request, **options: bool) -> Migrate:
    order = moves.begin(one, among.ready[1], WHY, 2.0, **options)
    check(among, moves)
    return order


def test_move_counts_at_both_ends_until_its_target_has_it() -> None:
    made, moves = world()
    one = standing(made)
    source, target = made.ready[0], made.ready[1]
    order = begun(made, moves, one, at_first_token=True)
    assert (order.request_id, order.source_id, order.target_id, order.tokens) == (7, 0, 1, 11)
    assert (order.at_first_token, order.recomputes, order.expected_tokens) == (True, False, 10)
    assert (source.planned_tokens, target.planned_tokens, target.requests) == (20, 20, 1)
    assert target.strictest_pace_s() == 0.1
    assert moves.done(Arrival(7, 0, 10, 1), 1)
    check(made, moves)
    assert (source.planned_tokens, target.planned_tokens) == (0, 20)
    assert (one.state, one.instance_id, one.emitted_tokens, one.migrations) == (RequestState.DECODING, 1, 1, 1)
    assert list(target.decoding) == [7]
    assert not moves.done(Arrival(7, 0, 10, 1), 1), "once"


def test_numbers_of_moves_grow() -> None:
    made, moves = world()
    one = standing(made)
    first = begun(made, moves, one)
    assert moves.failed(7, 1) is not None
    assert begun(made, moves, one).move > first.move


def test_what_is_not_all_computed_waits_at_its_target() -> None:
    made, moves = world()
    one = request(7, 10)
    made.requests[7] = one
    one.step(RequestStep.DISPATCH)
    place(one, made.ready[0])
    one.step(RequestStep.START)
    begun(made, moves, one)
    assert moves.done(Arrival(7, 0, 6, 0), 1)
    check(made, moves)
    assert (one.state, one.cached_tokens) == (RequestState.PREFILLING, 6)
    assert list(made.ready[1].waiting) == [7]


def test_what_lost_its_blocks_and_lacks_only_one_token_of_them_decodes_at_its_target() -> None:
    made, moves = world()
    one = decoding(made)
    made.ready[0].fall_back(one)
    for step in (RequestStep.PREEMPT, RequestStep.START):
        one.step(step)
    begun(made, moves, one)
    assert moves.done(Arrival(7, 0, 10, 1), 1)
    check(made, moves)
    assert one.state is RequestState.DECODING


def test_failure_leaves_all_as_it_was() -> None:
    made, moves = world()
    one = standing(made)
    begun(made, moves, one)
    assert moves.failed(7, 0) is None, "of an instance that does not take it"
    moved = moves.failed(7, 1)
    assert moved is not None
    assert moved.request is one
    check(made, moves)
    assert (made.ready[1].planned_tokens, made.ready[1].requests) == (0, 0)
    assert moves.failed(7, 1) is None


def test_client_that_leaves_is_told_to_the_target_whose_word_still_ends_the_move() -> None:
    made, moves = world()
    one = standing(made)
    assert moves.cancel(one, WHY) == []
    begun(made, moves, one)
    assert moves.cancel(one, WHY) == [Cancel(7, 1, WHY)]
    made.ready[0].remove(one)
    del made.requests[7]
    assert 7 in moves
    assert not moves.done(Arrival(7, 0, 10, 1), 1), "nobody wants it there"
    check(made, moves)
    assert made.ready[1].planned_tokens == 0


def lose(made: Cluster, number: int) -> None:
    made.instances.pop(number).step(InstanceStep.LOSE)
    made.note_ready()


def test_target_is_asked_when_the_source_dies_and_may_have_it() -> None:
    made, moves = world()
    one = decoding(made)
    source = made.ready[0]
    begun(made, moves, one)
    lose(made, 0)
    (command,) = moves.lose_source(source)
    assert isinstance(command, Abandon)
    assert (command.request_id, command.target_id, command.reason.why) == (7, 1, Why.SOURCE_LOST)
    assert (one.state, one.instance_id) == (RequestState.IN_TRANSIT, None)
    check(made, moves)
    assert moves.done(Arrival(7, 0, 10, 1), 1)
    check(made, moves)
    assert one.state is RequestState.DECODING


def test_target_is_asked_too_about_what_has_ended_at_the_source_that_dies() -> None:
    """It waits for an answer that nobody will give."""
    made, moves = world()
    one = decoding(made)
    source = made.ready[0]
    begun(made, moves, one)
    source.remove(one)
    del made.requests[7]
    lose(made, 0)
    (command,) = moves.lose_source(source)
    assert isinstance(command, Abandon)
    assert moves.failed(7, 1) is not None
    check(made, moves)


def test_source_that_gave_a_request_back_while_it_moved_may_die() -> None:
    """It has lost it already. That once broke the control plane."""
    made, moves = world()
    one = decoding(made)
    source = made.ready[0]
    begun(made, moves, one)
    source.remove(one)
    asked = moves.lose_request(one)
    check(made, moves)
    lose(made, 0)
    assert moves.lose_source(source) == asked
    assert (one.state, one.instance_id) == (RequestState.IN_TRANSIT, None)
    assert moves.done(Arrival(7, 0, 10, 1), 1)
    check(made, moves)
    assert one.state is RequestState.DECODING


def test_target_that_dies_ends_its_moves_only() -> None:
    made, moves = world(3)
    one, other = standing(made), decoding(made, 8)
    moves.begin(one, made.ready[1], WHY, 2.0)
    moves.begin(other, made.ready[2], WHY, 2.0)
    target = made.ready[1]
    lose(made, 1)
    (ended,) = moves.lose_target(target)
    assert ended.request is one
    assert list(moves.under_way) == [8]
    assert moves.lose_source(target) == []
    check(made, moves)


def test_computing_anew_is_ordered_where_it_is_quicker_and_nothing_was_handed_off() -> None:
    made, moves = world()
    for instance in made.ready:
        instance.capacity = replace(instance.capacity, kv_token_bytes=10**9)
    one = standing(made)
    assert begun(made, moves, one).recomputes, "11 GB over 20 GB/s, or 11 ms"
    moves.failed(7, 1)
    assert not begun(made, moves, one, at_first_token=True).recomputes


def test_what_the_target_is_believed_to_have_is_not_sent() -> None:
    made, moves = world()
    target = made.ready[1]
    for instance in made.ready:
        instance.capacity = replace(instance.capacity, kv_token_bytes=10**9)
    one = standing(made, prompt_tokens=100, block_hashes=tuple(block_hashes(range(100), 16)))
    target.resident.add(one.block_hashes)
    begun(made, moves, one, at_first_token=True)
    assert one.context_tokens - target.cached_tokens(one) == 5
    network = made.network
    assert network.backlog_s(target.id, 2.0) == pytest.approx(5e9 / network.bytes_s)


def test_moves_that_cannot_be_are_our_own_bugs() -> None:
    made, moves = world(3)
    one = standing(made)
    begun(made, moves, one)
    with pytest.raises(AssertionError, match="moves already"):
        moves.begin(one, made.ready[2], WHY, 2.0)
    bare = Migrations(made, Links())
    assert not bare.can(made.ready[0], made.ready[1])
    with pytest.raises(AssertionError, match="not linked"):
        bare.begin(decoding(made, 8), made.ready[1], WHY, 2.0)


def test_moves_never_go_round_in_a_circle() -> None:
    """What waits for blocks here, of which those for what is to come are taken, must not be what that waits for."""
    made, migrations = world(3)
    first, second, third = made.ready
    migrations.begin(decoding(made, 1), second, WHY, 1.0)
    assert not migrations.can(second, first)
    assert migrations.can(second, third)
    assert migrations.can(third, first)
    other = request(2)
    made.requests[2] = other
    other.step(RequestStep.DISPATCH)
    place(other, second)
    migrations.begin(other, third, WHY, 1.0)
    assert not migrations.can(third, first)
    assert migrations.can(first, third)
    migrations.failed(1, second.id)
    assert migrations.can(third, first)
    migrations.check()
