"""The gateway process's side of the native engine: a handle on the zygote, and one adapter per instance.

Imports no torch. All methods belong to one event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import msgspec

from hyperflexis.adapters.contract import Listener
from hyperflexis.adapters.native.inheritance import Inheritance, Stranger
from hyperflexis.adapters.native.keep import Keep
from hyperflexis.adapters.native.lineage import exit_in_words
from hyperflexis.adapters.native.messages import (
    DATAGRAM_BYTES_MAX,
    Digested,
    Dismiss,
    Exited,
    Fork,
    Forked,
    Load,
    Loaded,
    LoadFailed,
    Offered,
    Orphan,
    Orphans,
    Profile,
    TakeOver,
    ToZygote,
    Warm,
    decode_from_zygote,
    encode,
)
from hyperflexis.adapters.native.reins import STDERR
from hyperflexis.adapters.native.time_slice import ask_for_short_slices
from hyperflexis.wire.framing import Framer, Frames, WireError
from hyperflexis.wire.messages import (
    Configure,
    Failed,
    FromInstance,
    Order,
    Ready,
    Shutdown,
    StepReport,
    Submit,
    ToInstance,
    Work,
)

log = logging.getLogger(__name__)

_PARTING_S = 1.0
"""The most between the end of an instance's socket and that of its process."""


class StartError(Exception):
    """The engine cannot start; the message and the hint are for an operator."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


class Child(Protocol):
    """Hears what becomes of a forked process."""

    pid: int
    """Set as soon as it is known."""

    def on_exit(self, status: int) -> None:
        """It has ended; `status` is as `os.waitstatus_to_exitcode` gives it."""


class ZygoteHost:
    """One zygote process, from its start to its end."""

    def __init__(self, keep: Keep | None = None, inheritance: Inheritance | None = None) -> None:
        """Start one, which with `keep` may outlive this process; or be the next gateway of one that is inherited."""
        self._loop = asyncio.get_running_loop()
        self._warm: asyncio.Future[float] = self._loop.create_future()
        self._loaded: asyncio.Future[Loaded] = self._loop.create_future()
        self._offered: asyncio.Future[bytes] = self._loop.create_future()
        self.digest = b""
        """Root digest of the weights that are lent, once it is known."""
        self._keep = keep
        self._is_inherited = inheritance is not None
        self.is_left = self._is_inherited
        """Whether it is left to the next gateway, with its instances, when it is closed; else it ends with them."""
        self.orphans: Sequence[Orphan] = ()
        """Instances of an inherited one that may still be adopted; known when it has been loaded."""
        self._forks = 0
        self._children: dict[int, tuple[int, Child]] = {}
        """By number of the fork, while it lives: instance id, and who hears of it."""
        ask_for_short_slices()
        self._process: subprocess.Popen[bytes] | Stranger
        self._control, self._process = inheritance or _start(keep)
        self._control.setblocking(False)
        self._loop.add_reader(self._control.fileno(), self._hear)

    async def load(self, order: Load) -> Loaded:
        """Read the model into shared memory, or hear how it was read if it is inherited.

        Raises:
            StartError: it cannot be loaded, or the zygote died.
        """
        if self._is_inherited:
            assert self._keep is not None
            self._warm.set_result(0.0)
            self._say(TakeOver(self._keep.timeout_s), STDERR)
        else:
            self._say(order)
        return await self._loaded

    async def warm(self) -> float:
        """Wait until it has imported what instances need; return the seconds that took. A load need not wait for it.

        Raises:
            StartError: it died.
        """
        return await self._warm

    async def offer(self) -> bytes:
        """What leads others to the weights, as soon as any of them can be had; empty if they are not lent."""
        return await self._offered

    def tell(self, profile: Profile) -> None:
        """Have it go along with the weights."""
        self._say(profile)

    @property
    def pids(self) -> dict[int, int]:
        """Process ids by instance, of those that live."""
        return {instance_id: child.pid for instance_id, child in self._children.values() if child.pid}

    def fork(self, order: Fork, listener: Listener) -> NativeAdapter:
        """Start an instance; it is heard of through the listener."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        let_go = None if self._keep is None else partial(self._let_go, self._forks + 1)
        adapter = NativeAdapter(listener, self._loop, let_go)
        adapter.connect(ours)
        with theirs:
            self.fork_onto(theirs, order, adapter)
        return adapter

    def fork_onto(self, sock: socket.socket, order: Fork, child: Child) -> None:
        """Start an instance that speaks on this stream. The caller's descriptor of it stays the caller's.

        An orphan becomes it, if there is one on its device.
        """
        self._forks += 1
        self._children[self._forks] = (order.instance_id, child)
        orphan_pid = self._take_orphan(order.device)
        self._say(msgspec.structs.replace(order, number=self._forks, orphan_pid=orphan_pid), sock.fileno())

    def _let_go(self, number: int) -> None:
        """An instance is spoken to no more. It cannot know whether that is its end or its gateway's."""
        if not self.is_left and number in self._children:
            self._say(Dismiss(number=number))

    def _take_orphan(self, device: str) -> int:
        """Its process id, 0 if there is none."""
        found = next((each for each in self.orphans if each.device == device), None)
        self.orphans = [each for each in self.orphans if each is not found]
        return found.pid if found else 0

    def dismiss_orphans(self, keeping: int = 0) -> None:
        """End those that have not been adopted, but for so many."""
        if self.orphans[keeping:]:
            self._say(Dismiss(orphans=[each.pid for each in self.orphans[keeping:]]))
            self.orphans = self.orphans[:keeping]

    def kill(self, child: Child) -> None:
        """End an instance, even one that is stopped or hangs; ignored if it has ended."""
        if child.pid and any(each is child for _, each in self._children.values()):
            # Its zygote keeps the number from being another's until it has told its end.
            os.kill(child.pid, signal.SIGKILL)

    async def close(self) -> None:
        """End the zygote, and with it what still runs of its instances; or leave them, if it `is_left`."""
        if self._control.fileno() >= 0:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
        self._children.clear()
        self.orphans = ()
        if self.is_left:
            return
        if self._keep is not None:
            self._keep.empty()
        # It leaves when its socket closes, unless it is in the middle of something, or stopped. It has nothing to tidy.
        self._process.kill()
        await self._loop.run_in_executor(None, self._process.wait)

    def _say(self, message: ToZygote, descriptor: int | None = None) -> None:
        try:
            socket.send_fds(self._control, [encode(message)], [] if descriptor is None else [descriptor])
        except OSError as error:
            log.warning("the zygote cannot be reached: %s", error)

    def _hear(self) -> None:
        try:
            while data := self._control.recv(DATAGRAM_BYTES_MAX):
                self._take(data)
        except BlockingIOError:
            return
        except ConnectionError:
            log.debug("the zygote died with orders unread")
        self._on_death()

    def _take(self, data: bytes) -> None:
        message = decode_from_zygote(data)
        if isinstance(message, Warm):
            self._warm.set_result(message.import_s)
        elif isinstance(message, Offered):
            self._settle_offer(message.offer)
        elif isinstance(message, Digested):
            self.digest = message.digest
        elif isinstance(message, Loaded):
            self._settle_offer(b"")
            self._loaded.set_result(message)
        elif isinstance(message, LoadFailed):
            self._settle_offer(b"")
            self._loaded.set_exception(StartError(message.reason, message.hint))
        elif isinstance(message, Orphans):
            self.orphans = message.orphans
        elif isinstance(message, Forked):
            self._children[message.number][1].pid = message.pid
        elif isinstance(message, Exited):
            self._children.pop(message.number)[1].on_exit(message.status)

    def _settle_offer(self, offer: bytes) -> None:
        if not self._offered.done():
            self._offered.set_result(offer)

    def _on_death(self) -> None:
        """The zygote has died, which its instances do not survive."""
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
        self._settle_offer(b"")
        if not self._warm.done():
            self._warm.set_exception(StartError("the engine's process died while it started"))
            self._warm.exception()  # Not everybody waits for it.
        if not self._loaded.done():
            self._loaded.set_exception(StartError("the engine's process died while it started"))
        children, self._children = self._children, {}
        for _, child in children.values():
            child.on_exit(-signal.SIGKILL)


def _start(keep: Keep | None) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.ExitStack() as stack:
        stack.enter_context(theirs)
        words, given = [str(theirs.fileno()), str(os.getpid())], [theirs.fileno()]
        if keep is not None:
            listener = stack.enter_context(keep.bind())
            words += [str(listener.fileno()), str(keep.timeout_s)]
            given.append(listener.fileno())
        command = [sys.executable, "-m", "hyperflexis.adapters.native", *words]
        # In a session of its own it is not told of the end of the terminal.
        process = subprocess.Popen(
            command, pass_fds=given, stdin=subprocess.DEVNULL, start_new_session=keep is not None
        )
    return ours, process


class NativeAdapter(asyncio.Protocol):
    """One native instance, on this host or another: its socket, and what waits to be sent with the next message."""

    def __init__(
        self, listener: Listener, loop: asyncio.AbstractEventLoop, let_go: Callable[[], None] | None = None
    ) -> None:
        """What it is told before it is connected waits until then. Where it is kept, `let_go` sees to its end."""
        self._let_go = let_go
        self.pid = 0
        """0 until it is known."""
        self._listener: Listener | None = listener
        self._loop = loop
        self._frames: Frames[FromInstance] = Frames(FromInstance)
        self._framer = Framer()
        self._submits: list[Submit] = []
        self._cancels: list[int] = []
        self._flush_handle: asyncio.Handle | None = None
        self._transport: asyncio.Transport | None = None
        self._last_words = ""
        self._exit_words = ""
        self._is_disconnected = False
        self._unsent: list[bytes] = []
        self._connecting: asyncio.Task[None] | None = None

    def connect(self, sock: socket.socket) -> None:
        """Speak on this stream, which is connected, from now on. Once."""
        self._connecting = self._loop.create_task(self._connect(sock))

    async def _connect(self, sock: socket.socket) -> None:
        is_local = sock.family == socket.AF_UNIX
        connect = self._loop.create_unix_connection if is_local else self._loop.create_connection
        # Not in connection_made: uvloop loses a socket whose transport is closed before this has returned.
        self._transport, _ = await connect(lambda: self, sock=sock)
        self._transport.writelines(self._unsent)
        self._unsent = []
        if self._listener is None:
            self._transport.close()

    # -- the contract

    def submit(self, submit: Submit) -> None:
        self._submits.append(submit)
        self._flush_soon()

    def cancel(self, request_id: int) -> None:
        # At once: where a request moves, its taker is told first, and must know before the giver frees its blocks.
        self._cancels.append(request_id)
        self._flush()

    def configure(self, rules: Mapping[str, str | int | float | bool], version: int = 0) -> None:
        self._say(Configure(dict(rules), version))

    def order(self, order: Order) -> None:
        self._say(order)

    def close(self) -> None:
        self._listener = None
        if self._let_go is None:
            self._say(Shutdown())
        else:
            self._let_go()
        if self._transport is not None:
            self._transport.close()

    def _flush_soon(self) -> None:
        if self._flush_handle is None:
            self._flush_handle = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        work = Work(self._submits, self._cancels)
        self._submits, self._cancels = [], []
        self._send(self._framer.frame(work))

    def _say(self, message: ToInstance) -> None:
        """After all that was said before."""
        if self._submits:
            self._flush()
        self._send(self._framer.frame(message))

    def _send(self, data: bytes) -> None:
        if self._transport is None:
            self._unsent.append(data)
        elif not self._transport.is_closing():
            self._transport.write(data)

    # -- asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                self._take(message)
        except WireError as error:
            self._last_words = f"it sent garbage: {error}"
            self._lose()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_disconnected = True
        self._lose_when_over()

    def on_exit(self, status: int) -> None:
        self.on_end(exit_in_words(status))

    def on_end(self, words: str) -> None:
        """The process has ended; what it said last may not have been read yet."""
        self._exit_words = words
        self._lose_when_over()

    def fail(self, why: str) -> None:
        """Whoever starts or watches it has given it up."""
        self._exit_words = why
        self._lose()

    def _lose_when_over(self) -> None:
        """Lost when both process and socket have ended; if the other does not follow, it is lost all the same."""
        if self._exit_words and self._is_disconnected:
            self._lose()
        else:
            self._loop.call_later(_PARTING_S, self._lose)

    def _take(self, message: FromInstance) -> None:
        if self._listener is None:
            return
        if isinstance(message, StepReport):
            self._listener.on_report(message)
        elif isinstance(message, Ready):
            self._listener.on_ready(message)
        elif isinstance(message, Failed):
            self._last_words = message.reason
        else:
            self._listener.on_news(message)

    def _lose(self) -> None:
        listener, self._listener = self._listener, None
        if self._transport is not None:
            self._transport.close()
        if listener is not None:
            if self._let_go is not None:
                self._let_go()
            listener.on_lost(self._last_words or self._exit_words or "it closed its socket")
