"""The two ends of a move: each answer by hand, and worlds in which words and copies come when they like."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from helpers import soak
from helpers.bodies import TEXT, Answered, Arrived, Body, Call, Ends, Order, Word
from helpers.builders import SIMPLE, scheduler, sequence
from hyperflexis.core.blocks import BlockPool
from hyperflexis.core.handover import NOWHERE, ROUNDS_MAX, Answer, Complete, Failure, Giver, Pull, Taker
from hyperflexis.core.latency import OnlineLatency
from hyperflexis.core.prefix import block_hashes
from hyperflexis.core.slo import Slo
from hyperflexis.core.step import Sequence, StepRules, StepScheduler

SLOW_S = 1.0
"""What a block takes on a link that is slower than any decode."""


def body(**settings_: Any) -> Body:
    return Body(scheduler(**settings_))


def decoding(prompt: int = 40, max_tokens: int = 60, **settings_: Any) -> tuple[Body, Giver]:
    """Sequence 0 has its first token."""
    made = body(**settings_)
    made.scheduler.add(sequence(0, prompt=prompt, max_tokens=max_tokens))
    made.step()
    return made, Giver(made.scheduler)


def answers(giver: Giver, *, may_stop: bool = True) -> list[Answer]:
    found = giver.answers(may_stop=may_stop)
    giver._scheduler.check()
    return found


def the_answer(giver: Giver, *, may_stop: bool = True) -> Answer:
    (found,) = answers(giver, may_stop=may_stop)
    return found


# Who gives.


def test_settled_blocks_are_told_between_steps_and_the_decode_goes_on() -> None:
    source, giver = decoding(prompt=42)
    giver.call(Call(0, 1, block_s=SLOW_S))
    answer = the_answer(giver, may_stop=False)
    one = source.scheduler._sequences[0]
    assert answer == Answer(0, 1, 0, 10, one.blocks[:10], 40, one.tenure, is_last=False)
    assert not giver.is_called()
    assert len(source.step().decodes) == 1


def test_rest_of_one_block_is_the_last_answer_and_only_at_a_steps_end() -> None:
    source, giver = decoding(prompt=42)
    giver.call(Call(0, 1, since=10, tenure=0))
    assert answers(giver, may_stop=False) == []
    assert giver.is_called()
    assert giver.may_stop()
    answer = the_answer(giver)
    assert (answer.is_last, answer.since, answer.until, answer.computed) == (True, 10, 11, 42)
    assert list(source.scheduler.moves.suspended) == [0]
    assert not source.step().chunks
    assert answers(giver) == []


@pytest.mark.parametrize(("block_s", "is_last"), [(0.00036, True), (0.00037, False)])
def test_rest_is_little_if_its_copy_takes_a_tenth_of_a_step(block_s: float, is_last: bool) -> None:
    """A step takes 11 ms, and three blocks are left."""
    _, giver = decoding(prompt=42)
    giver.call(Call(0, 1, since=8, tenure=0, block_s=block_s))
    assert the_answer(giver).is_last is is_last


def test_link_slower_than_the_decode_ends_after_so_many_rounds() -> None:
    """Each round's copy lasts for eight tokens, which are two blocks more to copy."""
    source, target = decoding(prompt=42, max_tokens=200)[0], body()
    giver, taker = Giver(source.scheduler), Taker(target.scheduler)
    step: object = taker.begin(0, 1, 42, 242, block_s=SLOW_S)
    rounds = []
    for _ in range(100):
        if isinstance(step, Call):
            rounds.append(step.round)
            giver.call(step)
            found: list[Answer] = []
            while not found:
                source.step()
                found = answers(giver)
            step = taker.take(found[0])
        elif isinstance(step, Pull):
            for _ in range(8):
                source.step()
            step = taker.copied(0, 1, SLOW_S)
        else:
            break
    assert isinstance(step, Complete)
    assert rounds == list(range(ROUNDS_MAX + 1))
    assert step.computed == source.scheduler._sequences[0].computed


def test_what_waits_moves_at_once_and_with_nothing() -> None:
    source, target = body(), body()
    source.scheduler.add(sequence(0))
    giver, taker = Giver(source.scheduler), Taker(target.scheduler)
    call = taker.begin(0, 1, 8, 12)
    assert isinstance(call, Call)
    giver.call(call)
    answer = the_answer(giver)
    assert (answer.is_last, answer.since, answer.until, list(answer.blocks)) == (True, 0, 0, [])
    assert taker.take(answer) == Complete(0, 1, 0)
    assert len(taker) == 0


def test_prefill_that_is_not_to_be_handed_off_moves_as_far_as_it_has_got() -> None:
    source = body(prefill_tokens_max=6)
    source.scheduler.add(sequence(0, prompt=20))
    source.step()
    giver = Giver(source.scheduler)
    giver.call(Call(0, 1))
    answer = the_answer(giver)
    assert (answer.is_last, answer.until, answer.computed) == (True, 2, 6)


def test_hand_off_tells_each_steps_blocks_by_itself_and_its_first_token_with_the_last() -> None:
    source = body(prefill_tokens_max=6, hands_off=True)
    source.scheduler.add(sequence(0, prompt=20))
    giver = Giver(source.scheduler)
    giver.call(Call(0, 1, at_first_token=True))
    assert not giver.may_stop(), "no step is needed for it but its own"
    told = []
    for _ in range(4):
        source.step()
        told += [(each.since, each.until, each.computed, each.is_last) for each in answers(giver)]
        assert answers(giver, may_stop=False) == [], "nothing is told twice"
    assert told == [(0, 1, 4, False), (1, 3, 12, False), (3, 4, 16, False), (4, 5, 20, True)]
    assert list(source.scheduler.moves.suspended) == [0]
    assert not giver.is_called()


def test_what_was_handed_off_is_told_between_steps_too() -> None:
    _, giver = decoding(hands_off=True)
    giver.call(Call(0, 1, at_first_token=True))
    assert the_answer(giver, may_stop=False).is_last


def test_hand_off_of_what_decodes_moves_like_any_other() -> None:
    """Its instance has another role now."""
    source, giver = decoding(prompt=42)
    giver.call(Call(0, 1, since=10, tenure=0, at_first_token=True))
    assert answers(giver, may_stop=False) == []
    assert the_answer(giver).is_last
    assert giver.left(0, 1)
    assert len(source.step().decodes) == 1


def test_offer_is_the_last_answer_of_no_move() -> None:
    source, giver = decoding(prompt=42, hands_off=True)
    offer = giver.offer(0)
    assert (offer.is_last, offer.move, offer.since, offer.until, offer.computed) == (True, NOWHERE, 0, 11, 42)
    giver.call(Call(0, 1, at_first_token=True))
    assert the_answer(giver) == offer._replace(move=1)
    with pytest.raises(AssertionError, match="not here"):
        giver.offer(5)
    assert source.scheduler.held(0) is not None


def test_what_is_to_be_computed_anew_stands_still_at_a_steps_end_and_is_told_without_a_block() -> None:
    source, giver = decoding(prompt=42)
    giver.call(Call(0, 1, recomputes=True))
    assert answers(giver, may_stop=False) == []
    answer = the_answer(giver)
    assert (answer.is_last, answer.until, list(answer.blocks), answer.computed) == (True, 0, [], 0)
    assert list(source.scheduler.moves.suspended) == [0]
    giver.call(Call(0, 2, recomputes=True))
    assert the_answer(giver, may_stop=False).is_last, "it stands still already"
    assert not giver.left(0, 2)
    assert giver.left(0, 1), "the first of them made it stand still"


@pytest.mark.parametrize("at_first_token", [False, True])
def test_what_is_not_here_is_gone(at_first_token: bool) -> None:
    giver = Giver(body().scheduler)
    giver.call(Call(7, 3, at_first_token=at_first_token))
    answer = the_answer(giver, may_stop=False)
    assert (answer.request_id, answer.move, answer.is_gone, answer.is_last) == (7, 3, True, False)
    assert not giver.is_called()


def test_lost_blocks_are_gone_for_who_was_told_of_them_and_not_for_others() -> None:
    source, giver = decoding(prompt=10, max_tokens=6, blocks=4)
    before = source.scheduler.held(0)
    assert before is not None
    source.scheduler.add(sequence(1, prompt=12, max_tokens=1, priority=1))
    assert source.step().preempted == [0]
    giver.call(Call(0, 1, since=2, tenure=before.tenure))
    assert the_answer(giver).is_gone
    giver.call(Call(0, 2))
    assert not the_answer(giver).is_gone


def test_hand_off_that_loses_its_blocks_between_two_answers_is_gone() -> None:
    source = body(blocks=4, prefill_tokens_max=8, hands_off=True, order="deadline")
    source.scheduler.add(sequence(0, prompt=14, max_tokens=2))
    giver = Giver(source.scheduler)
    giver.call(Call(0, 1, at_first_token=True))
    source.step()
    assert the_answer(giver).until == 2
    source.scheduler.add(sequence(1, prompt=15, max_tokens=1, slo=Slo(ttft_s=0.1)))
    assert source.step().preempted == []
    assert answers(giver) == []
    assert source.step().preempted == [0]
    assert the_answer(giver).is_gone
    assert not giver.is_called()


def test_newer_call_takes_the_place_of_an_older_one() -> None:
    _, giver = decoding()
    giver.call(Call(0, 1, block_s=SLOW_S))
    giver.call(Call(0, 2, block_s=SLOW_S))
    assert [each.move for each in answers(giver)] == [2]


def test_taken_is_forgotten() -> None:
    source, giver = decoding(prompt=20, max_tokens=9, blocks=20)
    giver.call(Call(0, 1))
    assert the_answer(giver).is_last
    giver.taken(0)
    assert source.scheduler.is_idle()
    assert source.scheduler.pool.blocks_free == 20
    assert not giver.left(0, 1)
    assert not giver.stay(0)
    giver.taken(0)


def test_left_lets_go_on_only_what_stands_still_for_that_move() -> None:
    source, giver = decoding()
    giver.call(Call(0, 2))
    assert the_answer(giver).is_last
    assert not giver.left(0, 1), "an earlier one"
    assert list(source.scheduler.moves.suspended) == [0]
    assert giver.left(0, 2)
    assert not giver.left(0, 2)
    assert len(source.step().decodes) == 1


def test_left_forgets_the_call_of_that_move_only() -> None:
    _, giver = decoding()
    giver.call(Call(0, 2, since=10, tenure=0))
    assert not giver.left(0, 1)
    assert giver.is_called()
    assert not giver.left(0, 2)
    assert not giver.is_called()


def test_what_was_handed_off_stands_still_when_it_is_left_and_goes_on_when_told_to_stay() -> None:
    source, giver = decoding(hands_off=True)
    giver.call(Call(0, 1, at_first_token=True))
    assert the_answer(giver).is_last
    assert not giver.left(0, 1)
    assert list(source.scheduler.moves.suspended) == [0]
    assert giver.stay(0)
    assert not giver.stay(0)
    assert len(source.step().decodes) == 1


def test_what_has_ended_is_forgotten_here() -> None:
    source, giver = decoding()
    giver.call(Call(0, 1, since=10, tenure=0))
    giver.forget(0)
    source.scheduler.cancel(0)
    assert not giver.is_called()
    assert not giver.left(0, 1)


# Who takes.


def told(since: int, until: int, move: int = 1, tenure: int = 0, *, computed: int | None = None) -> Answer:
    """Blocks of four tokens; with `computed` it is the last one."""
    is_last = computed is not None
    tokens = computed if computed is not None else 4 * until
    return Answer(0, move, since, until, list(range(since, until)), tokens, tenure, is_last)


GONE = Answer(0, 1, 0, 0, (), 0, NOWHERE, is_last=False)


def taking(blocks: int = 10, tokens: int = 20, tokens_max: int = 40, **options: Any) -> tuple[StepScheduler, Taker]:
    made = scheduler(blocks=blocks)
    taker = Taker(made)
    call = taker.begin(0, 1, tokens, tokens_max, **options)
    assert call == Call(0, 1, **options)
    return made, taker


def test_without_room_nothing_begins() -> None:
    made = scheduler(blocks=4)
    taker = Taker(made)
    assert taker.begin(0, 1, 17, 17) == Failure(0, 1, "there is no room for it", ())
    assert isinstance(taker.begin(1, 2, 4, 17), Failure), "it could not grow to that"
    assert len(taker) == 0
    assert not made.moves.expected


def test_rounds_ask_for_what_was_added() -> None:
    made, taker = taking(block_s=0.5)
    mine = made.moves.expected[0]
    assert taker.take(told(0, 3)) == Pull(0, 1, [0, 1, 2], mine[:3], 12)
    assert taker.copied(0, 1, 0.25) == Call(0, 1, 3, 0, 1, 0.25)
    assert taker.take(told(3, 4)) == Pull(0, 1, [3], mine[3:4], 4)
    assert taker.copied(0, 1, 0.125) == Call(0, 1, 4, 0, 2, 0.125)
    assert taker.take(told(4, 5, computed=18)) == Pull(0, 1, [4], mine[4:5], 2)
    assert taker.copied(0, 1, 0.1) == Complete(0, 1, 18)
    assert 0 not in taker
    assert list(made.moves.expected) == [0], "its blocks are kept until it is adopted"


def test_what_is_told_meanwhile_is_copied_afterwards() -> None:
    made, taker = taking(at_first_token=True)
    assert isinstance(taker.take(told(0, 1)), Pull)
    assert taker.take(told(1, 3)) is None
    assert taker.take(told(3, 5, computed=20)) is None
    step = taker.copied(0, 1, 0.1)
    assert isinstance(step, Pull)
    assert list(step.source_blocks) == [1, 2]
    step = taker.copied(0, 1, 0.1)
    assert isinstance(step, Pull)
    assert (list(step.source_blocks), step.tokens) == ([3, 4], 8)
    assert taker.copied(0, 1, 0.1) == Complete(0, 1, 20)
    assert list(made.moves.expected) == [0]


def test_hand_off_is_not_called_for_again() -> None:
    _, taker = taking(at_first_token=True)
    taker.take(told(0, 1))
    assert taker.copied(0, 1, 0.1) is None
    assert 0 in taker


def test_last_answer_with_nothing_new_completes_at_once() -> None:
    _, taker = taking()
    taker.take(told(0, 3))
    taker.copied(0, 1, 0.1)
    assert taker.take(told(3, 3, computed=12)) == Complete(0, 1, 12)


def test_room_grows_with_the_sequence_or_the_move_fails() -> None:
    made, taker = taking(blocks=6, tokens_max=24)
    mine = list(made.moves.expected[0])
    taker.take(told(0, 4))
    taker.copied(0, 1, 0.1)
    step = taker.take(told(4, 6))
    assert isinstance(step, Pull)
    assert len(made.moves.expected[0]) == 6
    taker.copied(0, 1, 0.1)
    step = taker.take(told(6, 7, computed=27))
    assert isinstance(step, Failure)
    assert "no room for what it has become" in step.why
    assert set(mine) < set(step.soiled)
    assert made.pool.blocks_free == 6


def test_gone_ends_the_move() -> None:
    made, taker = taking()
    assert taker.take(GONE) == Failure(0, 1, "it has left its instance, or lost its blocks there", ())
    assert made.pool.blocks_free == 10
    assert taker.take(GONE) is None


def test_gone_during_a_copy_ends_the_move_and_its_end_is_ignored() -> None:
    made, taker = taking()
    mine = tuple(made.moves.expected[0])
    taker.take(told(0, 3))
    assert taker.take(GONE) == Failure(0, 1, "it has left its instance, or lost its blocks there", mine)
    assert taker.copied(0, 1, 0.1) is None


def test_other_tenure_than_before_ends_the_move() -> None:
    _, taker = taking(at_first_token=True)
    taker.take(told(0, 3))
    step = taker.take(told(3, 4, tenure=1))
    assert isinstance(step, Failure)
    assert "lost its blocks" in step.why


def test_words_of_other_moves_are_ignored() -> None:
    _, taker = taking()
    taker.take(told(0, 3))
    assert taker.take(told(3, 4, move=2)) is None
    assert taker.copied(0, 2, 0.1) is None
    assert taker.take(told(3, 4)._replace(request_id=5)) is None
    assert isinstance(taker.copied(0, 1, 0.1), Call)


def test_move_given_up_before_anything_was_copied_soils_nothing() -> None:
    made, taker = taking()
    assert taker.fail(0, "why not") == Failure(0, 1, "why not", ())
    assert taker.fail(0, "why not") is None
    assert made.pool.blocks_free == 10


def test_copy_that_nobody_ordered_is_our_own_bug() -> None:
    _, taker = taking()
    with pytest.raises(AssertionError, match="nothing of request 0"):
        taker.copied(0, 1, 0.1)


# What the taker has already.


def knowing(tokens: int, blocks: int = 10, seqs_max: int = 16) -> Body:
    """A target, in blocks of four, whose prefix cache holds the beginning of `TEXT`, so many tokens of it."""
    made = body(blocks=blocks, seqs_max=seqs_max)
    made.scheduler.add(sequence(9, prompt=TEXT[:tokens], max_tokens=1))
    made.step()
    assert made.scheduler.is_idle()
    return made


def hashes(tokens: int) -> list[bytes]:
    return block_hashes(TEXT[:tokens], 4)


def test_what_the_prefix_cache_has_is_neither_asked_for_nor_copied() -> None:
    target = knowing(14)
    taker = Taker(target.scheduler)
    assert taker.begin(0, 1, 20, 40, hashes=hashes(20)) == Call(0, 1, since=3)
    mine = target.scheduler.moves.expected[0]
    assert taker.take(told(3, 4)) == Pull(0, 1, [3], mine[3:4], 4)
    assert taker.copied(0, 1, 0.1) == Call(0, 1, 4, 0, 1, 0.1)
    assert taker.take(told(4, 5, computed=19)) == Pull(0, 1, [4], mine[4:5], 3)
    assert taker.copied(0, 1, 0.1) == Complete(0, 1, 19)


def test_offer_is_copied_from_what_is_new_on() -> None:
    target = knowing(14)
    taker = Taker(target.scheduler)
    taker.begin(0, 1, 20, 40, at_first_token=True, hashes=hashes(20))
    mine = target.scheduler.moves.expected[0]
    assert taker.take(told(0, 5, computed=19)) == Pull(0, 1, [3, 4], mine[3:5], 7)


def test_last_block_is_computed_even_if_all_of_it_is_known() -> None:
    target = knowing(16)
    taker = Taker(target.scheduler)
    call = taker.begin(0, 1, 16, 40, hashes=hashes(16))
    assert isinstance(call, Call)
    assert call.since == 3, "the last token's block is written to"


def test_blocks_that_were_found_cannot_be_evicted_before_the_sequence_is_here() -> None:
    """Others take everything that is left, and the cache with it."""
    target = knowing(14, blocks=6)
    taker = Taker(target.scheduler)
    taker.begin(0, 1, 16, 20, hashes=hashes(16))
    found = target.scheduler.moves.expected[0][:3]
    target.scheduler.add(sequence(1, prompt=8, max_tokens=1))
    target.step()
    assert target.scheduler.pool.blocks_free == 2
    assert target.scheduler.pool.find(hashes(12)) == found
    assert taker.begin(2, 2, 9, 12) == Failure(2, 2, "there is no room for it", ())


def test_room_that_only_the_found_blocks_would_give_is_none() -> None:
    """Three of its five blocks are cached, and count as free until they are held."""
    target = knowing(14, blocks=4)
    assert isinstance(Taker(target.scheduler).begin(0, 1, 20, 20, hashes=hashes(20)), Failure)
    target = knowing(14, blocks=5)
    assert isinstance(Taker(target.scheduler).begin(0, 1, 20, 20, hashes=hashes(20)), Call)
    target.scheduler.check()
    assert target.scheduler.pool.blocks_free == 0


def test_move_that_fails_gives_back_what_was_found_as_it_was() -> None:
    target = knowing(14)
    taker = Taker(target.scheduler)
    taker.begin(0, 1, 20, 40, hashes=hashes(20))
    mine = target.scheduler.moves.expected[0]
    assert taker.fail(0, "why not") == Failure(0, 1, "why not", ()), "nothing was written"
    taker.begin(0, 2, 20, 40, hashes=hashes(20))
    taker.take(told(3, 5, move=2))
    failure = taker.fail(0, "why not")
    assert isinstance(failure, Failure)
    assert set(failure.soiled).isdisjoint(mine[:3])
    assert target.scheduler.pool.find(hashes(12)) == mine[:3]
    assert target.scheduler.pool.blocks_free == 10
    target.scheduler.check()


def test_prefill_that_is_behind_what_the_target_knows_goes_on_from_there() -> None:
    source, target = body(prefill_tokens_max=6), knowing(14)
    source.scheduler.add(sequence(0, prompt=TEXT[:20]))
    source.step()
    giver, taker = Giver(source.scheduler), Taker(target.scheduler)
    call = taker.begin(0, 1, 20, 24, hashes=hashes(20))
    assert isinstance(call, Call)
    giver.call(call)
    answer = the_answer(giver)
    assert (answer.is_last, answer.since, answer.until, answer.computed) == (True, 3, 3, 6)
    assert taker.take(answer) == Complete(0, 1, 12)


def test_what_waits_is_sent_without_a_block_and_finds_them_when_it_begins() -> None:
    source, target = body(), knowing(14)
    source.scheduler.add(sequence(0, prompt=TEXT[:20]))
    giver, taker = Giver(source.scheduler), Taker(target.scheduler)
    call = taker.begin(0, 1, 20, 24, hashes=hashes(20))
    assert isinstance(call, Call)
    giver.call(call)
    assert taker.take(the_answer(giver)) == Complete(0, 1, 0)
    target.scheduler.adopt(sequence(0, prompt=TEXT[:20]), 0, target.now)
    assert target.step().started == [(0, 12)]


# Everything at once.


class Submit(NamedTuple):
    """A request that begins, or begins again."""

    sequence: Sequence


class Taken(NamedTuple):
    request_id: int


class Stay(NamedTuple):
    request_id: int
    move: int | None


class Cancel(NamedTuple):
    request_id: int


class Abandon(NamedTuple):
    request_id: int


class Relay(NamedTuple):
    """A peer's word, on its way through the driver."""

    peer: int
    word: Word


class Report(NamedTuple):
    """What an instance says of a step."""

    emitted: dict[int, int]
    ended: list[int]
    suspended: list[int]
    resumed: list[int]
    arrived: list[Arrived]
    offers: dict[int, Answered]


class Failed(NamedTuple):
    request_id: int


@dataclass
class Asked:
    """A request whose answer is not complete."""

    prompt: int
    max_tokens: int
    priority: int
    emitted: int = 0
    home: int | None = None
    """Who has it, as far as has been heard; nobody knows while its instance is dead and another may have it."""
    stands: bool = False
    is_handed_off: bool = False
    offer: Answered | None = None


class Moving(NamedTuple):
    source: int
    target: int
    move: int
    at_first_token: bool


class Act(NamedTuple):
    """Something that happens; the numbers choose among what is possible then."""

    name: str
    which: int
    where: int
    size: int


ACTS = [*["step"] * 6, *["deliver"] * 8, *["copy"] * 4, *["add"] * 2, *["move"] * 3]
ACTS += ["cancel", "abandon", "stay", "lose", "change_role"]


@dataclass
class World:
    """Instances and their driver, which knows only what it has heard: every pair's words come in order, and late."""

    blocks: int
    block_tokens: int
    names: bool
    chunk: int
    ends: dict[int, Ends] = field(default_factory=dict)
    to_end: dict[int, deque[Any]] = field(default_factory=dict)
    to_driver: dict[int, deque[Any]] = field(default_factory=dict)
    asked: dict[int, Asked] = field(default_factory=dict)
    moving: dict[int, Moving] = field(default_factory=dict)
    outcomes: dict[int, str] = field(default_factory=dict)
    moves: int = 0
    added: int = 0

    def open(self, *, hands_off: bool) -> None:
        number = len(self.ends) and max(self.ends) + 1
        rules = StepRules(prefill_tokens_max=self.chunk, prefill_tokens_floor=2, hands_off=hands_off)
        pool = BlockPool(self.blocks, self.block_tokens)
        made = Body(StepScheduler(pool, 5, OnlineLatency(SIMPLE), rules, names_blocks=self.names), self.names)
        self.to_end[number], self.to_driver[number] = deque(), deque()
        self.ends[number] = Ends(
            number,
            made,
            self.ends,
            say=lambda to, word: self.to_driver[number].append((to, word)),
            fail=lambda failure: self.to_driver[number].append(Failed(failure.request_id)),
        )

    # -- what happens

    def play(self, acts: list[Act]) -> None:
        for act in acts:
            getattr(self, act.name)(act)
            self.check()
        for _ in range(400):
            if not (self.asked or self.moving or any(self.to_end.values()) or any(self.to_driver.values())):
                break
            self.settle()
        self.settle()  # What nobody waits for any more is still to be answered.
        self.settle()
        assert not self.asked, f"never ended: {self.asked}"
        assert not self.moving
        for end in self.ends.values():
            end.check_empty()
        assert len(self.outcomes) == self.added

    def settle(self) -> None:
        """Let everything that is on its way arrive, and everyone take a step."""
        for number, one in self.asked.items():
            if one.is_handed_off:
                self.let_stay(number, one)
        for number, end in self.ends.items():
            self.step_end(number)
            for copy in list(end.copies):
                end.end_copy(copy)
        for queue in (self.to_driver, self.to_end):
            for number in list(queue):
                while queue[number]:
                    self.hand_over(queue, number)
        self.check()

    def pick(self, act: Act) -> int:
        return sorted(self.ends)[act.where % len(self.ends)]

    def add(self, act: Act) -> None:
        prompt, max_tokens = 1 + act.size % 20, 1 + act.which % 12
        if prompt + max_tokens > self.blocks * self.block_tokens:
            return
        self.asked[self.added] = Asked(prompt, max_tokens, act.which % 2)
        self.added += 1
        self.submit(self.added - 1, self.pick(act))

    def submit(self, number: int, home: int) -> None:
        one = self.asked[number]
        one.home, one.stands, one.is_handed_off, one.offer = home, False, False, None
        self.to_end[home].append(Submit(self.sequence(number, one)))

    def sequence(self, number: int, one: Asked) -> Sequence:
        fields: dict[str, Any] = {"priority": one.priority, "reuses_prefix": number % 3 > 0}
        if one.emitted:
            fields["first_token_s"] = 0.0
        if not self.names:
            return Sequence(number, [], one.prompt, one.max_tokens, Slo(), 0.0, emitted=one.emitted, **fields)
        own = 1_000_000 * (number + 1)
        shared = TEXT[: one.prompt * (number % 2)]
        text = [*shared[: one.prompt // 2], *(own + i for i in range(one.prompt - len(shared) // 2))]
        return sequence(number, text, one.max_tokens, [900 + i for i in range(one.emitted)], **fields)

    def hashes(self, number: int, one: Asked) -> tuple[bytes, ...]:
        """What names its content to whoever takes it."""
        made = self.sequence(number, one)
        return tuple(block_hashes(made.tokens, self.block_tokens)) if made.reuses_prefix else ()

    def step(self, act: Act) -> None:
        for _ in range(1 + act.size % 3):
            self.step_end(self.pick(act))

    def step_end(self, number: int) -> None:
        end = self.ends[number]
        end.answer()
        before = set(end.body.ended)
        plan = end.body.step()
        ended = [each for each in end.body.ended if each not in before]
        # Of these alone, as live: what stands still may be another's by the time that this is heard.
        computed = {chunk.sequence.id for chunk in plan.chunks}
        emitted = {one.id: one.emitted for one in end.body.scheduler.sequences() if one.id in computed}
        here = [each for each in plan.handed_off if end.body.scheduler.find(each) is not None]
        news, letters = end.end_step(here)
        assert end.body.scheduler.rules.hands_off or not here
        self.to_driver[number].append(Report(emitted, ended, *news))
        self.to_driver[number].extend(letters)

    def deliver(self, act: Act) -> None:
        queues = [(queue, number) for queue in (self.to_driver, self.to_end) for number in queue if queue[number]]
        if queues:
            queue, number = queues[act.which % len(queues)]
            for _ in range(min(len(queue[number]), 1 + act.size % 4)):
                self.hand_over(queue, number)

    def hand_over(self, queue: dict[int, deque[Any]], number: int) -> None:
        said = queue[number].popleft()
        if queue is self.to_end:
            self.tell(self.ends[number], said)
        else:
            self.hear(number, said)

    def copy(self, act: Act) -> None:
        copies = [(end, copy) for end in self.ends.values() for copy in end.copies]
        if copies:
            end, copy = copies[act.which % len(copies)]
            end.end_copy(copy)

    def move(self, act: Act) -> None:
        able = [number for number, one in self.asked.items() if number not in self.moving and one.home is not None]
        if len(self.ends) < 2 or not able:
            return
        number = able[act.size % len(able)]
        one = self.asked[number]
        others = [each for each in sorted(self.ends) if each != one.home]
        target, at_first_token = others[act.where % len(others)], one.is_handed_off or act.which % 3 == 0
        assert one.home is not None
        if self.leads(target, one.home):
            return
        self.moves += 1
        self.moving[number] = Moving(one.home, target, self.moves, at_first_token)
        offer = one.offer if one.is_handed_off and act.which % 2 else None
        recomputes = not at_first_token and act.size % 4 == 0
        one.is_handed_off = False
        tokens, tokens_max = one.prompt + one.emitted, one.prompt + one.max_tokens
        block_s = (0.0, 0.01, 0.1)[act.which % 3]
        hashes = self.hashes(number, one)
        self.to_end[target].append(
            Order(number, self.moves, one.home, tokens, tokens_max, at_first_token, offer, block_s, recomputes, hashes)
        )

    def leads(self, begin: int, end: int) -> bool:
        """Whether moves go from one instance to another: the control plane begins none that would close a circle."""
        ways = [(moving.source, moving.target) for moving in self.moving.values()]
        reached = {begin}
        while more := {target for source, target in ways if source in reached} - reached:
            reached |= more
        return end in reached

    def stay(self, act: Act) -> None:
        held = [(number, one) for number, one in self.asked.items() if one.is_handed_off]
        if held:
            self.let_stay(*held[act.which % len(held)])

    def let_stay(self, number: int, one: Asked) -> None:
        assert one.home is not None
        one.is_handed_off, one.offer = False, None
        self.to_end[one.home].append(Stay(number, None))

    def abandon(self, act: Act) -> None:
        """The driver would rather not; its source may live."""
        for number in sorted(self.moving)[act.which % 4 :][:1]:
            self.to_end[self.moving[number].target].append(Abandon(number))

    def cancel(self, act: Act) -> None:
        live = sorted(self.asked)
        for number in live[act.which % len(live) :][:1] if live else []:
            home = self.asked[number].home
            if number in self.moving:
                self.to_end[self.moving[number].target].append(Cancel(number))
            if home is not None:
                self.to_end[home].append(Cancel(number))
            for end in self.ends.values():
                end.body.unread.add(number)
            self.conclude(number, "cancelled")

    def change_role(self, act: Act) -> None:
        made = self.ends[self.pick(act)].body.scheduler
        made.reconfigure(
            StepRules(prefill_tokens_max=self.chunk, prefill_tokens_floor=2, hands_off=not made.rules.hands_off)
        )

    def lose(self, act: Act) -> None:
        """An instance dies, and what it had said and nobody has heard is lost."""
        if act.size % 3:
            return
        lost = self.pick(act)
        self.open(hands_off=self.ends[lost].body.scheduler.rules.hands_off)
        for table in (self.ends, self.to_end, self.to_driver):
            del table[lost]
        for number, one in list(self.asked.items()):
            if one.home == lost and number not in self.moving:
                self.submit(number, self.pick(act))
        for number, moving in list(self.moving.items()):
            if moving.source == lost:
                self.to_end[moving.target].append(Abandon(number))
                if number in self.asked:
                    self.asked[number].home = None
            elif moving.target == lost:
                self.end_move(number, act.where)

    # -- the driver

    def hear(self, number: int, said: Any) -> None:
        if isinstance(said, Report):
            self.hear_report(number, said)
        elif isinstance(said, Failed):
            if said.request_id in self.moving and self.moving[said.request_id].target == number:
                self.end_move(said.request_id, number)
        else:
            to, word = said
            if to in self.to_end:
                self.to_end[to].append(Relay(number, word))

    def hear_report(self, number: int, report: Report) -> None:
        for each in report.resumed:
            if (one := self.asked.get(each)) and one.home == number:
                one.stands, one.is_handed_off, one.offer = False, False, None
        for arrived in report.arrived:
            self.hear_arrived(number, arrived)
        for each, emitted in report.emitted.items():
            if (one := self.asked.get(each)) and one.home == number:
                assert emitted >= one.emitted, f"request {each} has lost tokens"
                one.emitted = emitted
        for each in report.suspended:
            if (one := self.asked.get(each)) and one.home == number:
                one.stands, one.is_handed_off = True, each not in self.moving
                one.offer = report.offers.get(each)
        for each in report.ended:
            if (one := self.asked.get(each)) and one.home == number:
                sequence = self.ends[number].body.ended[each]
                assert sequence.emitted == one.max_tokens
                assert not self.names or sequence.tokens[one.prompt :] == [900 + i for i in range(one.max_tokens)]
                self.conclude(each, "ended")

    def hear_arrived(self, number: int, arrived: Arrived) -> None:
        each = arrived.request_id
        moving = self.moving.get(each)
        if moving is None or moving.target != number:
            self.to_end[number].append(Cancel(each))
            return
        del self.moving[each]
        event("arrived")
        one = self.asked.get(each)
        if one is None:
            self.to_end[number].append(Cancel(each))
            return
        if moving.source in self.to_end:
            self.to_end[moving.source].append(Taken(each))
        assert arrived.emitted >= one.emitted, f"request {each} has lost tokens"
        one.home, one.emitted = number, arrived.emitted
        one.stands, one.is_handed_off, one.offer = False, False, None

    def end_move(self, number: int, where: int) -> None:
        moving = self.moving.pop(number)
        event("failed")
        one = self.asked.get(number)
        if one is None:
            return
        if one.home is None:
            self.submit(number, sorted(self.ends)[where % len(self.ends)])
        elif one.stands and moving.at_first_token:
            one.is_handed_off = True
        else:
            self.to_end[one.home].append(Stay(number, None if one.stands else moving.move))

    def conclude(self, number: int, how: str) -> None:
        assert number not in self.outcomes, f"request {number} ended twice"
        self.outcomes[number] = how
        event(how)
        del self.asked[number]

    # -- the instances

    def tell(self, end: Ends, said: Any) -> None:
        if isinstance(said, Submit):
            end.body.scheduler.add(said.sequence)
        elif isinstance(said, Order):
            end.take_in(said)
            if end.body.scheduler.moves.found.get(said.request_id):
                event("found some of it")
        elif isinstance(said, Taken):
            end.taken(said.request_id)
        elif isinstance(said, Stay):
            end.stay(said.request_id, said.move)
        elif isinstance(said, Cancel):
            end.cancel(said.request_id)
        elif isinstance(said, Abandon):
            end.abandon(said.request_id)
        else:
            assert isinstance(said, Relay)
            end.hear(said.peer, said.word)

    def check(self) -> None:
        for end in self.ends.values():
            end.check()


@st.composite
def worlds(draw: st.DrawFn) -> World:
    block_tokens = draw(st.sampled_from([1, 2, 4]))
    blocks = draw(st.integers(24, 64)) // block_tokens
    made = World(blocks, block_tokens, draw(st.sampled_from([True, True, False])), draw(st.integers(3, 20)))
    for number in range(draw(st.integers(2, 3))):
        made.open(hands_off=draw(st.booleans()) and number < 2)
    return made


@pytest.mark.soak
@settings(max_examples=soak.examples(150))
@given(
    worlds(),
    st.lists(
        st.builds(Act, st.sampled_from(ACTS), st.integers(0, 30), st.integers(0, 5), st.integers(0, 30)),
        min_size=60,
        max_size=120,
    ),
)
def test_everything_ends_once_with_what_it_would_have_been_whatever_comes_late(world: World, acts: list[Act]) -> None:
    world.play(acts)
