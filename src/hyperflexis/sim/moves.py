"""A modelled instance's ends of moves: the core's giver and taker, with words and copies that take time.

What live instances say to each other through their driver is a call here, a message's time later. What is told of a
sequence with the last answer is what a live giver sends: how much it has emitted, and when first.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Series
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from hyperflexis.core.commands import Migrate
from hyperflexis.core.events import Arrival, Event, TransferFailed
from hyperflexis.core.handover import Answer, Call, Complete, Failure, Giver, Pull, Taker, TakerStep
from hyperflexis.core.step import Sequence
from hyperflexis.sim.fabric import Fabric
from hyperflexis.sim.kernel import Kernel, to_ticks_s

if TYPE_CHECKING:
    from hyperflexis.sim.instance import SimInstance


class Parting(NamedTuple):
    """What a giver says of a sequence with its last answer."""

    emitted: int
    first_token_s: float | None


class StepMoves(NamedTuple):
    """What a report says of moves."""

    suspended: list[int]
    resumed: list[int]
    arrived: list[Arrival]


@dataclass(slots=True)
class Taking:
    """One sequence on its way here."""

    source: SimInstance
    make: Callable[[Parting], Sequence]
    """Given what was said at parting, the sequence as it goes on."""
    answer_tokens: int
    hashes: Series[bytes] = ()
    """Of its prompt's blocks, where these may be shared."""
    parting: Parting = field(default_factory=lambda: Parting(0, None))
    copied_s: float = 0.0
    copied_tokens: int = 0


class SimMoves:
    """Of one instance."""

    def __init__(
        self, owner: SimInstance, kernel: Kernel, feed: Callable[[Event], None], fabric: Fabric, kv_token_bytes: int
    ) -> None:
        self._owner = owner
        self._kernel = kernel
        self._feed = feed
        self._fabric = fabric
        self._kv_token_bytes = kv_token_bytes
        self._giver: Giver | None = None
        self._taker: Taker | None = None
        self._takings: dict[int, Taking] = {}
        self._callers: dict[int, SimInstance] = {}
        """Who has asked for each sequence last."""
        self._suspended: list[int] = []
        self._resumed: list[int] = []
        self._arrived: list[Arrival] = []
        self._sources: dict[int, SimInstance] = {}
        """Where these have come from. They are told with the report, and not before it is known where a request is."""
        self._outrun: set[int] = set()
        """Known to have been taken before their takers' words are here."""

    # -- the taker's end

    def take(self, command: Migrate, tokens_max: int, taking: Taking) -> None:
        """Begin to take a sequence. What the source has handed off already need not be asked for."""
        offer = taking.source.moves._offer(command.request_id)
        self._owner.post(partial(self._begin, command, tokens_max, taking, offer))

    def abandon(self, request_id: int) -> None:
        """Say at once whether it is here; do not wait for its source."""
        self._owner.post(partial(self._abandon, request_id))

    def _begin(self, command: Migrate, tokens_max: int, taking: Taking, offer: tuple[Answer, Parting] | None) -> None:
        if self._taker is None:
            self._taker = Taker(self._owner.scheduler)
        self.make_way(command.request_id)
        block_s = self._owner.scheduler.pool.block_tokens * self._kv_token_bytes / self._fabric.spec.bytes_s
        step = self._taker.begin(
            command.request_id,
            command.move,
            command.tokens,
            tokens_max,
            block_s=block_s,
            at_first_token=command.at_first_token,
            recomputes=command.recomputes,
            hashes=taking.hashes,
        )
        self._takings[command.request_id] = taking
        if offer is not None and isinstance(step, Call):
            answer, parting = offer
            self._hear(answer._replace(move=command.move), parting)
        else:
            self._do(step)

    def _abandon(self, request_id: int) -> None:
        if self._taker is not None:
            self._do(self._taker.fail(request_id, "its source is gone"))

    def _hear(self, answer: Answer, parting: Parting) -> None:
        if answer.request_id in self._takings and self._taker is not None:
            if answer.is_last:
                self._takings[answer.request_id].parting = parting
            self._do(self._taker.take(answer))

    def _do(self, step: TakerStep | None) -> None:
        if step is None:
            return
        taking = self._takings[step.request_id]
        if isinstance(step, Call):
            self._say(partial(taking.source.moves.hear, step, self._owner), taking.source)
        elif isinstance(step, Pull):
            self._copy(step, taking)
        elif isinstance(step, Complete):
            self._adopt(step, taking)
        else:
            self._give_up(step, taking)

    def _copy(self, pull: Pull, taking: Taking) -> None:
        kv_bytes = pull.tokens * self._kv_token_bytes
        there_s, alone_s = self._fabric.copy(taking.source.id, self._owner.id, kv_bytes, self._kernel.now)
        taking.copied_s += alone_s
        taking.copied_tokens += pull.tokens
        self._kernel.at(to_ticks_s(there_s), partial(self._owner.post, partial(self._copied, pull, alone_s)))

    def _copied(self, pull: Pull, alone_s: float) -> None:
        taking = self._takings.get(pull.request_id)
        if taking is None or self._taker is None:
            return
        if taking.source.is_lost:
            self._do(self._taker.fail(pull.request_id, "its source is gone"))
        else:
            self._do(self._taker.copied(pull.request_id, pull.move, alone_s / max(1, len(pull.target_blocks))))

    def _adopt(self, step: Complete, taking: Taking) -> None:
        del self._takings[step.request_id]
        sequence = taking.make(taking.parting)
        self._owner.adopt(sequence, step.computed, taking.answer_tokens)
        emitted = taking.parting.emitted
        self._sources[step.request_id] = taking.source
        self._arrived.append(
            Arrival(step.request_id, taking.source.id, step.computed, emitted, taking.copied_tokens, taking.copied_s)
        )

    def _give_up(self, failure: Failure, taking: Taking) -> None:
        del self._takings[failure.request_id]
        self._say(partial(taking.source.moves._left, failure.request_id, failure.move), taking.source)
        self._feed(TransferFailed(failure.request_id, self._owner.id, failure.why))

    # -- the giver's end

    def hear(self, call: Call, caller: SimInstance) -> None:
        """Take a call; between two steps."""
        if self._giver is None:
            self._giver = Giver(self._owner.scheduler)
        self._callers[call.request_id] = caller
        self._giver.call(call)

    def stay(self, request_id: int, move: int | None) -> None:
        """Let a sequence go on here."""
        self._owner.post(partial(self._stay, request_id, move))

    def is_called(self) -> bool:
        return self._giver is not None and self._giver.is_called()

    def may_stop(self) -> bool:
        """Whether somebody waits for what stands still only at a step's end, so that one is due even if it is empty."""
        return self._giver is not None and self._giver.may_stop()

    def answer(self, *, may_stop: bool) -> None:
        """Tell callers what there is to be told now."""
        if self._giver is None or not self._giver.is_called():
            return
        for answer in self._giver.answers(may_stop=may_stop):
            caller = self._callers[answer.request_id]
            if answer.is_last and may_stop and answer.request_id not in self._suspended:
                self._suspended.append(answer.request_id)
            self._tell(caller, answer)

    def end_step(self, handed_off: list[int]) -> StepMoves:
        """A step ends: answer those who have called, and say what has changed by moves since the last one."""
        self._suspended = list(handed_off)
        self.answer(may_stop=True)
        told = StepMoves(self._suspended, self._resumed, self._arrived)
        for arrival in self._arrived:
            source = self._sources.pop(arrival.request_id)
            self._say(partial(source.moves._taken, arrival.request_id), source)
        self._suspended, self._resumed, self._arrived = [], [], []
        return told

    def cancel(self, request_id: int) -> None:
        """Its client has left; between two steps. A move to here ends with it."""
        if self._giver is not None:
            self._giver.forget(request_id)
        self._abandon(request_id)

    def _tell(self, caller: SimInstance, answer: Answer) -> None:
        parting = self._parting(answer.request_id)
        self._say(partial(caller.moves._hear, answer, parting), caller)

    def _parting(self, request_id: int) -> Parting:
        sequence = self._owner.scheduler.find(request_id)
        return Parting(0, None) if sequence is None else Parting(sequence.emitted, sequence.first_token_s)

    def _offer(self, request_id: int) -> tuple[Answer, Parting] | None:
        if request_id not in self._owner.scheduler.moves.suspended:
            return None
        if self._giver is None:
            self._giver = Giver(self._owner.scheduler)
        if self._giver.has_stopped(request_id):  # For a move whose end is not known here yet.
            return None
        return self._giver.offer(request_id), self._parting(request_id)

    def make_way(self, request_id: int) -> None:
        """A sequence is sent here. If it was here before, the word that it has been taken is still on its way."""
        if self._owner.scheduler.find(request_id) is not None:
            self._forget(request_id)
            self._outrun.add(request_id)

    def _taken(self, request_id: int) -> None:
        if request_id in self._outrun:
            self._outrun.remove(request_id)
        else:
            self._forget(request_id)

    def _forget(self, request_id: int) -> None:
        if self._giver is not None:
            self._giver.taken(request_id)
        self._owner.forget(request_id)
        self._owner.note_change()

    def _left(self, request_id: int, move: int) -> None:
        if self._giver is not None and self._giver.left(request_id, move):
            self._resume(request_id)

    def _stay(self, request_id: int, move: int | None) -> None:
        if self._giver is None:
            self._giver = Giver(self._owner.scheduler)
        if self._giver.stay(request_id) if move is None else self._giver.left(request_id, move):
            self._resume(request_id)

    def _resume(self, request_id: int) -> None:
        self._resumed.append(request_id)
        self._owner.resumed(request_id)

    def _say(self, action: Callable[[], None], to: SimInstance) -> None:
        """Have another instance do that, a message's time later and between two of its steps."""
        if not to.is_lost:
            self._kernel.at(to_ticks_s(self._kernel.now + self._fabric.spec.message_s), partial(to.post, action))
