"""Requests that leave one vLLM server for another, and what links between two servers need.

Stock vLLM lets nobody at a running sequence. What it can do is keep the KV of a prompt for another server: a prefilling
instance hands a request off with its first token and with parameters by which its peer fetches the KV
(`kv_transfer_params`). The peer generates the first token again, which is compared and not handed out twice. Every
other move is a recomputation: the source stops, the target gets prompt and answer so far as a new prompt. It is
reported as such: nothing was copied, everything is to be computed.

Kept KV is leased. A server that is asked after that answers as if nothing were wrong, from blocks that hold something
else; so nothing is fetched once our own clock says that the lease may be over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from hyperflexis.adapters.vllm import links
from hyperflexis.adapters.vllm.answer import End, Whole
from hyperflexis.adapters.vllm.pending import Pending
from hyperflexis.adapters.vllm.running import Owner, Running
from hyperflexis.wire.messages import (
    Abandon,
    Arrived,
    ExposeKv,
    FinishReason,
    FromPeer,
    LinkTo,
    MoveFailed,
    Order,
    Reclaim,
    Stay,
    Submit,
    TakeIn,
    Taken,
    ToPeer,
    Unlink,
)

log = logging.getLogger(__name__)

LEASE_MARGIN_S = 2.0
"""So long before a lease ends nothing is begun that would have to fetch within it."""


class Called(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The target wants it."""

    request: int
    move: int
    at_first_token: bool
    """But not before it has its first token."""


class Parted(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """It stands still, with so much of its answer."""

    request: int
    move: int | None
    emitted: list[int]
    given: int = 0
    """How many of these the source took for prompt; what the parameters lead to is the KV of the prompt with these."""
    params: dict[str, Any] | None = None
    until_s: float = 0.0
    """When its KV is kept no longer; on the clock that all adapters of this process share."""


class Gone(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """It is not here any more."""

    request: int
    move: int


class Left(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The target has given it up."""

    request: int
    move: int


Word = Called | Parted | Gone | Left
_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(Word).decode


class Body(links.Body, Protocol):
    """The adapter, as moves see it."""

    @property
    def pending(self) -> Pending: ...

    def run(self, running: Running) -> None: ...

    def find(self, request_id: int) -> Running | None: ...

    def drop(self, request_id: int) -> Running | None: ...

    def stop(self, request_id: int) -> Running | None: ...

    def report_soon(self) -> None: ...

    def later(self, action: Callable[[], None], delay_s: float = 0.0) -> None: ...


@dataclass(slots=True)
class _Standing:
    """A request that stands still here."""

    submit: Submit
    word: Parted
    stopped_for: int | None
    """The move for which it was stopped; None if it was handed off."""


class Moves:
    """The ends that one server has in moves and links."""

    def __init__(self, body: Body, owner: Owner, clock: Callable[[], float], lease_s: float) -> None:
        """`owner` is the adapter, as requests see it."""
        self._body = body
        self._owner = owner
        self._clock = clock
        self._lease_s = lease_s
        self._links = links.Links(body)
        self._standing: dict[int, _Standing] = {}
        self._callers: dict[int, tuple[int, int]] = {}
        """Request that is being prefilled → the peer and the move that wait for its first token."""
        self.taking: dict[int, TakeIn] = {}
        """On their way here."""
        self._letters: list[ToPeer] = []
        self._has_warned = False

    # -- orders

    def order(self, order: Order) -> None:
        """Take an order; what is not of moves and links is ignored."""
        if isinstance(order, ExposeKv | LinkTo | Unlink | Reclaim):
            self._links.order(order)
        elif isinstance(order, TakeIn):
            self._take_in(order)
        elif isinstance(order, Abandon):
            self._abandon(order.request)
        elif isinstance(order, Stay):
            self._stay(order.request, order.move)
        elif isinstance(order, Taken):
            self._standing.pop(order.request, None)
        elif isinstance(order, FromPeer):
            # Later, because what has come of it until then is reported first, and never within a call.
            self._body.later(lambda: self._hear(order.peer, _decode(order.payload)))

    def cancelled(self, request_id: int) -> None:
        """Its client has left."""
        self._standing.pop(request_id, None)
        self._callers.pop(request_id, None)
        self._give_up(request_id, "its client has left")

    def say_letters(self) -> None:
        """What is to be said now that the report is out."""
        letters, self._letters = self._letters, []
        for letter in letters:
            self._body.say(letter)

    # -- the source's end

    def ended(self, running: Running, end: End) -> bool:
        """Take the end of a request that came from elsewhere, or is to go there; False for any other."""
        order = self.taking.get(running.id)
        if order is not None:
            return self._failed_to_take(order, running, end)
        if running.is_prefill and isinstance(end, Whole) and end.reason is FinishReason.LENGTH:
            self._hand_off(running)
            return True
        if caller := self._callers.pop(running.id, None):
            self._letters.append(ToPeer(caller[0], _encode(Gone(running.id, caller[1]))))
        return False

    def _hand_off(self, running: Running) -> None:
        if running.params is None and not self._has_warned:
            self._has_warned = True
            log.warning("a prefilling server keeps no KV (it has no connector): its prompts are computed twice")
        word = Parted(
            running.id,
            None,
            running.emitted,
            running.given,
            running.params,
            self._clock() + self._lease_s - LEASE_MARGIN_S,
        )
        self._standing[running.id] = _Standing(running.submit, word, None)
        self._body.pending.suspended.append(running.id)
        caller = self._callers.pop(running.id, None)
        if caller is None:
            self._body.pending.offers[running.id] = _encode(word)
        else:
            peer, move = caller
            self._letters.append(ToPeer(peer, _encode(msgspec.structs.replace(word, move=move))))
        self._body.report_soon()

    def _hear(self, peer: int, word: Word) -> None:
        if isinstance(word, Called):
            self._call(peer, word)
        elif isinstance(word, Left):
            standing = self._standing.get(word.request)
            if standing is not None and standing.stopped_for == word.move:
                self._resume(word.request, standing)
            if self._callers.get(word.request, (peer, -1))[1] == word.move:
                del self._callers[word.request]
        elif word.request in self.taking and self.taking[word.request].move == word.move:
            if isinstance(word, Gone):
                self._give_up(word.request, "it has left its instance")
            else:
                self._take(self.taking[word.request], word)

    def _call(self, peer: int, word: Called) -> None:
        standing, running = self._standing.get(word.request), self._body.find(word.request)
        if standing is not None:
            self._body.say(ToPeer(peer, _encode(msgspec.structs.replace(standing.word, move=word.move))))
        elif running is None:
            self._body.say(ToPeer(peer, _encode(Gone(word.request, word.move))))
        elif running.is_prefill and word.at_first_token:
            self._callers[word.request] = (peer, word.move)
        else:
            self._stop(peer, word)

    def _stop(self, peer: int, word: Called) -> None:
        """Let a request stand still for a peer."""
        running = self._body.stop(word.request)
        if running is None:
            self._body.say(ToPeer(peer, _encode(Gone(word.request, word.move))))
            return
        parted = Parted(word.request, word.move, running.emitted)
        self._standing[word.request] = _Standing(running.submit, parted, word.move)
        self._body.pending.suspended.append(word.request)
        self._letters.append(ToPeer(peer, _encode(parted)))
        self._body.report_soon()

    def _stay(self, request_id: int, move: int | None) -> None:
        standing = self._standing.get(request_id)
        if standing is not None and move in (None, standing.stopped_for):
            self._resume(request_id, standing)

    def _resume(self, request_id: int, standing: _Standing) -> None:
        """Let it go on here, which means that all of it is computed again, or found in the prefix cache."""
        del self._standing[request_id]
        submit = msgspec.structs.replace(standing.submit, emitted=standing.word.emitted)
        self._body.pending.resumed.append(request_id)
        self._body.pending.preempted.append(request_id)
        self._body.run(Running(self._owner, submit))
        self._body.report_soon()

    # -- the target's end

    def _take_in(self, order: TakeIn) -> None:
        request_id = order.submit.request
        why = self._links.refusal(order.source, order.link_version)
        if why:
            self._body.say(MoveFailed(request_id, why))
            return
        self.taking[request_id] = order
        offered = _decode(order.offer) if order.offer else None
        if isinstance(offered, Parted):
            self._take(order, offered)
        else:
            call = Called(request_id, order.move, order.at_first_token)
            self._body.say(ToPeer(order.source, _encode(call)))

    def _take(self, order: TakeIn, word: Parted) -> None:
        """Go on with a request that stands still at its source."""
        submit = msgspec.structs.replace(order.submit, emitted=word.emitted)
        is_kept = word.params is not None and self._clock() < word.until_s
        if word.params is not None and not is_kept:
            log.warning("request %d is computed anew: its KV may not be kept any more", word.request)
        if is_kept and not order.recomputes and self._links.passes_kv(order.source):
            running = Running(self._owner, submit, since=word.given, transfer=word.params)
            self._body.run(running)
            # It may wait for its turn there, and is fetched only then.
            self._body.later(lambda: self._lease_ended(order, running), word.until_s - self._clock())
        else:
            self._arrive_to_compute(order, submit)

    def _lease_ended(self, order: TakeIn, running: Running) -> None:
        """What has given no token by now may be fetched too late."""
        if self.taking.get(running.id) is order and self._body.find(running.id) is running:
            log.warning("request %d is computed anew: it waits for its turn, and its KV is not kept", running.id)
            self._body.drop(running.id)
            self._arrive_to_compute(order, running.resumed())

    def arrived(self, running: Running) -> None:
        """A request has its first new token here; if it came with its KV, it has arrived with that."""
        order = self.taking.pop(running.id, None)
        if order is not None:
            tokens = len(running.submit.prompt) + len(running.submit.emitted) - 1
            emitted = len(running.submit.emitted)
            self._body.pending.arrived.append(Arrived(running.id, order.source, tokens, emitted, tokens, 0.0))

    def recompute(self, running: Running) -> None:
        """What came with its KV goes on without it."""
        order = self.taking.get(running.id)
        if order is None:
            self._body.run(Running(self._owner, running.resumed()))
        else:
            self._arrive_to_compute(order, running.resumed())

    def _arrive_to_compute(self, order: TakeIn, submit: Submit) -> None:
        self.taking.pop(submit.request, None)
        emitted = len(submit.emitted)
        self._body.pending.arrived.append(Arrived(submit.request, order.source, 0, emitted, 0, 0.0))
        self._body.run(Running(self._owner, submit))
        self._body.report_soon()

    def _failed_to_take(self, order: TakeIn, running: Running, end: End) -> bool:
        """It came to an end before its first new token."""
        why = "it ended" if isinstance(end, Whole) else end.why
        log.warning("request %d is computed anew, as its KV could not be fetched: %s", running.id, why)
        self._body.drop(running.id)
        self._arrive_to_compute(order, running.resumed())
        return True

    def _abandon(self, request_id: int) -> None:
        """Its source is gone: what has been told of it is all there is."""
        order, running = self.taking.get(request_id), self._body.find(request_id)
        if order is None:
            return
        if running is None:
            self._give_up(request_id, "its source is gone")
        else:
            self._body.drop(request_id)
            self._arrive_to_compute(order, running.resumed())

    def _give_up(self, request_id: int, why: str) -> None:
        order = self.taking.pop(request_id, None)
        if order is not None:
            self._body.say(ToPeer(order.source, _encode(Left(request_id, order.move))))
            self._body.say(MoveFailed(request_id, why))
