"""One end of a move at a time: what is said when, and what is held back until a copy has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from adapters.bodies import Bystander
from helpers.builders import scheduler
from hyperflexis.adapters.moves import Answered, Called, Left, Parting, PeerWord
from hyperflexis.adapters.stepping import StepOutcome, Stepping
from hyperflexis.core.handover import NOWHERE, Answer, Call
from hyperflexis.wire.messages import (
    Abandon,
    FromPeer,
    MoveFailed,
    Sampling,
    Stay,
    StepReport,
    Submit,
    TakeIn,
    Taken,
    TokenLogprobs,
    ToPeer,
)

PEER = 5
BLOCK_TOKENS = 4


class End:
    """An instance that a test steps by hand."""

    def __init__(self, **options: int) -> None:
        self.body = Bystander()
        self.stepping = Stepping(scheduler(block_tokens=BLOCK_TOKENS, **options), self.body)
        self.now = 100.0

    @property
    def free(self) -> int:
        return self.stepping.scheduler.pool.blocks_free

    def submit(self, request: int = 1, prompt: int = 10, max_tokens: int = 20) -> None:
        assert self.stepping.submit(submit(request, prompt, max_tokens), self.now)

    def step(self, errors: dict[int, str] | None = None) -> StepReport:
        self.now += 0.01
        self.stepping.moves.answer(self.now)
        plan = self.stepping.scheduler.plan(self.now)
        errors = errors or {}
        sampled = {chunk.sequence.id: 7 for chunk in plan.chunks if chunk.samples and chunk.sequence.id not in errors}
        report, _ = self.stepping.report(plan, StepOutcome(sampled, 0.01, errors), self.now)
        self.stepping.scheduler.check()
        return report

    def order(self, order: Any) -> None:
        self.stepping.order(order, self.now)
        self.stepping.scheduler.check()

    def hear(self, word: PeerWord) -> None:
        self.order(FromPeer(PEER, msgspec.msgpack.encode(word)))

    def said(self) -> list[PeerWord | MoveFailed]:
        """What it has said at once, since it was asked last."""
        said, self.body.said = self.body.said, []
        return words(said)

    def letters(self) -> list[PeerWord | MoveFailed]:
        """What was to be said after the report."""
        return words(self.stepping.moves.letters())

    def copied(self, why: str = "", request: int = 1) -> None:
        self.stepping.moves.copied(request, why, 0.01, self.now)
        self.stepping.scheduler.check()


def words(said: Sequence[ToPeer | MoveFailed]) -> list[PeerWord | MoveFailed]:
    found: list[PeerWord | MoveFailed] = []
    for news in said:
        if isinstance(news, ToPeer):
            assert news.peer == PEER
            found.append(msgspec.msgpack.decode(news.payload, type=PeerWord))
        else:
            found.append(news)
    return found


def submit(request: int = 1, prompt: int = 10, max_tokens: int = 20, **fields: Any) -> Submit:
    return Submit(request, [request * 100 + i for i in range(prompt)], [], max_tokens, Sampling(), **fields)


def take_in(move: int = 1, tokens: int = 10, **fields: Any) -> TakeIn:
    values = {"submit": submit(), "source": PEER, "move": move, "tokens": tokens, "link_version": 1, **fields}
    return TakeIn(**values)


def answer(move: int = 1, since: int = 0, until: int = 3, computed: int = 10, **fields: Any) -> Answered:
    values = {"tenure": 0, "is_last": False, **fields}
    parting = values.pop("parting", None)
    blocks = list(range(20 + since, 20 + until))
    return Answered(Answer(1, move, since, until, blocks, computed, **values), parting)


LAST = answer(computed=10, is_last=True, parting=Parting([7], 0.5, None))
GONE = answer(since=0, until=0, computed=0, tenure=NOWHERE)


# -- the taker


def test_sequence_is_taken_in() -> None:
    end = End()
    end.order(take_in())
    assert end.said() == [Called(Call(1, 1))]
    end.hear(LAST)
    heard_s = end.now
    ((pull, peer),) = end.body.pulls
    assert (peer, list(pull.source_blocks), pull.tokens) == (PEER, [20, 21, 22], 10)
    assert end.step().arrived == []
    end.copied()
    assert end.body.adopted[1].emitted == [7]
    report = end.step()
    (arrived,) = report.arrived
    assert (arrived.request, arrived.source, arrived.computed_tokens, arrived.emitted_tokens) == (1, PEER, 10, 1)
    assert (arrived.copied_tokens, arrived.copied_s) == (10, 0.01)
    assert (report.requests, report.steps) == ([1], 2)
    sequence = end.stepping.scheduler.find(1)
    assert sequence is not None
    assert sequence.first_token_s == heard_s - 0.5, "its pace begins with its first token, not with its arrival"


def test_what_was_computed_here_before_is_not_copied() -> None:
    """Eight of its ten tokens stand in blocks that the prefix cache still has."""
    end = End()
    end.submit(9)
    same = msgspec.structs.replace(submit(9), request=1)
    while end.stepping.scheduler.find(9) is not None:
        end.step()
    end.order(take_in(submit=same))
    assert end.said() == [Called(Call(1, 1, since=2))]
    end.hear(answer(since=2, is_last=True, parting=Parting([7], 0.5, None)))
    ((pull, _),) = end.body.pulls
    assert (list(pull.source_blocks), pull.tokens) == ([22], 2)
    end.copied()
    (arrived,) = end.step().arrived
    assert (arrived.computed_tokens, arrived.copied_tokens) == (10, 2)


def test_what_nobody_may_share_is_copied_whole() -> None:
    """Its prompt's log-probabilities are wanted, which are computed with it."""
    end = End()
    end.submit(9)
    for _ in range(25):
        end.step()
    lone = msgspec.structs.replace(submit(9), request=1, sampling=Sampling(prompt_logprobs=True))
    end.order(take_in(submit=lone))
    assert end.said() == [Called(Call(1, 1))]


def test_first_token_is_as_old_as_the_order_says_where_it_says() -> None:
    end = End()
    end.order(take_in(submit=submit(first_token_age_s=2.0, waited_s=3.0)))
    end.hear(LAST)
    end.copied()
    sequence = end.stepping.scheduler.find(1)
    assert sequence is not None
    assert (sequence.arrived_s, sequence.first_token_s) == (97.0, 98.0)


def test_prompt_logprobs_come_with_it() -> None:
    end = End()
    read = [TokenLogprobs(3, -1.0, [], [])]
    end.order(take_in())
    end.hear(answer(until=2, computed=8, is_last=True, parting=Parting([], None, read)))
    end.copied()
    assert end.body.adopted[1].prompt_logprobs == read


def test_offer_is_taken_without_a_word() -> None:
    end = End()
    offer = msgspec.msgpack.encode(answer(move=NOWHERE, is_last=True, parting=Parting([7], 0.5, None)))
    end.order(take_in(move=9, offer=offer, at_first_token=True))
    end.copied()
    assert end.said() == []
    assert [arrived.request for arrived in end.step().arrived] == [1]


def test_copy_that_fails_leaves_nothing_behind() -> None:
    end = End()
    free = end.free
    end.order(take_in())
    end.hear(LAST)
    end.said()
    end.copied("bytes were lost")
    assert end.said() == [Left(1, 1), MoveFailed(1, "bytes were lost")]
    assert end.body.scrubbed == [list(end.body.pulls[0][0].target_blocks)]
    assert end.free == free


def test_blocks_that_are_written_to_are_nobody_elses() -> None:
    end = End()
    free = end.free
    end.order(take_in())
    end.hear(LAST)
    end.said()
    end.order(Abandon(1))
    end.order(Abandon(1))
    assert end.body.stopped == [1]
    assert end.free == free - 3
    assert end.said() == []
    end.copied()
    assert end.free == free
    assert end.said() == [Left(1, 1), MoveFailed(1, "it was given up")]


def test_answer_that_it_is_gone_waits_for_the_copy() -> None:
    end = End()
    free = end.free
    end.order(take_in(at_first_token=True))
    end.hear(answer(until=2, computed=8))
    end.hear(GONE)
    assert end.free == free - 3
    end.copied()
    assert end.free == free
    assert "left its instance" in end.said()[-1].why


def test_what_was_said_meanwhile_is_copied_next() -> None:
    end = End()
    end.order(take_in(at_first_token=True))
    end.hear(answer(until=1, computed=4))
    end.hear(answer(since=1, until=2, computed=8))
    end.hear(answer(since=2, until=3, computed=10, is_last=True, parting=Parting([7], 0.1, None)))
    for _ in range(3):
        end.copied()
    assert [list(pull.source_blocks) for pull, _ in end.body.pulls] == [[20], [21], [22]]
    assert [arrived.copied_tokens for arrived in end.step().arrived] == [10]


def test_late_answer_to_an_earlier_attempt_is_not_heard() -> None:
    end = End()
    end.order(take_in(move=1))
    end.order(Abandon(1))
    end.order(take_in(move=2))
    end.hear(LAST)
    assert end.body.pulls == []
    end.hear(answer(move=2, is_last=True, parting=Parting([7, 7], 0.5, None)))
    end.copied()
    assert end.body.adopted[1].emitted == [7, 7]


def test_cancelled_request_is_taken_in_no_more() -> None:
    end = End()
    free = end.free
    end.order(take_in())
    end.said()
    assert not end.stepping.cancel(1, end.now)
    assert end.said() == [Left(1, 1), MoveFailed(1, "its client has left")]
    assert end.free == free


def test_refused_link_is_a_failed_move() -> None:
    end = End()
    end.order(take_in(link_version=2))
    assert end.said() == [MoveFailed(1, "there is no such link with i5")]


def test_no_room_is_a_failed_move() -> None:
    end = End(blocks=2)
    end.order(take_in())
    assert "no room" in end.said()[-1].why


# -- the giver


def test_call_is_answered_while_everything_goes_on() -> None:
    end = End()
    end.submit(prompt=30)
    end.step()
    end.hear(Called(Call(1, 4, block_s=1.0)))
    report = end.step()
    (answered,) = end.said()
    assert isinstance(answered, Answered)
    assert (answered.answer.until, answered.answer.is_last, answered.parting) == (7, False, None)
    assert (report.requests, report.suspended) == ([1], [])


def test_last_answer_goes_out_after_the_report_of_its_last_token() -> None:
    end = End()
    end.submit()
    end.step()
    end.hear(Called(Call(1, 4)))
    report = end.step()
    assert (report.requests, report.suspended) == ([1], [1])
    assert end.said() == []
    (answered,) = end.letters()
    assert isinstance(answered, Answered)
    assert answered.answer.is_last
    assert answered.parting == Parting([7, 7], answered.parting and answered.parting.first_token_age_s, None)
    assert end.letters() == []
    end.order(Taken(1))
    assert end.body.forgotten == [1]
    assert end.stepping.scheduler.is_idle()
    assert end.step().blocks_free == end.stepping.scheduler.pool.blocks


def test_what_waits_stands_still_although_no_step_runs() -> None:
    end = End(seqs_max=1)
    end.submit(1)
    end.submit(2)
    end.step()
    end.hear(Called(Call(2, 4)))
    assert end.stepping.has_news(), "a report is due, with which it stands still"
    assert end.step().suspended == [2]


def test_sequence_goes_on_where_it_was_left() -> None:
    end = End()
    end.submit()
    end.step()
    end.hear(Called(Call(1, 4)))
    assert end.step().suspended == [1]
    assert end.step().requests == []
    end.hear(Left(1, 3))
    assert end.step().resumed == [], "that was another attempt"
    end.hear(Left(1, 4))
    report = end.step()
    assert (report.resumed, report.requests) == ([1], [1])
    end.order(Stay(1, 4))
    assert end.step().resumed == []


def test_caller_that_calls_too_late_and_leaves_is_forgotten() -> None:
    end = End()
    end.hear(Called(Call(1, 4)))
    end.hear(Left(1, 4))
    assert not end.stepping.moves._callers
    end.hear(Called(Call(1, 5)))
    end.hear(Left(1, 4))
    end.step()
    (answered,) = [*end.said(), *end.letters()]
    assert isinstance(answered, Answered)
    assert answered.answer.is_gone


def hand_off(end: End) -> StepReport:
    end.stepping.reconfigure({"hands_off": True}, 2)
    end.submit()
    return end.step()


def test_handed_off_sequence_is_offered() -> None:
    end = End()
    report = hand_off(end)
    assert (report.began, report.suspended, report.rules_version) == ([1], [1], 2)
    offered = msgspec.msgpack.decode(report.offers[1], type=PeerWord)
    assert isinstance(offered, Answered)
    assert offered.parting is not None
    assert (offered.answer.is_last, offered.parting.emitted) == (True, [7])
    assert end.letters() == end.said() == []


def test_handed_off_sequence_that_was_called_for_is_told_and_not_offered() -> None:
    end = End()
    end.stepping.reconfigure({"hands_off": True}, 2)
    end.submit()
    end.hear(Called(Call(1, 4, at_first_token=True)))
    report = end.step()
    assert (report.suspended, report.offers) == ([1], {})
    (answered,) = end.letters()
    assert isinstance(answered, Answered)
    assert answered.answer.is_last


def test_sequence_that_fails_with_its_first_token_is_not_handed_off() -> None:
    end = End()
    end.stepping.reconfigure({"hands_off": True}, 2)
    end.submit()
    end.hear(Called(Call(1, 4, at_first_token=True)))
    report = end.step(errors={1: "not finite"})
    assert (report.finished, report.suspended, report.offers) == ([1], [], {})
    (answered,) = end.letters()
    assert isinstance(answered, Answered)
    assert answered.answer.is_gone


def test_handed_off_sequence_still_stands_when_a_taker_has_left() -> None:
    end = End()
    hand_off(end)
    end.hear(Called(Call(1, 4, at_first_token=True)))
    end.step()
    end.hear(Left(1, 4))
    end.order(Stay(1, 4))
    assert end.step().resumed == []
    end.order(Stay(1))
    assert end.step().resumed == [1]


def test_call_for_what_is_not_there_is_answered_at_once() -> None:
    end = End()
    end.hear(Called(Call(1, 4)))
    end.stepping.moves.answer(end.now)
    (answered,) = end.said()
    assert isinstance(answered, Answered)
    assert answered.answer.is_gone


def test_nothing_is_remembered_of_what_has_gone() -> None:
    end = End()
    end.submit(max_tokens=2)
    end.step()
    end.hear(Called(Call(1, 4, block_s=1.0, at_first_token=True)))
    for _ in range(3):
        end.step()
    moves = end.stepping.moves
    assert (moves._callers, moves._takings, moves._giver._calls) == ({}, {}, {})
