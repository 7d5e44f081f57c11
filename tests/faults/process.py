"""One instance as a process of its own: a modelled instance with a clock, a memory and one end of a stream.

It dies, stands still, is slow or has its clock set; it reads and writes real messages. The other end is the adapter
that serves use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec

from faults.memory import Memory
from faults.wire import Way
from helpers.builders import SIMPLE
from hyperflexis.adapters.contract import Listener
from hyperflexis.adapters.modelled import ModelledAdapter, Ways
from hyperflexis.adapters.native.host import NativeAdapter
from hyperflexis.core.handover import Pull
from hyperflexis.core.step import Sequence
from hyperflexis.wire.framing import Framer, Frames, WireError
from hyperflexis.wire.messages import (
    Asleep,
    Configure,
    ExposeKv,
    Failed,
    FromInstance,
    LinkFailed,
    LinkTo,
    News,
    Ready,
    Shutdown,
    StepReport,
    ToInstance,
    Unlink,
    Wake,
    Work,
)
from runtime.live_world import BLOCK_TOKENS

if TYPE_CHECKING:
    from faults.world import World

STALLED_S = 0.25
CHECKED_REPORTS = 4
"""The scheduler's own check comes with every fourth report: it takes as long as the step itself."""
KILLED, FAILED = -9, 1


class _Call:
    """Something that a process will do."""

    def __init__(self, action: Callable[..., object], words: tuple[Any, ...]) -> None:
        self._action, self._words = action, words
        self.handle: asyncio.Handle | None = None
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True
        if self.handle is not None:
            self.handle.cancel()

    def perform(self) -> None:
        if not self.is_cancelled:
            self._action(*self._words)


class ProcessClock:
    """What one process has in place of the loop: its clock may be set, and it may stand still, be slow and end."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.offset_s = 0.0
        self.slownesses: list[float] = []
        """Factors by which everything takes longer; the largest counts."""
        self._stops = 0
        self._due: list[_Call] = []
        """What became due while it stood still."""
        self.is_over = False

    @property
    def is_stopped(self) -> bool:
        return self._stops > 0

    def time(self) -> float:
        return self._loop.time() + self.offset_s

    def call_soon(self, action: Callable[..., object], *words: Any) -> _Call:
        call = _Call(action, words)
        call.handle = self._loop.call_soon(self.perform, call)
        return call

    def call_later(self, delay_s: float, action: Callable[..., object], *words: Any) -> _Call:
        call = _Call(action, words)
        call.handle = self._loop.call_later(delay_s * max(self.slownesses, default=1.0), self.perform, call)
        return call

    def perform(self, call: _Call) -> None:
        """Do it now, or as soon as the process goes on."""
        if self._stops or self._due:
            self._due.append(call)
        elif not self.is_over:
            call.perform()

    def stop(self) -> None:
        self._stops += 1

    def go_on(self) -> None:
        self._stops -= 1
        while self._due and not self._stops and not self.is_over:
            self._due.pop(0).perform()


class Process(Listener):
    """Starts at once; ready as soon as its setting says."""

    def __init__(self, instance_id: int, world: World, listener: Listener) -> None:
        setting, loop = world.plan.setting, world.loop
        self.id = instance_id
        self.adapter = NativeAdapter(listener, loop)
        self.adapter._transport = _Transport(self)
        self.clock = ProcessClock(loop)
        self.from_driver = Way(loop, setting.message_s, self._receive, self.cut_off)
        self.to_driver = Way(loop, setting.message_s, self.adapter.data_received, self.cut_off)
        self.memory = Memory(BLOCK_TOKENS)
        self.corrupts = self.stalls = self.links_fail = self.cannot_wake = 0
        """How many faults of these kinds last."""
        self._world = world
        self._loop = loop
        self._frames: Frames[ToInstance] = Frames(ToInstance)
        self._framer = Framer()
        self._reports = 0
        self._returned: dict[int, bool] = {}
        self._linked: dict[tuple[int, bool], int] = {}
        """(peer, whether this side lends) → version of the link that was asked for last."""
        ready = Ready(
            setting.blocks,
            BLOCK_TOKENS,
            setting.seqs_max,
            asdict(SIMPLE),
            [],
            "model",
            kv_token_bytes=setting.kv_token_bytes,
        )
        self.modelled = ModelledAdapter(
            self,
            ready,
            self.clock,  # type: ignore[arg-type]
            startup_s=setting.startup_s,
            next_token_of=self.memory.next_token,
            ways=Ways(copy_s=self._copy_s, copy_fault=self._end_copy, link_s=0.01),
        )
        self._remember_steps()

    @property
    def is_over(self) -> bool:
        return self.clock.is_over

    @property
    def scheduler(self) -> Any:
        return self.modelled.scheduler

    @property
    def is_quiet(self) -> bool:
        """Whether the driver and this know the same: nothing is under way, said or unread."""
        is_silent = self.from_driver.is_quiet and self.to_driver.is_quiet and not self.adapter._submits
        is_idle = not self.modelled._is_stepping and not self.modelled._inbox and not self.clock._due
        return is_silent and is_idle and not self.clock.is_stopped

    def _remember_steps(self) -> None:
        plan_of = self.scheduler.plan

        def plan(now: float) -> Any:
            planned = plan_of(now)
            self.memory.compute(planned)
            return planned

        self.scheduler.plan = plan

    # -- its end

    def die(self, status: int = KILLED, *, is_cut: bool = False, noticed_s: float = 0.0) -> None:
        """End here and now. Its end of the stream is closed for it; the other end hears of that, and of its exit."""
        if self.is_over:
            return
        self.clock.is_over = True
        self.modelled.close()
        self.from_driver.close(lambda: None, is_cut=True)
        noticed = self._loop.call_later
        self.to_driver.close(lambda: noticed(noticed_s, self.adapter.connection_lost, None), is_cut=is_cut)
        self._loop.call_later(noticed_s, self.adapter.on_exit, status)

    def vanish(self, noticed_s: float) -> None:
        """Its host is gone, and nobody closes anything. Whoever watches it finds that out."""
        self.clock.is_over = True
        self.modelled.close()
        self.from_driver.close(lambda: None, is_cut=True)
        self.to_driver.close(lambda: None, is_cut=True)
        self._loop.call_later(noticed_s, self.adapter.fail, "it has not answered")

    def cut_off(self, noticed_s: float = 0.0) -> None:
        """The stream breaks. This end notices at once and has nothing to live for."""
        self.die(0, is_cut=True, noticed_s=noticed_s)

    def unlink(self, *, is_lender: bool) -> None:
        """One of its links breaks, and it says so."""
        for (peer, lends), version in self._linked.items():
            if lends is is_lender:
                del self._linked[peer, lends]
                if not lends:
                    self.modelled.order(Unlink(peer, version))
                self._say(LinkFailed(peer, version, "it has broken", is_lender=lends))
                return

    def give_back(self, which: int, request_id: int | None) -> None:
        """Have a request no more between two steps, and say so with the next report.

        What stands still stays: a peer was told of all its blocks and may be copying them. Servers that give requests
        back keep such blocks for as long as they lease them.
        """

        def leave() -> None:
            sequence = self._pick(which, request_id)
            if sequence is None or sequence.id in self.scheduler.moves.suspended:
                return
            self.modelled._stepping.cancel(sequence.id, self.clock.time())
            self._returned[sequence.id] = not sequence.has_started

        self.modelled.post(leave)

    def fail(self, which: int, request_id: int | None, failing: Callable[[int], None]) -> None:
        """Be unable to compute a request's next token, or refuse what has not begun."""

        def despair() -> None:
            if (sequence := self._pick(which, request_id)) is None:
                return
            failing(sequence.id)
            if sequence.has_started:
                self.modelled.uncomputable.add(sequence.id)
            else:
                self.modelled._stepping.refuse(sequence.id, "it cannot be computed")

        self.modelled.post(despair)

    def _pick(self, which: int, request_id: int | None) -> Sequence | None:
        here = {sequence.id: sequence for sequence in self.scheduler.sequences()}
        if request_id is not None or not here:
            return here.get(request_id) if request_id is not None else None
        return list(here.values())[which % len(here)]

    # -- what it reads

    def _receive(self, frame: bytes) -> None:
        self.clock.perform(_Call(self._read, (frame,)))

    def _read(self, frame: bytes) -> None:
        try:
            for message in self._frames.feed(frame):
                self._take(message)
        except WireError as error:
            self._say(Failed(f"WireError: {error}"))
            self.die(FAILED)

    def _take(self, message: ToInstance) -> None:
        if isinstance(message, Shutdown):
            self.die(0)
        elif isinstance(message, Work):
            for submit in message.submits:
                self.modelled.submit(submit)
            for request_id in message.cancels:
                self.modelled.cancel(request_id)
        elif isinstance(message, Configure):
            self.modelled.configure(message.rules, message.version)
        elif isinstance(message, ExposeKv | LinkTo):
            self._link(message)
        elif isinstance(message, Wake) and self.cannot_wake:
            self._say(Asleep(1, why="no memory is left"))
        else:
            self.modelled.order(message)

    def _link(self, order: ExposeKv | LinkTo) -> None:
        lends = isinstance(order, ExposeKv)
        self._linked[order.peer, lends] = order.version
        peer = self._world.processes.get(order.peer)
        if self.links_fail or peer is None or peer.is_over:
            self._say(LinkFailed(order.peer, order.version, "it cannot be reached", is_lender=lends))
        else:
            self.modelled.order(order)

    # -- what it says

    def on_ready(self, ready: Ready) -> None:
        self._say(ready)

    def on_report(self, report: StepReport) -> None:
        self._reports += 1
        if self._reports % CHECKED_REPORTS == 0:
            self.scheduler.check()
        returned, self._returned = self._returned, {}
        self._say(msgspec.structs.replace(report, returned=returned) if returned else report)

    def on_news(self, news: News) -> None:
        if isinstance(news, Asleep):
            self.memory.forget()
        self._say(news)

    def on_lost(self, why: str) -> None:
        raise AssertionError(f"i{self.id} was not told to die: {why}")

    def _say(self, message: FromInstance) -> None:
        if not self.is_over:
            self.to_driver.send(self._framer.frame(message))

    # -- what it copies

    def _copy_s(self, pull: Pull) -> float:
        return STALLED_S if self.stalls else self._world.plan.setting.copy_s

    def _end_copy(self, pull: Pull, peer: int) -> str:
        source = self._world.processes.get(peer)
        if source is None or source.is_over:
            self.memory.spoil(pull.target_blocks)
            return "its source is gone"
        if self.corrupts:
            self.memory.spoil(pull.target_blocks)
            return "a checksum is wrong"
        self.memory.copy(source.memory, pull.source_blocks, pull.target_blocks)
        return ""


class _Transport(asyncio.Transport):
    """The driver's end of a process's stream."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self._process = process
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._process.from_driver.send(bytes(data))

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        """What was written is still read; then the process knows that nobody is there."""
        if not self._is_closing:
            self._is_closing = True
            process = self._process
            process.from_driver.close(lambda: process.clock.perform(_Call(process.die, (0,))))
