"""One instance: a process that alternates between its socket and the next step, until the socket closes.

Then it ends; or, where instances outlive their gateway, it becomes an orphan, which another gateway may adopt.

Step by step: read what has come, let the core's scheduler choose, let the engine compute, send one report. With nothing
to compute it sleeps on the socket, and on what its peers' KV is copied by. Knows no HTTP and no text.
"""

from __future__ import annotations

import logging
import socket
import time

from hyperflexis.adapters.native import reins
from hyperflexis.adapters.native.carrier import Carrier
from hyperflexis.adapters.native.equipment import Equipment
from hyperflexis.adapters.native.lineage import leave_signals_to_parent
from hyperflexis.adapters.native.loading import Model
from hyperflexis.adapters.native.messages import Fork
from hyperflexis.adapters.native.peers import Joined, Pulled
from hyperflexis.adapters.native.rest import LEVELS
from hyperflexis.adapters.stepping import StepOutcome, Stepping
from hyperflexis.core.step import Chunk, StepPlan
from hyperflexis.engine.batch import SequenceSlice
from hyperflexis.engine.errors import EngineError
from hyperflexis.transfer.errors import TransferError
from hyperflexis.wire.framing import BlockingChannel
from hyperflexis.wire.messages import (
    Asleep,
    Awake,
    Configure,
    Exposed,
    ExposeKv,
    Failed,
    Linked,
    LinkFailed,
    LinkTo,
    Ping,
    Pong,
    Reclaim,
    Shutdown,
    Sleep,
    Submit,
    TakeIn,
    ToInstance,
    Unlink,
    Wake,
    Work,
)

log = logging.getLogger(__name__)

_STALLED_S = 0.05
"""How long to wait for news when work is there but none of it can run (no blocks)."""


def run(sock: socket.socket, order: Fork, model: Model, held: socket.socket | None = None) -> int:
    """Live until the socket closes; returns the process's exit status.

    Where it is `held` by reins, it drops its requests when that happens, and waits by these for another gateway.
    """
    leave_signals_to_parent()
    equipment: Equipment | None = None
    while True:
        channel: BlockingChannel[ToInstance] = BlockingChannel(sock, ToInstance)
        try:
            if equipment is None:
                equipment = Equipment(order, model)
            else:
                equipment.turn_to(order)
            channel.send(equipment.ready())
            Instance(channel, equipment).serve()
            return 0
        except (EOFError, ConnectionError):
            if held is None or equipment is None:
                return 0
        except Exception as error:  # The last supervisor of this process: whatever it is, say it and end.
            log.exception("instance i%d fails", order.instance_id)
            _say_last(channel, f"{type(error).__name__}: {error}")
            return 1
        sock.close()
        equipment.clear()
        adoption = reins.accept(held)
        if adoption is None:
            return 0
        order, sock = adoption


def _say_last(channel: BlockingChannel[ToInstance], reason: str) -> None:
    try:
        channel.send(Failed(reason))
    except OSError:
        log.warning("nobody is left to hear: %s", reason)


class Instance:
    """The loop, and what it holds together: socket, scheduler, engine, peers, rest."""

    def __init__(self, channel: BlockingChannel[ToInstance], equipment: Equipment) -> None:
        self._channel = channel
        self._scheduler = equipment.scheduler
        self._runner = equipment.runner
        self._peers = equipment.peers
        self._rest = equipment.rest
        self._stepping = Stepping(self._scheduler, Carrier(channel, self._runner, self._peers))
        self._is_leaving = False
        channel.wake_on(self._peers.fd)

    def serve(self) -> None:
        """Step until told to leave.

        Raises:
            EOFError: the socket was closed.
        """
        is_stalled = False
        while not self._is_leaving:
            is_idle = self._scheduler.is_resting() and not self._stepping.has_news()
            self._listen(None if is_idle else _STALLED_S if is_stalled else 0.0)
            now = time.monotonic()
            self._stepping.moves.answer(now)
            plan = self._scheduler.plan(now)
            is_stalled = not plan.chunks
            if not plan.is_void or self._stepping.has_news():
                self._step(plan)

    def _listen(self, timeout_s: float | None) -> None:
        """Take messages, and what has ended in other threads, until there is nothing more."""
        while True:
            ended = self._peers.finished()
            # Messages first: that a sequence is wanted no more is said before its blocks are another's, and may not
            # have been read when the last of them were copied.
            for message in self._channel.receive(0.0 if ended else timeout_s):
                self._take(message)
            for each in ended:
                self._end(each)
            if not self._peers.has_ended:
                return
            timeout_s = 0.0

    def _take(self, message: ToInstance) -> None:
        if isinstance(message, TakeIn) or (isinstance(message, Work) and message.submits):
            self._wake_for_work()
        if isinstance(message, Work):
            self._take_work(message)
        elif isinstance(message, Configure):
            self._configure(message)
        elif isinstance(message, Shutdown):
            self._is_leaving = True
        elif isinstance(message, Sleep):
            self._channel.send(self._sleep(message.level))
        elif isinstance(message, Wake):
            self._channel.send(self._wake())
        elif isinstance(message, Ping):
            self._channel.send(Pong())
        elif isinstance(message, ExposeKv | LinkTo | Unlink | Reclaim):
            self._take_link(message)
        else:
            self._stepping.order(message, time.monotonic())

    def _take_work(self, work: Work) -> None:
        for submit in work.submits:
            self._submit(submit)
        for request_id in work.cancels:
            if self._stepping.cancel(request_id, time.monotonic()):
                self._runner.close(request_id)

    def _take_link(self, order: ExposeKv | LinkTo | Unlink | Reclaim) -> None:
        if isinstance(order, Unlink):
            self._peers.unlink(order.peer, order.version)
        elif isinstance(order, Reclaim):
            self._peers.reclaim(order.peer, order.version)
        elif self._rest.level:
            lends = isinstance(order, ExposeKv)
            self._channel.send(LinkFailed(order.peer, order.version, "it is asleep", is_lender=lends))
        elif isinstance(order, ExposeKv):
            self._expose(order)
        else:
            self._peers.link(order.peer, order.version, order.descriptor)

    # -- sleep

    def _sleep(self, level: int) -> Asleep | Awake:
        why = "" if level in LEVELS else f"there is no level {level}"
        why = why or self._stepping.busy_with() or self._lent_device_memory()
        if why:
            return Asleep(self._rest.level, why=why) if self._rest.level else Awake(why=why)
        began_s = time.monotonic()
        self._scheduler.pool.forget()
        freed_bytes = self._rest.sleep(level)
        return Asleep(self._rest.level, freed_bytes, time.monotonic() - began_s)

    def _lent_device_memory(self) -> str:
        """Memory of a host is the same memory after a sleep, links or not; that of a device is another."""
        peers = ", ".join(f"i{peer}" for peer in self._peers.lent_to)
        return f"its KV is lent to {peers}" if peers and self._rest.is_on_device else ""

    def _wake(self) -> Asleep | Awake:
        why = self._rest.refusal()
        if why:
            return Asleep(self._rest.level, why=why)
        began_s = time.monotonic()
        self._rest.wake()
        return Awake(time.monotonic() - began_s)

    def _wake_for_work(self) -> None:
        if self._rest.level:
            began_s = time.monotonic()
            self._rest.wake()
            self._channel.send(Awake(time.monotonic() - began_s))

    # -- links

    def _expose(self, order: ExposeKv) -> None:
        try:
            descriptor = self._peers.lend(order.peer, order.version)
        except (TransferError, OSError) as error:
            self._channel.send(LinkFailed(order.peer, order.version, str(error), is_lender=True))
        else:
            self._channel.send(Exposed(order.peer, order.version, descriptor))

    def _end(self, ended: Joined | Pulled) -> None:
        if isinstance(ended, Pulled):
            self._stepping.moves.copied(ended.sequence_id, ended.why, ended.seconds, time.monotonic())
        elif ended.why:
            self._channel.send(LinkFailed(ended.peer, ended.version, ended.why))
        else:
            self._channel.send(Linked(ended.peer, ended.version))

    def _configure(self, message: Configure) -> None:
        try:
            self._stepping.reconfigure(message.rules, message.version)
        except ValueError as error:  # Whoever sent it does not hear of the new ones, and counts on the old.
            log.warning("the rules stay as they are: %s", error)

    def _submit(self, submit: Submit) -> None:
        if self._stepping.submit(submit, time.monotonic()):
            try:
                self._runner.open(submit.request, submit.sampling, submit.prompt, submit.emitted)
            except EngineError as error:
                self._stepping.refuse(submit.request, str(error))

    def _step(self, plan: StepPlan) -> None:
        started_s = time.monotonic()
        outcome = self._compute(plan)
        now = time.monotonic()
        outcome.duration_s = now - started_s
        report, ended = self._stepping.report(plan, outcome, now)
        for sequence_id in ended:
            self._runner.close(sequence_id)
        self._channel.send(report)
        for letter in self._stepping.moves.letters():
            self._channel.send(letter)

    def _compute(self, plan: StepPlan) -> StepOutcome:
        if not plan.chunks:
            return StepOutcome({}, 0.0)
        chunks = plan.chunks
        result = self._runner.step([_slice(chunk) for chunk in chunks])
        sampling = [chunk.sequence.id for chunk in chunks if chunk.samples]
        return StepOutcome(
            sampled={
                seq: token for seq, token in zip(sampling, result.tokens, strict=True) if seq not in result.errors
            },
            duration_s=0.0,
            errors=result.errors,
            logprobs={sampling[index]: logprobs for index, logprobs in result.logprobs.items()},
            prompt_logprobs=result.prompt_logprobs,
        )


def _slice(chunk: Chunk) -> SequenceSlice:
    sequence, start, tokens, samples = chunk
    return SequenceSlice(
        sequence=sequence.id,
        tokens=sequence.tokens[start : start + tokens],
        start=start,
        blocks=sequence.blocks,
        sample=samples,
    )
