"""Instances of the native engine on the nodes of a Ray cluster, as the gateway's process sees them.

Ray finds room, starts and stops; it is spoken to by a process of its own (`ray`), so that nothing of it runs here. To
each instance leads one TCP connection, on which it is spoken to as on this machine, and to each node one more, on which
the node shows that it is still there. What is lost is told; what to do about it the control plane decides.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from hyperflexis.adapters.contract import Adapter, Listener
from hyperflexis.adapters.native.host import NativeAdapter, StartError
from hyperflexis.adapters.native.messages import Fork, Load, Loaded
from hyperflexis.core.instance import Role
from hyperflexis.runtime.launchers.beat import Beat
from hyperflexis.runtime.launchers.pulse import Pulse
from hyperflexis.runtime.launchers.ray_words import (
    TOKEN_BYTES,
    Admitted,
    Begin,
    Begun,
    CannotBegin,
    Closed,
    Door,
    Ended,
    FromBroker,
    HeadLost,
    Kill,
    Launch,
    NodeLost,
    Seated,
    ToBroker,
)
from hyperflexis.runtime.launchers.seating import Strategy
from hyperflexis.wire.framing import Framer, Frames
from hyperflexis.wire.messages import News, Ping, Pong, Ready, StepReport

log = logging.getLogger(__name__)

ROOM_TOLD_S = 10.0
"""After so long it is said that an instance waits for room."""
RETRY_S = 3.0
"""Between two tries to speak to Ray again."""
_PARTING_S = 5.0
"""The most that the process that speaks to Ray gets to end what it has started."""


@dataclass(frozen=True, slots=True)
class RaySpec:
    """What every instance of this launcher is like, and what it takes of a node."""

    directory: str
    """The same path on all nodes; empty: the demo model, wherever it is installed there."""
    hub_id: str = ""
    """Where a node that lacks the directory finds the model."""
    address: str = ""
    """Of the cluster; empty: of the one that this machine belongs to."""
    cpus: float = 1.0
    gpus: float | None = None
    """None: one, if the cluster has any."""
    strategy: Strategy = "auto"
    start_timeout_s: float = 600.0
    """From the launch until it is ready, waiting for room included."""
    silence_timeout_s: float = 10.0
    """A node that has not answered for so long is lost."""
    instance_silence_s: float = 30.0
    """An instance that has not, though its node has, is given up."""
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 1
    block_tokens: int = 16
    kv_bytes: int | None = None
    seqs_max: int = 256
    instances: int = 1
    """How many are expected, for the check of memory."""
    samples: Sequence[tuple[tuple[int, int, int, int], float]] = ()
    """What is known of its steps; none: the first instance measures."""
    checks_transfers: bool = False

    def begin(self) -> Begin:
        load = Load(self.directory, self.device, self.dtype, self.block_tokens, self.kv_bytes, self.instances)
        return Begin(self.address, load, self.hub_id, self.cpus, self.gpus, self.strategy)


class RayLauncher:
    """Make with `start`; it owns the process that speaks to Ray, and all instances end with it."""

    def __init__(self, spec: RaySpec) -> None:
        self._spec = spec
        self._loop = asyncio.get_running_loop()
        self._samples = spec.samples
        self._launched: dict[int, _Launched] = {}
        """By number, while it lives."""
        self._launches = 0
        self._beats: dict[Door, Beat] = {}
        self._broker: _Broker | None = None
        self._is_begun = False
        self._begun: asyncio.Future[Loaded] = self._loop.create_future()
        self._retry: asyncio.TimerHandle | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self.loaded: Loaded
        """What the first node read."""

    @classmethod
    async def start(cls, spec: RaySpec) -> RayLauncher:
        """Connect to the cluster and read the model on one of its nodes.

        Raises:
            StartError: it cannot be done, or takes too long; says why and what may help.
        """
        if find_spec("ray") is None:
            raise StartError("ray is not installed", "pip install 'hyperflexis[ray]'")
        launcher = cls(spec)
        launcher._speak()
        try:
            async with asyncio.timeout(spec.start_timeout_s):
                launcher.loaded = await launcher._begun
        except TimeoutError as error:
            await launcher.close()
            raise StartError(
                f"no node of the Ray cluster could begin with an instance within {spec.start_timeout_s:g} s; it needs "
                f"{launcher._need}",
                "`ray status` tells what is free and what is asked for; see ray.cpus_per_instance, ray.start_timeout_s",
            ) from error
        except BaseException:
            await launcher.close()
            raise
        return launcher

    def launch(self, instance_id: int, role: Role, listener: Listener) -> Adapter:
        """Ask for an instance. It learns of its role when it is ready, as of any other rules."""
        self._speak()
        self._launches += 1
        number, spec = self._launches, self._spec
        fork = Fork(
            instance_id=instance_id,
            device=spec.device,
            threads=spec.threads,
            block_tokens=spec.block_tokens,
            blocks=self.loaded.blocks,
            seqs_max=spec.seqs_max,
            samples=self._samples,
            checks_transfers=spec.checks_transfers,
        )
        order = Launch(number, role.value, fork, secrets.token_bytes(TOKEN_BYTES))
        launched = _Launched(self, order, listener)
        self._launched[number] = launched
        if self._is_begun:
            self._say(order)
        return launched.adapter

    async def close(self) -> None:
        """End all instances, and what was started on the cluster."""
        if self._retry is not None:
            self._retry.cancel()
        for launched in list(self._launched.values()):
            launched.adapter.close()
        for beat in self._beats.values():
            beat.close()
        for connecting in self._connecting:
            connecting.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        if self._broker is not None:
            broker, self._broker = self._broker, None
            await broker.close()

    @property
    def places(self) -> dict[int, str]:
        """Where the steward of each instance's node listens, by instance id, of those that have a node."""
        placed = [(each.instance_id, each.door) for each in self._launched.values()]
        return {instance_id: f"{door.host}:{door.port}" for instance_id, door in placed if door is not None}

    @property
    def _need(self) -> str:
        cpus, gpus = f"{self._spec.cpus:g} CPU", self._spec.gpus
        if gpus is None:
            return cpus if self._spec.device == "cpu" else f"{cpus} and, if the cluster has any, a GPU"
        return f"{cpus} and {gpus:g} GPU" if gpus else cpus

    # -- the process that speaks to Ray

    def _speak(self) -> None:
        """Have a process that does, unless there is one."""
        if self._broker is None:
            self._broker = _Broker(self._hear, self._on_broker_lost)
            self._say(self._spec.begin())

    def _say(self, message: ToBroker) -> None:
        if self._broker is not None:
            self._broker.say(message)

    def _hear(self, message: FromBroker) -> None:
        if isinstance(message, Begun):
            self._on_begun(message.loaded)
        elif isinstance(message, CannotBegin):
            self._on_refused(message)
        elif isinstance(message, Seated | Admitted | Ended):
            if launched := self._launched.get(message.number):
                launched.hear(message)
        elif isinstance(message, Closed):
            if beat := self._beats.get(message.door):
                beat.close()
                self._on_silence(message.door, "has left the Ray cluster")
        elif isinstance(message, HeadLost):
            log.warning("Ray's head does not answer: what lives goes on, but nothing new can be started until it does")
        else:
            log.warning("Ray's head answers again")

    def _on_begun(self, loaded: Loaded) -> None:
        self._is_begun = True
        if not self._begun.done():
            self._begun.set_result(loaded)
        else:
            log.warning("Ray is back")
        for launched in self._launched.values():
            if launched.door is None:
                self._say(launched.order)

    def _on_refused(self, refused: CannotBegin) -> None:
        """Of no use; it is left to end, and then tried again if somebody waits for an instance."""
        if not self._begun.done():
            self._begun.set_exception(StartError(refused.reason, refused.hint))
        log.debug("Ray is not back: %s", refused.reason)
        assert self._broker is not None
        self._broker.leave()

    def _on_broker_lost(self) -> None:
        if not self._begun.done():
            self._begun.set_exception(
                StartError(
                    "the process that speaks to Ray died while it started", "is the version of Ray the cluster's?"
                )
            )
        if self._is_begun:
            log.warning("Ray is lost: what lives goes on, but nothing new can be started until it is back")
        self._broker, self._is_begun = None, False
        self._retry = self._loop.call_later(RETRY_S, self._speak_again)

    def _speak_again(self) -> None:
        """If anybody waits for it: else the next launch will."""
        if any(launched.door is None for launched in self._launched.values()):
            self._speak()

    # -- for what is launched

    def admit(self, launched: _Launched, door: Door) -> None:
        """Connect to where an instance is expected, and watch its node."""
        if door not in self._beats:
            beat = self._beats[door] = Beat(
                door.token, self._spec.silence_timeout_s, functools.partial(self._on_silence, door)
            )
            self._keep(beat.connect(door.host, door.port))
        self._keep(launched.connect(door))

    def remember(self, ready: Ready) -> None:
        """Siblings compute the same model on the same kind of device: what one measured, the next need not."""
        self._samples = self._samples or ready.samples

    def forget(self, number: int) -> None:
        """It has ended, or nobody wants it any more."""
        if self._launched.pop(number, None) is not None:
            self._say(Kill(number))

    @property
    def start_timeout_s(self) -> float:
        return self._spec.start_timeout_s

    @property
    def instance_silence_s(self) -> float:
        return self._spec.instance_silence_s

    def room_words(self) -> str:
        return (
            f"it waits for a node of the Ray cluster with {self._need} free; an autoscaler, if there is one, was asked"
        )

    def _on_silence(self, door: Door, why: str) -> None:
        del self._beats[door]
        self._say(NodeLost(door))
        there = [each for each in self._launched.values() if each.door == door]
        if there:
            log.warning("node %s %s: its %d instances are lost", door.host, why, len(there))
        for launched in there:
            launched.adapter.fail(f"its node {door.host} {why}")

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)


class _Launched:
    """One instance from its launch to its end; it hears of it before its listener does."""

    def __init__(self, launcher: RayLauncher, order: Launch, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        self.order = order
        self.adapter = _ClusterAdapter(self, loop)
        self.door: Door | None = None
        """Where it is, once a node expects it."""
        self.origin = ""
        """How the weights came to that node."""
        self._launcher = launcher
        self._listener = listener
        self._pulse: Pulse | None = None
        """Once it is ready."""
        self._stands = launcher.room_words()
        """How far its start has come, for people."""
        self._timers = [
            loop.call_later(launcher.start_timeout_s, self._give_up),
            loop.call_later(ROOM_TOLD_S, self._tell),
        ]

    @property
    def instance_id(self) -> int:
        return self.order.fork.instance_id

    def hear(self, message: Seated | Admitted | Ended) -> None:
        """What the cluster says of it."""
        if isinstance(message, Seated):
            self._stands = f"node {message.address} has room for it and reads the model"
        elif isinstance(message, Admitted):
            self._stands = f"it starts on node {message.door.host}, whose weights came by {message.origin}"
            log.info("i%d: %s", self.instance_id, self._stands)
            self.origin = message.origin
            self.door = message.door
            self._launcher.admit(self, message.door)
        elif self.door is None:
            self.adapter.fail(message.why)
        else:
            self.adapter.on_end(message.why)

    async def connect(self, door: Door) -> None:
        """Go in, which is what the node waits for to start it."""
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET6 if ":" in door.host else socket.AF_INET)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, (door.host, door.port))
            await loop.sock_sendall(sock, self.order.token)
        except OSError as error:
            sock.close()
            self.adapter.fail(f"its node {door.host} cannot be reached: {error.strerror or error}")
        except BaseException:
            sock.close()
            raise
        else:
            self.adapter.connect(sock)

    def _give_up(self) -> None:
        self.adapter.fail(f"it was not ready within {self._launcher.start_timeout_s:g} s: {self._stands}")

    def _tell(self) -> None:
        if self.door is None:
            log.warning("i%d is not there yet: %s", self.instance_id, self._stands)

    def end(self) -> None:
        """Nobody is to hear of it any more."""
        self._stop_timers()
        if self._pulse is not None:
            self._pulse.end()
        self._launcher.forget(self.order.number)

    def _stop_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()

    # -- the contract's listener

    def on_ready(self, ready: Ready) -> None:
        self._stop_timers()
        self._launcher.remember(ready)
        self._pulse = Pulse(self._launcher.instance_silence_s, lambda: self.adapter.order(Ping()), self.adapter.fail)
        self._listener.on_ready(ready)

    def on_report(self, report: StepReport) -> None:
        self._note_word()
        self._listener.on_report(report)

    def on_news(self, news: News) -> None:
        self._note_word()
        if not isinstance(news, Pong):
            self._listener.on_news(news)

    def on_lost(self, why: str) -> None:
        self.end()
        self._listener.on_lost(why)

    def _note_word(self) -> None:
        if self._pulse is not None:
            self._pulse.heard()


class _ClusterAdapter(NativeAdapter):
    """Ends its instance where that cannot be told, too: before it is connected, or if it has frozen."""

    def __init__(self, launched: _Launched, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(launched, loop)
        self._launched = launched

    def close(self) -> None:
        super().close()
        self._launched.end()


class _Broker(asyncio.Protocol):
    """The process that speaks to Ray, and the socket to it. `on_lost` is called when it has gone of its own accord."""

    def __init__(self, hear: Callable[[FromBroker], None], on_lost: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._hear: Callable[[FromBroker], None] | None = hear
        self._on_lost: Callable[[], None] | None = on_lost
        self._frames: Frames[FromBroker] = Frames(FromBroker)
        self._framer = Framer()
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        with theirs:
            command = [sys.executable, "-m", "hyperflexis.runtime.launchers", str(theirs.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._opening = self._loop.create_task(self._open(ours))

    async def _open(self, sock: socket.socket) -> None:
        self._transport, _ = await self._loop.create_unix_connection(lambda: self, sock=sock)
        self._transport.writelines(self._unsent)

    def say(self, message: ToBroker) -> None:
        if self._transport is None:
            self._unsent.append(self._framer.frame(message))
        elif not self._transport.is_closing():
            self._transport.write(self._framer.frame(message))

    def leave(self) -> None:
        """Let it end; `on_lost` is called when it has."""
        if self._transport is not None:
            self._transport.close()

    async def close(self) -> None:
        """Have it end all that it has started, and wait for it."""
        self._hear = self._on_lost = None
        await self._opening
        self.leave()
        waiting = self._loop.run_in_executor(None, self._process.wait)
        try:
            await asyncio.wait_for(asyncio.shield(waiting), _PARTING_S)
        except TimeoutError:
            self._process.kill()
            await waiting

    # -- asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            if self._hear is not None:
                self._hear(message)

    def connection_lost(self, exc: Exception | None) -> None:
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            self._loop.run_in_executor(None, self._process.wait)
            on_lost()
