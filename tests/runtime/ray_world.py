"""A Ray cluster of several nodes on this machine, and a launcher on it, shared by the tests of one module."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from adapters.fleets import PATIENCE_S
from hyperflexis.core.binding import LeastPace
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import SloDispatcher
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Role
from hyperflexis.core.step import StepRules
from hyperflexis.runtime.driver import Driver
from hyperflexis.runtime.launchers.cluster import RayLauncher
from hyperflexis.wire.messages import Sampling
from runtime.live_world import CheckedControlPlane, Client, generate

ROOT = Path(__file__).parents[2]


class RayCluster:
    """A head without room for instances, and nodes with room for one each, known by their raylets' process ids."""

    def __init__(self) -> None:
        # What Ray leaves behind is to be seen; and the names of its sockets must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="hfx-", dir="/tmp"))
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
            "RAY_TMPDIR": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            # By itself Ray starts its processes at niceness 15, and they stand still while other tests compute.
            "RAY_worker_niceness": "0",
        }
        self._complaints = (self.folder / "stderr").open("w+b")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("ray_nodes.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env=environment,
        )
        self.address = str(self._told())
        self.nodes: list[int] = []
        self._has_head = True

    def add(self, how: str = "") -> int:
        """One node more, which joins the cluster in a moment."""
        self._pipe(self._process.stdin).write(f"add {how}\n".encode())
        self._pipe(self._process.stdin).flush()
        self.nodes.append(int(self._told()))
        return self.nodes[-1]

    def grow(self, nodes: int) -> None:
        """Add nodes until there are so many."""
        while len(self.nodes) < nodes:
            self.add()

    def kill(self, node: int) -> None:
        """As a power cut would."""
        self.nodes.remove(node)
        for pid in descendants(node):
            send(pid, signal.SIGKILL)

    def kill_head(self) -> None:
        """All that is the cluster's but the nodes: its memory, and the raylet that drivers use."""
        self._has_head = False
        for pid in children(self._process.pid):
            if pid not in self.nodes:
                for each in descendants(pid):
                    send(each, signal.SIGKILL)

    def node_of(self, pid: int) -> int:
        return next(node for node in self.nodes if pid in descendants(node))

    def close(self) -> None:
        """End it, and see that nothing is left of it."""
        pids = descendants(self._process.pid)
        if not self._has_head:  # It would be waited for.
            self._process.kill()
        self._pipe(self._process.stdin).close()
        self._process.wait(PATIENCE_S)
        self._pipe(self._process.stdout).close()
        # Ray's helpers notice in their own time that what they helped has gone.
        for pid in pids:
            send(pid, signal.SIGKILL)
        self._complaints.close()
        shutil.rmtree(self.folder)

    def _told(self) -> Any:
        line = self._pipe(self._process.stdout).readline()
        if not line:
            self._complaints.seek(0)
            raise AssertionError(f"there is no cluster: {self._complaints.read().decode()}")
        return json.loads(line)

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe


class Fleet:
    """A live driver over a launcher, while a test lasts; every invariant of the core is checked at every event."""

    def __init__(self, launcher: RayLauncher, *roles: Role, binds: bool = False, client: type[Client] = Client) -> None:
        binder = LeastPace() if binds else None
        policy = Policy("test", SloDispatcher(separation=0), StepRules(prefill_tokens_max=96), binder=binder)
        self.control = CheckedControlPlane(policy, FleetBounds.fixed(len(roles), roles))
        self.control.journal = []
        self.launcher = launcher
        self._client = client
        self.driver = Driver(self.control, launcher, block_tokens=16)

    async def __aenter__(self) -> Fleet:
        self.driver.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.driver.close()

    async def until_ready(self, instances: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.driver.wait_until(lambda: self.driver.ready_instances >= instances)

    async def until_linked(self) -> None:
        """Any two instances take from each other."""
        pairs = self.control.sizing.wanted * (self.control.sizing.wanted - 1)
        async with asyncio.timeout(PATIENCE_S):
            while sum(" Linked(" in line for line in self.control.journal) < pairs:  # noqa: ASYNC110 no event tells
                await asyncio.sleep(0.005)

    def submit(self, prompt: list[int], max_tokens: int) -> Client:
        client = self._client(generate(prompt, max_tokens, sampling=Sampling(temperature=0.0)))
        client.ticket = self.driver.submit(client.request, client)
        return client

    async def answers(self, asks: list[tuple[list[int], int]]) -> list[list[int]]:
        """One after the other."""
        found = []
        for prompt, max_tokens in asks:
            client = self.submit(prompt, max_tokens)
            await client.ended()
            found.append(client.tokens)
        return found

    def pids(self) -> list[int]:
        """Of all instances that are ready."""
        said = [member.ready.device for member in self.driver._members.values() if member.ready]
        return [int(device.partition("(")[2].rstrip(")")) for device in said]


def children(pid: int) -> Iterator[int]:
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            yield from map(int, thread.read_text(encoding="ascii").split())
        except OSError:
            continue


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for each in found:
        found += children(each)
    return found


def send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_gone(pids: list[int]) -> None:
    """Return once none of these processes runs."""
    deadline_s = time.monotonic() + PATIENCE_S
    while running := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline_s, f"still there: {running}"
        time.sleep(0.02)
