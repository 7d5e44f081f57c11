"""The gateway process's side of the native engine: a handle on the zygote, and one adapter per instance.

Imports no torch. All methods belong to one event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Protocol

import msgspec

from hyperflexis.adapters.contract import Listener
from hyperflexis.adapters.native.lineage import exit_in_words
from hyperflexis.adapters.native.messages import (
    DATAGRAM_BYTES_MAX,
    Digested,
    Exited,
    Fork,
    Forked,
    Load,
    Loaded,
    LoadFailed,
    Offered,
    Profile,
    ToZygote,
    Warm,
    decode_from_zygote,
    encode,
)
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

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._warm: asyncio.Future[float] = self._loop.create_future()
        self._loaded: asyncio.Future[Loaded] = self._loop.create_future()
        self._offered: asyncio.Future[bytes] = self._loop.create_future()
        self.digest = b""
        """Root digest of the weights that are lent, once it is known."""
        self._forks = 0
        self._children: dict[int, tuple[int, Child]] = {}
        """By number of the fork, while it lives: instance id, and who hears of it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._control = ours
        ask_for_short_slices()
        with theirs:
            command = [sys.executable, "-m", "hyperflexis.adapters.native", str(theirs.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._loop.add_reader(ours.fileno(), self._hear)

    async def load(self, order: Load) -> Loaded:
        """Read the model into shared memory.

        Raises:
            StartError: it cannot be loaded, or the zygote died.
        """
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
        adapter = NativeAdapter(listener, self._loop)
        adapter.connect(ours)
        with theirs:
            self.fork_onto(theirs, order, adapter)
        return adapter

    def fork_onto(self, sock: socket.socket, order: Fork, child: Child) -> None:
        """Start an instance that speaks on this stream. The caller's descriptor of it stays the caller's."""
        self._forks += 1
        self._children[self._forks] = (order.instance_id, child)
        self._say(msgspec.structs.replace(order, number=self._forks), sock)

    def kill(self, instance_id: int) -> None:
        """End an instance, even one that is stopped or hangs; ignored if there is none."""
        if pid := self.pids.get(instance_id):
            os.kill(pid, signal.SIGKILL)  # Its zygote keeps the number from being another's until it has told its end.

    async def close(self) -> None:
        """End the zygote, and with it what still runs of its instances."""
        if self._control.fileno() >= 0:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
        self._children.clear()
        # It leaves when its socket closes, unless it is in the middle of something, or stopped. It has nothing to tidy.
        self._process.kill()
        await self._loop.run_in_executor(None, self._process.wait)

    def _say(self, message: ToZygote, sock: socket.socket | None = None) -> None:
        try:
            socket.send_fds(self._control, [encode(message)], [sock.fileno()] if sock else [])
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


class NativeAdapter(asyncio.Protocol):
    """One native instance, on this host or another: its socket, and what waits to be sent with the next message."""

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        """What it is told before it is connected waits until then."""
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
        self._say(Shutdown())
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
            listener.on_lost(self._last_words or self._exit_words or "it closed its socket")
