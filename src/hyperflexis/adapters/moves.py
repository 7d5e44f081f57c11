"""An instance's ends of moves, spoken to in messages: the core's giver and taker, and what they say to those of peers.

The same for every kind of instance; what differs, how KV is copied and what a sequence is beside it, is its body's.
What peers say to each other passes through their driver as bytes, in the order in which it was said. Rules of order
keep a request in one place, whoever dies when:

    last answer   after the report that has the sequence's last token here
    left          before the word of the failure, so that it is not heard after the next taker's call
    taken         is the driver's to say, to the source, when a report has told it: so nobody forgets a sequence before
                  it is known where it is, or after it was sent back

Calls all methods between two steps, and knows neither clock nor transport.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import msgspec

from hyperflexis.adapters.sequences import sequence_of
from hyperflexis.core.handover import Answer, Call, Complete, Failure, Giver, Pull, Taker, TakerStep
from hyperflexis.core.step import Sequence, StepScheduler
from hyperflexis.wire.messages import Arrived, MoveFailed, SequenceState, TakeIn, TokenLogprobs, ToPeer

# What peers say.


class Parting(msgspec.Struct, frozen=True, array_like=True):
    """What goes with a sequence's last blocks."""

    emitted: list[int]
    first_token_age_s: float | None
    prompt_logprobs: list[TokenLogprobs] | None
    """As in `SequenceState`."""


class Called(msgspec.Struct, frozen=True, array_like=True, tag=0):
    call: Call


class Answered(msgspec.Struct, frozen=True, array_like=True, tag=1):
    answer: Answer
    parting: Parting | None = None
    """With the last answer."""


class Left(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """It is wanted no more."""

    request: int
    move: int


PeerWord = Called | Answered | Left
_decoder: msgspec.msgpack.Decoder[PeerWord] = msgspec.msgpack.Decoder(PeerWord)
_encode = msgspec.msgpack.Encoder().encode


# What moves need of an instance, and what they tell it.


class Body(Protocol):
    """The instance that moves have an end in."""

    def say(self, news: ToPeer | MoveFailed) -> None:
        """Tell the driver."""

    def refusal(self, peer: int, link_version: int) -> str:
        """Why nothing can be taken from there by this link; empty if it can."""

    def block_s(self, peer: int) -> float:
        """What a block takes to be copied, as far as is known."""

    def pull(self, pull: Pull, peer: int) -> None:
        """Begin a copy. `Moves.copied` is to be called when it has ended, whatever the end."""

    def stop_pull(self, request_id: int) -> None:
        """Let a copy end soon."""

    def state_of(self, sequence: Sequence) -> SequenceState:
        """A sequence that stands still, besides its KV."""

    def adopt(self, sequence_id: int, state: SequenceState) -> None:
        """A sequence goes on here."""

    def forget(self, sequence_id: int) -> None:
        """It goes on elsewhere."""

    def scrub(self, blocks: list[int]) -> None:
        """These may hold half a copy. They are free."""


class StepMoves(NamedTuple):
    """What a report says of moves."""

    suspended: list[int]
    resumed: list[int]
    arrived: list[Arrived]
    offers: dict[int, bytes]


@dataclass(slots=True)
class _Taking:
    """A sequence on its way here."""

    order: TakeIn
    sequence: Sequence
    """As far as the order knows it. All that takes longer the longer it is, is done before it stands still."""
    parting: Parting | None = None
    parted_s: float = 0.0
    """When that was heard, which is what its duration refers to."""
    copying: Pull | None = None
    heard: deque[Answered] = field(default_factory=deque)
    """While something was being copied."""
    given_up: str = ""
    """Why, once what is being copied has ended."""
    copied_tokens: int = 0
    copied_s: float = 0.0


class Moves:
    """All moves that one instance is an end of."""

    def __init__(self, scheduler: StepScheduler, body: Body) -> None:
        self._scheduler = scheduler
        self._body = body
        self._giver = Giver(scheduler)
        self._taker = Taker(scheduler)
        self._takings: dict[int, _Taking] = {}
        self._callers: dict[int, int] = {}
        """Request → the peer that asked for it last."""
        self._resumed: list[int] = []
        self._arrived: list[Arrived] = []
        self._letters: list[ToPeer] = []
        """To be said after the next report."""

    def has_news(self) -> bool:
        """Whether a report is due although no step runs."""
        return bool(self._arrived or self._resumed) or self._giver.may_stop()

    # -- orders

    def take_in(self, order: TakeIn, now: float) -> None:
        """Begin to take a sequence from a peer."""
        request_id, submit = order.submit.request, order.submit
        why = self._body.refusal(order.source, order.link_version)
        if why:
            self._body.say(MoveFailed(request_id, why))
            return
        sequence = sequence_of(submit, now)
        self._scheduler.name_content(sequence)
        taking = self._takings[request_id] = _Taking(order, sequence)
        step = self._taker.begin(
            request_id,
            order.move,
            order.tokens,
            len(submit.prompt) + submit.max_tokens,
            block_s=self._body.block_s(order.source),
            at_first_token=order.at_first_token,
            recomputes=order.recomputes,
            hashes=sequence.hashes,
        )
        offered = _decoder.decode(order.offer) if order.offer else None
        if isinstance(step, Call) and isinstance(offered, Answered):
            answer = offered.answer._replace(move=order.move)
            self._take(taking, Answered(answer, offered.parting), now)
        else:
            self._do(step, now)

    def abandon(self, request_id: int, now: float, why: str = "it was given up") -> None:
        """Take a sequence no more, unless it is here; nothing if nobody is taking it."""
        taking = self._takings.get(request_id)
        if taking is None:
            return
        if taking.copying is None:
            self._do(self._taker.fail(request_id, why), now)
        elif not taking.given_up:  # Its blocks are written to until the copy has ended.
            taking.given_up = why
            self._body.stop_pull(request_id)

    def stay(self, request_id: int, move: int | None) -> None:
        """Let a sequence that stands still (for this move) go on here."""
        if self._giver.stay(request_id) if move is None else self._giver.left(request_id, move):
            self._resumed.append(request_id)

    def cancelled(self, request_id: int, now: float) -> None:
        """Its client has left."""
        self._giver.forget(request_id)
        self._callers.pop(request_id, None)
        self.abandon(request_id, now, "its client has left")

    # -- what peers say

    def hear(self, peer: int, payload: bytes, now: float) -> None:
        """Take what a peer has said."""
        word = _decoder.decode(payload)
        if isinstance(word, Called):
            self._callers[word.call.request_id] = peer
            self._giver.call(word.call)
        elif isinstance(word, Answered):
            taking = self._takings.get(word.answer.request_id)
            if taking is not None and taking.order.move == word.answer.move:  # Else it is late.
                self._take(taking, word, now)
        else:
            self._leave(word)

    def _leave(self, word: Left) -> None:
        if self._giver.left(word.request, word.move):
            self._resumed.append(word.request)
        if not self._giver.is_called_for(word.request):
            self._callers.pop(word.request, None)

    def taken(self, request_id: int) -> bool:
        """A sequence goes on elsewhere; returns whether it was still here."""
        self._callers.pop(request_id, None)
        was_here = self._scheduler.find(request_id) is not None
        self._giver.taken(request_id)
        if was_here:
            self._body.forget(request_id)
        return was_here

    # -- the taker's end

    def copied(self, request_id: int, why: str, seconds: float, now: float) -> None:
        """Take the end of a copy: `why` it has failed, or how long it took."""
        taking = self._takings[request_id]
        pull, taking.copying = taking.copying, None
        assert pull is not None, f"nothing of request {request_id} was being copied"
        why = taking.given_up or why
        if why:
            self._do(self._taker.fail(request_id, why), now)
            return
        taking.copied_tokens += pull.tokens
        taking.copied_s += seconds
        self._do(self._taker.copied(request_id, pull.move, self._body.block_s(taking.order.source)), now)
        while taking.heard and taking.copying is None and request_id in self._takings:
            self._take(taking, taking.heard.popleft(), now)

    def _take(self, taking: _Taking, answered: Answered, now: float) -> None:
        if answered.parting is not None and taking.parting is None:
            taking.parting, taking.parted_s = answered.parting, now
        if taking.copying is not None:
            taking.heard.append(answered)
            return
        self._do(self._taker.take(answered.answer), now)

    def _do(self, step: TakerStep | None, now: float) -> None:
        if step is None:
            return
        taking = self._takings[step.request_id]
        if isinstance(step, Call):
            self._say(taking.order.source, Called(step))
        elif isinstance(step, Pull):
            taking.copying = step
            self._body.pull(step, taking.order.source)
        elif isinstance(step, Complete):
            self._adopt(step, taking, now)
        else:
            self._give_up(step, taking)

    def _adopt(self, step: Complete, taking: _Taking, now: float) -> None:
        del self._takings[step.request_id]
        order, submit, parting = taking.order, taking.order.submit, taking.parting
        assert parting is not None, f"request {step.request_id} came without a word"
        age_s = parting.first_token_age_s
        taking.sequence.catch_up(parting.emitted, None if age_s is None else taking.parted_s - age_s)
        self._scheduler.adopt(taking.sequence, step.computed, now)
        state = SequenceState(submit.prompt, parting.emitted, submit.sampling, parting.prompt_logprobs)
        self._body.adopt(step.request_id, state)
        emitted = len(parting.emitted)
        self._arrived.append(
            Arrived(step.request_id, order.source, step.computed, emitted, taking.copied_tokens, taking.copied_s)
        )

    def _give_up(self, failure: Failure, taking: _Taking) -> None:
        del self._takings[failure.request_id]
        if failure.soiled:
            self._body.scrub(list(failure.soiled))
        self._say(taking.order.source, Left(failure.request_id, failure.move))
        self._body.say(MoveFailed(failure.request_id, failure.why))

    # -- the giver's end

    def answer(self, now: float) -> None:
        """Tell callers what can be told while everything goes on."""
        if self._giver.is_called():
            for answered, peer in self._answers(now, may_stop=False):
                self._say(peer, answered)

    def end_step(self, handed_off: list[int], now: float) -> StepMoves:
        """A step ends: let stand still what is to, and return what is to be reported with it."""
        standing = set(self._scheduler.moves.suspended)
        called = set()
        for answered, peer in self._answers(now, may_stop=True):
            called.add(answered.answer.request_id)
            self._letters.append(_letter(peer, answered))
        stopped = [i for i in self._scheduler.moves.suspended if i not in standing]
        offers = {i: self._offer(i, now) for i in handed_off if i not in called}
        if self._callers and not self._giver.is_called():
            self._callers = {i: caller for i, caller in self._callers.items() if self._scheduler.find(i) is not None}
        told = StepMoves([*handed_off, *stopped], self._resumed, self._arrived, offers)
        self._resumed, self._arrived = [], []
        return told

    def letters(self) -> list[ToPeer]:
        """What is to be said now that the report is out."""
        letters, self._letters = self._letters, []
        return letters

    def _answers(self, now: float, *, may_stop: bool) -> list[tuple[Answered, int]]:
        found = []
        for answer in self._giver.answers(may_stop=may_stop):
            peer = self._callers[answer.request_id]
            if answer.is_gone:
                del self._callers[answer.request_id]
            parting = self._parting(answer.request_id, now) if answer.is_last else None
            found.append((Answered(answer, parting), peer))
        return found

    def _offer(self, request_id: int, now: float) -> bytes:
        return _encode(Answered(self._giver.offer(request_id), self._parting(request_id, now)))

    def _parting(self, request_id: int, now: float) -> Parting:
        sequence = self._scheduler.find(request_id)
        assert sequence is not None
        state, first_s = self._body.state_of(sequence), sequence.first_token_s
        return Parting(state.emitted, None if first_s is None else now - first_s, state.prompt_logprobs)

    def _say(self, peer: int, word: PeerWord) -> None:
        self._body.say(_letter(peer, word))


def _letter(peer: int, word: PeerWord) -> ToPeer:
    return ToPeer(peer, _encode(word))
