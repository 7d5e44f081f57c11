"""The two ends of a migration, by turns: who has the sequence gives, who will have it takes. Both are pure.

The taker drives. It sets blocks aside and calls; the giver answers with what is settled and goes on computing; the
taker copies and calls again for what was added. When next to nothing is left, the giver lets the sequence stand still
and answers for the last time; the taker copies the rest and adopts it. So the pause is the last blocks' copy, whatever
the context (Llumnix, a published system, migrates in such rounds).

    taker   Call ─▶            ─▶ Call                ─▶ (adopted) taken
    giver         Answer ─▶            Answer(is_last) ─▶
    copies          [settled blocks]     [the rest]

A hand-off is the same, but for the instant at which the sequence stands still, which is its first token: as the taker
asked for it, the giver tells each of its prefill steps' blocks as they settle, without being called again.

What the taker's prefix cache has of the sequence it neither asks for nor copies.

Knows neither messages nor bytes, nor how long anything takes, but for what it is told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Series
from dataclasses import dataclass, field
from typing import NamedTuple

from hyperflexis.core.moving import Held
from hyperflexis.core.step import StepScheduler

REST_SHARE = 0.1
"""Of a step: the most that the copy of what is left may take when the sequence stands still for it. A whole step would
make the pause grow with the context wherever all of that is copied within one, as it is in shared memory."""
ROUNDS_MAX = 8
"""Copies made while the sequence goes on. A link slower than the decode would need them without an end."""
NOWHERE = -1
"""The tenure of a sequence that is not there, and what a taker knows of it before the first answer."""


class Call(NamedTuple):
    """What the taker has, and wants to hear of the rest."""

    request_id: int
    move: int
    """Which attempt to move it this is: words of an earlier one may still be on their way."""
    since: int = 0
    """Blocks that it has already."""
    tenure: int = NOWHERE
    round: int = 0
    block_s: float = 0.0
    """What a block takes to be copied, as far as the taker knows."""
    at_first_token: bool = False
    """The sequence is handed off: it stands still with its first token, and not before."""
    recomputes: bool = False
    """Nothing is to be copied: that would take longer than to compute it anew."""


class Answer(NamedTuple):
    """What there is to be copied."""

    request_id: int
    move: int
    since: int
    until: int
    """Blocks from index `since` up to this one are told here."""
    blocks: Series[int]
    """Their names; none where blocks are only counted."""
    computed: int
    """Tokens that the blocks up to `until` hold."""
    tenure: int
    is_last: bool
    """It stands still, and this is all there is."""

    @property
    def is_gone(self) -> bool:
        """Whether it is not there any more, or what had been told of it is not."""
        return self.tenure == NOWHERE


class Giver:
    """The moves away from one instance. Calls are answered between steps."""

    def __init__(self, scheduler: StepScheduler) -> None:
        self._scheduler = scheduler
        self._calls: dict[int, Call] = {}
        """Unanswered, or to be told more without being asked."""
        self._stopped: dict[int, int] = {}
        """Those that stand still because a last answer was given, and to which move."""

    def call(self, call: Call) -> None:
        """Note what a taker wants to hear; `answers` has the answer as soon as there is one."""
        self._calls[call.request_id] = call

    def answers(self, *, may_stop: bool) -> list[Answer]:
        """All that can be answered now.

        With `may_stop`, what has little left to copy stands still from now on. That is for the end of a step, which
        is then reported with it.
        """
        found = []
        for call in list(self._calls.values()):
            answer = self._answer(call, may_stop=may_stop)
            if answer is None:
                continue
            found.append(answer)
            if call.at_first_token and not answer.is_last and not answer.is_gone:
                self._calls[call.request_id] = call._replace(since=answer.until, tenure=answer.tenure)
            else:
                del self._calls[call.request_id]
        return found

    def offer(self, sequence_id: int) -> Answer:
        """The last answer for a sequence that has been handed off, before anyone calls. It is of no move yet."""
        held = self._scheduler.held(sequence_id)
        assert held is not None, f"sequence {sequence_id} is offered and not here"
        return self._last(sequence_id, NOWHERE, held)

    def has_stopped(self, sequence_id: int) -> bool:
        """Whether it stands still for a move that called for it, and not because it was handed off."""
        return sequence_id in self._stopped

    def may_stop(self) -> bool:
        """Whether someone waits for a sequence that stands still only at the end of a step."""
        return any(not call.at_first_token for call in self._calls.values())

    def is_called(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._calls)

    def is_called_for(self, sequence_id: int) -> bool:
        """Whether somebody waits for an answer about this one."""
        return sequence_id in self._calls

    def taken(self, sequence_id: int) -> None:
        """It goes on elsewhere: forget it here."""
        self._calls.pop(sequence_id, None)
        self._stopped.pop(sequence_id, None)
        self._scheduler.cancel(sequence_id)

    def left(self, sequence_id: int, move: int) -> bool:
        """The taker has given this move up; returns whether it goes on here again. What was handed off still stands."""
        call = self._calls.get(sequence_id)
        if call is not None and call.move == move:
            del self._calls[sequence_id]
        return self._stopped.get(sequence_id) == move and self.stay(sequence_id)

    def stay(self, sequence_id: int) -> bool:
        """Let it go on here if it stands still; returns whether it did."""
        self._calls.pop(sequence_id, None)
        self._stopped.pop(sequence_id, None)
        if sequence_id not in self._scheduler.moves.suspended:
            return False
        self._scheduler.resume(sequence_id)
        return True

    def forget(self, sequence_id: int) -> None:
        """It was cancelled or has ended."""
        self._calls.pop(sequence_id, None)
        self._stopped.pop(sequence_id, None)

    def _answer(self, call: Call, *, may_stop: bool) -> Answer | None:
        held = self._scheduler.held(call.request_id, call.since)
        if held is None or call.tenure not in {NOWHERE, held.tenure}:
            return Answer(call.request_id, call.move, 0, 0, (), 0, NOWHERE, is_last=False)
        if call.recomputes:
            return self._bare(call, held, may_stop=may_stop)
        if call.request_id in self._scheduler.moves.suspended:
            return self._last(call.request_id, call.move, held)
        sequence = self._scheduler.find(call.request_id)
        # What decodes here although it was to be handed off moves like any other: its instance has another role now.
        may_go = not call.at_first_token or (sequence is not None and sequence.decodes is not None)
        if may_go and self._is_near(call, held):
            if not may_stop:
                return None
            self._stopped[call.request_id] = call.move
            self._scheduler.suspend(call.request_id)
            stopped = self._scheduler.held(call.request_id, call.since)
            assert stopped is not None
            return self._last(call.request_id, call.move, stopped)
        block_tokens = self._scheduler.pool.block_tokens
        until = held.computed // block_tokens
        if until <= call.since:
            return None
        settled = held.settled(block_tokens)
        tokens = until * block_tokens
        return Answer(call.request_id, call.move, call.since, until, settled, tokens, held.tenure, is_last=False)

    def _bare(self, call: Call, held: Held, *, may_stop: bool) -> Answer | None:
        """The last answer, without a block, as soon as it may stand still."""
        if call.request_id not in self._scheduler.moves.suspended:
            if not may_stop:
                return None
            self._stopped[call.request_id] = call.move
            self._scheduler.suspend(call.request_id)
        return Answer(call.request_id, call.move, 0, 0, (), 0, held.tenure, is_last=True)

    def _is_near(self, call: Call, held: Held) -> bool:
        """Whether the copy of what is left is next to nothing beside a step, or does not become less."""
        left = self._scheduler.pool.blocks_for(held.computed) - call.since
        decodes = self._scheduler.decodes
        step_s = self._scheduler.latency.decode_step_s(len(decodes), decodes.context_tokens)
        return left <= 1 or left * call.block_s <= REST_SHARE * step_s or call.round >= ROUNDS_MAX

    def _last(self, sequence_id: int, move: int, held: Held) -> Answer:
        until = max(held.since, self._scheduler.pool.blocks_for(held.computed))  # The taker may have more of it.
        return Answer(sequence_id, move, held.since, until, held.blocks, held.computed, held.tenure, is_last=True)


class Pull(NamedTuple):
    """Copy these blocks of the giver's into those of ours."""

    request_id: int
    move: int
    source_blocks: Series[int]
    target_blocks: Series[int]
    tokens: int
    """How many they hold."""


class Complete(NamedTuple):
    """Everything has been copied: so many tokens are computed, and the sequence is to be adopted."""

    request_id: int
    move: int
    computed: int


class Failure(NamedTuple):
    """The move is over, and nothing of it is left here but what stands in these blocks."""

    request_id: int
    move: int
    why: str
    soiled: Series[int]
    """Blocks of ours that may hold half a copy."""


TakerStep = Call | Pull | Complete | Failure


@dataclass(slots=True)
class _Taking:
    call: Call
    tokens_max: int
    blocks: list[int]
    found: int
    """Blocks that were here before, and are others' too."""
    copied: int
    """Blocks that are here."""
    pulling: Answer | None = None
    told: deque[Answer] = field(default_factory=deque)
    """To be pulled after that."""


class Taker:
    """The moves to one instance. Each of them ends with `Complete` or `Failure`, once."""

    def __init__(self, scheduler: StepScheduler) -> None:
        self._scheduler = scheduler
        self._taking: dict[int, _Taking] = {}

    def __len__(self) -> int:
        return len(self._taking)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._taking

    def begin(
        self,
        request_id: int,
        move: int,
        tokens: int,
        tokens_max: int,
        *,
        block_s: float = 0.0,
        at_first_token: bool = False,
        recomputes: bool = False,
        hashes: Series[bytes] = (),
    ) -> Call | Failure:
        """Set blocks for `tokens` aside for a sequence that may grow to `tokens_max`; returns what to ask for.

        `hashes` name its content, as far as that may be shared.
        """
        blocks = self._scheduler.expect(request_id, tokens, tokens_max, () if recomputes else hashes)
        if blocks is None:
            return Failure(request_id, move, "there is no room for it", ())
        found = self._scheduler.moves.found.get(request_id, 0)
        call = Call(request_id, move, found, block_s=block_s, at_first_token=at_first_token, recomputes=recomputes)
        self._taking[request_id] = _Taking(call, tokens_max, blocks, found, found)
        return call

    def take(self, answer: Answer) -> TakerStep | None:
        """Hear an answer; None while what was told before is still being copied. Answers for others are ignored."""
        taking = self._taking.get(answer.request_id)
        if taking is None or taking.call.move != answer.move:
            return None
        if answer.is_gone:
            return self.fail(answer.request_id, "it has left its instance, or lost its blocks there")
        if taking.call.tenure not in {NOWHERE, answer.tenure}:
            return self.fail(answer.request_id, "it has lost its blocks meanwhile")
        taking.call = taking.call._replace(tenure=answer.tenure)
        taking.told.append(answer)
        return None if taking.pulling is not None else self._next(taking)

    def copied(self, request_id: int, move: int, block_s: float) -> TakerStep | None:
        """What was to be pulled is here, and took so long by the block; returns what is next.

        None if the giver is about to say more by itself, or if this move is over.
        """
        taking = self._taking.get(request_id)
        if taking is None or taking.call.move != move:
            return None
        answer, taking.pulling = taking.pulling, None
        assert answer is not None, f"nothing of request {request_id} was being copied"
        taking.copied = max(taking.copied, answer.until)
        taking.call = taking.call._replace(block_s=block_s)
        if answer.is_last:
            del self._taking[request_id]
            # What has not begun begins here as what is sent here does: with what the prefix cache has by then.
            found_tokens = taking.found * self._scheduler.pool.block_tokens if answer.computed else 0
            return Complete(request_id, move, max(answer.computed, found_tokens))
        if taking.told:
            return self._next(taking)
        if taking.call.at_first_token:
            return None
        taking.call = taking.call._replace(since=taking.copied, round=taking.call.round + 1)
        return taking.call

    def fail(self, request_id: int, why: str) -> Failure | None:
        """Give a move up; None if there is none."""
        taking = self._taking.pop(request_id, None)
        if taking is None:
            return None
        self._scheduler.release(request_id)
        has_copied = taking.copied > taking.found or taking.pulling
        soiled = taking.blocks[taking.found :] if has_copied else ()
        return Failure(request_id, taking.call.move, why, tuple(soiled))

    def _next(self, taking: _Taking) -> TakerStep | None:
        answer = taking.told.popleft()
        blocks = self._scheduler.expect(answer.request_id, answer.computed, taking.tokens_max)
        if blocks is None:
            return self.fail(answer.request_id, "there is no room for what it has become")
        taking.blocks, taking.pulling = blocks, answer
        since = max(answer.since, taking.copied)
        if since >= answer.until:  # Nothing of it has been computed, or all is here.
            return self.copied(answer.request_id, answer.move, taking.call.block_s)
        tokens = answer.computed - since * self._scheduler.pool.block_tokens
        source_blocks = answer.blocks[since - answer.since :]
        return Pull(answer.request_id, answer.move, source_blocks, blocks[since : answer.until], tokens)
