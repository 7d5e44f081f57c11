"""One per node of a cluster: owns that node's zygote, and lets the gateway in to each instance that is forked.

It listens on the node's address. Whoever connects is a stranger until it has brought a token, which is compared in
constant time: that of an instance which is expected makes the connection that instance's own; the steward's own makes
it one on which every byte comes back, so that a node that has frozen is told from one that is busy. Knows nothing of
Ray, and nothing of what is said on the connections that it hands over.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import secrets
import signal
import socket
import tempfile
from pathlib import Path

import msgspec

from hyperflexis.adapters.native.host import StartError, ZygoteHost
from hyperflexis.adapters.native.lineage import exit_in_words
from hyperflexis.adapters.native.messages import Fork, Load, Loaded, LoadFailed, WeightsSpec
from hyperflexis.runtime.checkpoint import CheckpointUnavailableError, demo_directory, fetch
from hyperflexis.runtime.launchers.ray_words import TOKEN_BYTES, Door

log = logging.getLogger(__name__)

GREETING_S = 5.0
"""What a stranger may take to bring its token."""
STRANGERS_MAX = 64
FORGOTTEN_ASKED_S = 2.0
"""How often it looks whether anybody needs it."""
_PAUSE_S = 0.2
"""Before the next try to accept when the process has no descriptor left."""


class Steward:
    """Begins with `open`, on the event loop that all other calls are made on."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._files: tempfile.TemporaryDirectory[str] | None = None
        """What another node gave of a checkpoint that is not here, besides the weights."""
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self._tenants: dict[int, _Tenant] = {}
        self._strangers = 0
        self._watchers = 0
        self._greetings: set[asyncio.Task[None]] = set()

    async def open(self) -> Door:
        """Listen, and have a zygote import what instances need."""
        take_usual_share()
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._listener = socket.create_server((self._host, 0), family=family)
        self._listener.setblocking(False)
        self._zygote = ZygoteHost()
        self._accepting = asyncio.create_task(self._accept())
        self._lingering = asyncio.create_task(self._leave_if_forgotten())
        return Door(self._host, self._listener.getsockname()[1], self._token)

    async def load(self, order: Load, hub_id: str, candidates: list[bytes]) -> Loaded | LoadFailed:
        """Take the model's weights from another node that offers them, else from where they are on this one."""
        weights = WeightsSpec(candidates=candidates, lends=True, host=self._host)
        try:
            directory = await asyncio.to_thread(self._located, order.directory, hub_id, candidates)
            return await self._zygote.load(msgspec.structs.replace(order, directory=directory, weights=weights))
        except (StartError, CheckpointUnavailableError) as error:
            return LoadFailed(f"node {self._host}: {error}", error.hint)

    async def offer(self) -> bytes:
        """What leads other nodes to the weights, as soon as the first of them are here; empty if there will be none."""
        return await self._zygote.offer()

    async def admit(self, number: int, order: Fork, token: bytes) -> None:
        """Fork this instance as soon as somebody brings its token."""
        order = msgspec.structs.replace(order, peers_host=self._host)
        self._tenants[number] = _Tenant(order, token)

    async def ended(self, number: int) -> str:
        """Wait for the end of an instance; return it in words."""
        tenant = self._tenants.get(number)
        return "" if tenant is None else await asyncio.shield(tenant.ended)

    async def expel(self, number: int) -> None:
        """End an instance, at once and whatever it is doing; what was never let in is not expected any more."""
        if tenant := self._tenants.pop(number, None):
            tenant.expel()

    async def pids(self) -> dict[int, int]:
        """Process ids by instance, of those that live."""
        return self._zygote.pids

    async def hold(self) -> None:
        """Return when it is closed, or with an error if it dies."""
        await asyncio.wait((self._accepting,))

    async def close(self) -> None:
        """End the zygote and its instances, and listen no more."""
        tasks = (self._accepting, self._lingering, *self._greetings)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()
        await self._zygote.close()
        self._forget_files()

    def _forget_files(self) -> None:
        if self._files is not None:
            self._files.cleanup()
            self._files = None

    async def _leave_if_forgotten(self) -> None:
        """Whoever started this process may die, as a node of Ray's does when its head is gone: no reason to end what a
        gateway still uses, but one to end when none does, for nobody else would see to it.
        """
        parent_pid = os.getppid()
        while os.getppid() == parent_pid or self._watchers:  # noqa: ASYNC110 there is no event for it
            await asyncio.sleep(FORGOTTEN_ASKED_S)
        self._forget_files()
        os._exit(1)  # The zygote and what it has forked follow.

    def _located(self, directory: str, hub_id: str, candidates: list[bytes]) -> str:
        """The model's directory; an empty one where even its configuration has to come from another node."""
        if not directory:
            return str(demo_directory())
        if Path(directory).is_dir():
            return directory
        if candidates:
            self._files = self._files or tempfile.TemporaryDirectory(prefix="hyperflexis-")
            return self._files.name
        if hub_id:
            return str(fetch(hub_id))
        raise StartError(
            f"there is no directory {directory}",
            "put the model at the same path on every node, or on a disk that they share, or give a Hugging Face id",
        )

    # -- who connects

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                log.warning("no connection can be accepted: %s", error)
                await asyncio.sleep(_PAUSE_S)
                continue
            sock.setblocking(False)
            if self._strangers >= STRANGERS_MAX:
                sock.close()
                continue
            self._strangers += 1
            greeting = asyncio.create_task(self._greet(sock))
            self._greetings.add(greeting)
            greeting.add_done_callback(self._greetings.discard)

    async def _greet(self, sock: socket.socket) -> None:
        with sock:
            try:
                async with asyncio.timeout(GREETING_S):
                    token = await _read(sock, TOKEN_BYTES)
            except (TimeoutError, OSError):
                token = b""
            finally:
                self._strangers -= 1
            if hmac.compare_digest(token, self._token):
                self._watchers += 1
                await _echo(sock)
                self._watchers -= 1
            elif tenant := self._expected(token):
                self._let_in(tenant, sock)
            else:
                log.warning("a connection was refused: it did not bring the token of anything that is expected")

    def _expected(self, token: bytes) -> _Tenant | None:
        """Compares with all of them, so that the time it takes tells nothing."""
        found = [each for each in self._tenants.values() if hmac.compare_digest(token, each.token)]
        return found[0] if found and not found[0].is_inside else None

    def _let_in(self, tenant: _Tenant, sock: socket.socket) -> None:
        tenant.is_inside = True
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._zygote.fork_onto(sock, tenant.order, tenant)


class _Tenant:
    """An instance of this node, expected or forked."""

    def __init__(self, order: Fork, token: bytes) -> None:
        self.order = order
        self.token = token
        self.is_inside = False
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._pid = 0
        self._is_expelled = False

    @property
    def pid(self) -> int:
        return self._pid

    @pid.setter
    def pid(self, pid: int) -> None:
        self._pid = pid
        if self._is_expelled:
            self.expel()

    def on_exit(self, status: int) -> None:
        self._pid = 0
        if not self.ended.done():
            self.ended.set_result(exit_in_words(status))

    def expel(self) -> None:
        """Kill it now, or as soon as there is something to kill."""
        self._is_expelled = True
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)


def take_usual_share() -> None:
    """Have this thread, and what it starts, yield to nobody: Ray makes its processes as nice as 15, and whatever else
    runs on the node would take the cores from the instances that it is there for.
    """
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    if niceness <= 0:
        return
    try:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    except OSError:
        log.warning(
            "instances here run at niceness %d, as Ray started this process, and it may not change that: others come "
            "first; RAY_worker_niceness=0 in the environment of `ray start` lets them run like those",
            niceness,
        )


async def _read(sock: socket.socket, size_bytes: int) -> bytes:
    """Less only if the peer closes first."""
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < size_bytes and (more := await loop.sock_recv(sock, size_bytes - len(data))):
        data += more
    return data


async def _echo(sock: socket.socket) -> None:
    """Give every byte back until the peer has gone."""
    loop = asyncio.get_running_loop()
    try:
        while data := await loop.sock_recv(sock, 64):
            await loop.sock_sendall(sock, data)
    except OSError:
        log.debug("a watcher was lost")
