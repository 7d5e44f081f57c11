"""The Ray launcher on a real cluster of several nodes on this machine: starts, losses, and what is left of them."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import subprocess
import urllib.request
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import uvloop

from adapters.fleets import PATIENCE_S, Heard, submission
from e2e.conftest import Serving
from hyperflexis.core.instance import Role
from hyperflexis.runtime.launchers.cluster import RayLauncher, RaySpec
from runtime.ray_world import Fleet, RayCluster, descendants, send, wait_gone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed"),
    # What stood on a node that was killed may be left to the collector, and is then told of in whatever test that runs.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

SILENCE_S = 4.0
"""Long enough for a busy machine."""
ASKS = [([5 + 3 * index, 7, 11 + index] * (4 + index), 30 + index) for index in range(20)]


class World:
    """A cluster of two nodes, and a launcher that lasts as long."""

    def __init__(self) -> None:
        self.cluster = RayCluster()
        self.cluster.add("apart" if can_stand_apart() else "")
        self.cluster.add()
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.spec = RaySpec(
            "",
            address=self.cluster.address,
            device="cpu",
            dtype="float32",
            kv_bytes=1 << 24,
            silence_timeout_s=SILENCE_S,
            instance_silence_s=SILENCE_S,
        )
        self.launcher = self.runner.run(RayLauncher.start(self.spec))

    def play(self, test: Coroutine[Any, Any, None]) -> None:
        try:
            self.runner.run(test)
        finally:
            self.runner.run(self._clear())

    async def _clear(self) -> None:
        """What a test that failed has left would keep the room from all that follow."""
        for launched in list(self.launcher._launched.values()):
            launched.adapter.close()

    def close(self) -> None:
        pid = self.launcher._broker._process.pid if self.launcher._broker else 0
        self.runner.run(self.launcher.close())
        self.runner.close()
        wait_gone([pid] if pid else [])
        self.cluster.close()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World()
    try:
        yield world
    finally:
        world.close()
    gc.collect()
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(("plasma", "hyperflexis"))]


def test_instances_stand_on_different_nodes_and_answer_alike(world: World) -> None:
    async def play() -> None:
        heard = [Heard(), Heard()]
        adapters = [world.launcher.launch(index, Role.MIXED, each) for index, each in enumerate(heard)]
        for each, adapter in zip(heard, adapters, strict=True):
            ready = await each.until_ready()
            assert ready.device.startswith("cpu")
            adapter.submit(submission(1, [7, 8, 9], 30))
            await each.until_finished(1)
        assert heard[0].tokens == heard[1].tokens
        assert len(set(world.launcher.places.values())) == 2
        origins = {each.origin for each in world.launcher._launched.values()}
        assert origins == {"disk", "tcp"} if can_stand_apart() else len(origins) == 2
        for adapter in adapters:
            adapter.close()
        assert world.launcher.places == {}

    world.play(play())


def test_prefill_on_one_node_and_decode_on_another(world: World) -> None:
    """The KV goes by TCP, if the two could be kept from sharing memory."""

    async def play() -> None:
        async with Fleet(world.launcher, Role.MIXED) as fleet:
            await fleet.until_ready(1)
            expected = await fleet.answers(ASKS)
        async with Fleet(world.launcher, Role.PREFILL, Role.DECODE, binds=True) as fleet:
            await fleet.until_linked()
            assert len(set(world.launcher.places.values())) == 2
            clients = [fleet.submit(*ask) for ask in ASKS]
            for client in clients:
                await client.ended()
            assert [client.tokens for client in clients] == expected
            moves = sum(client.end.verdict.migrations for client in clients if client.end.verdict)
            assert moves > len(ASKS) // 2
            if can_stand_apart():
                first, second = (os.stat(f"/proc/{pid}/ns/time").st_ino for pid in fleet.pids())
                assert first != second, "the KV may have gone by shared memory"

    world.play(play())


def can_stand_apart() -> bool:
    """Whether this user may make namespaces."""
    words = ["unshare", "--user", "--map-root-user", "--time", "true"]
    return which("unshare") is not None and subprocess.run(words, capture_output=True, check=False).returncode == 0


def test_killed_instance_is_lost_with_words_and_gives_its_room_back(world: World) -> None:
    async def play() -> None:
        for number in range(3):
            heard = Heard()
            adapter = world.launcher.launch(number, Role.MIXED, heard)
            ready = await heard.until_ready()
            os.kill(int(ready.device.partition("(")[2].rstrip(")")), signal.SIGKILL)
            assert await heard.until_lost() == "killed by SIGKILL"
            adapter.close()

    world.play(play())


def test_instance_ends_with_the_room_that_was_set_aside_for_it(world: World) -> None:
    async def play() -> None:
        heard = Heard()
        adapter = world.launcher.launch(0, Role.MIXED, heard)
        ready = await heard.until_ready()
        instance = int(ready.device.partition("(")[2].rstrip(")"))
        node = world.cluster.node_of(instance)
        (seat,) = [pid for pid in descendants(node) if title(pid).startswith("ray::Seat")]
        os.kill(seat, signal.SIGKILL)
        await heard.until_lost()
        wait_gone([instance])
        adapter.close()

    world.play(play())


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_instance_that_finds_no_room_is_given_up(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        heard = [Heard(), Heard(), Heard()]
        adapters = [world.launcher.launch(index, Role.MIXED, each) for index, each in enumerate(heard[:2])]
        for each in heard[:2]:
            await each.until_ready()
        spec, world.launcher._spec = world.launcher._spec, replace(world.spec, start_timeout_s=0.5)
        adapters.append(world.launcher.launch(2, Role.MIXED, heard[2]))
        why = await heard[2].until_lost()
        world.launcher._spec = spec
        assert why.startswith("it was not ready within 0.5 s: it waits for a node of the Ray cluster with 1 CPU")
        assert not heard[0].lost
        assert not heard[1].lost
        for adapter in adapters:
            adapter.close()

    world.play(play())


def test_serve_answers_from_the_cluster_and_leaves_nothing_there(world: World) -> None:
    """Also if it is killed, and can tell nobody."""
    serving = Serving("--launcher", "ray", "--ray-address", world.cluster.address, "--dtype", "float32")
    try:
        url = serving.wait_ready()
        body = {"prompt": "import os\n", "max_tokens": 8, "temperature": 0}
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 8
        # The launcher of this module has none meanwhile.
        seats = [pid for node in world.cluster.nodes for pid in descendants(node) if title(pid).startswith("ray::Seat")]
        assert len(seats) == 2
    finally:
        serving.kill()
    wait_gone(seats)


def test_node_that_freezes_is_lost(world: World) -> None:
    """Its kernel closes no socket and answers for it, as after a partition or when a virtual machine is paused."""

    async def play() -> None:
        heard = Heard()
        adapter = world.launcher.launch(0, Role.MIXED, heard)
        ready = await heard.until_ready()
        node = world.cluster.node_of(int(ready.device.partition("(")[2].rstrip(")")))
        pids = descendants(node)
        for pid in pids:
            send(pid, signal.SIGSTOP)
        why = await heard.until_lost()
        assert why.startswith("its node ")
        assert "has not answered for 4 s" in why
        adapter.close()
        world.cluster.kill(node)

    world.play(play())


def test_instance_that_is_stopped_on_a_node_that_lives_is_lost(world: World) -> None:
    """What it had goes on elsewhere, and its process is ended."""

    async def play() -> None:
        world.cluster.grow(2)
        async with Fleet(world.launcher, Role.MIXED, Role.MIXED) as fleet:
            await fleet.until_ready(1)
            expected = await fleet.answers(ASKS[:6])
            await fleet.until_ready(2)
            clients = [fleet.submit(*ask) for ask in ASKS[:6]]
            await clients[-1].heard(5)
            stopped = fleet.pids()[0]
            send(stopped, signal.SIGSTOP)
            for client in clients:
                assert (await client.ended()).reason == "length"
            assert [client.tokens for client in clients] == expected
            assert stopped not in fleet.pids()
            await asyncio.get_running_loop().run_in_executor(None, wait_gone, [stopped])

    world.play(play())


def test_every_request_finishes_with_the_right_tokens_while_nodes_come_and_go(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Two nodes become three, and one is killed under load."""

    async def play() -> None:
        world.cluster.grow(2)
        async with Fleet(world.launcher, Role.MIXED, Role.MIXED, Role.MIXED) as fleet:
            await fleet.until_ready(1)
            expected = await fleet.answers(ASKS)
            await fleet.until_ready(2)
            clients = [fleet.submit(*ask) for ask in ASKS]
            world.cluster.grow(3)
            await fleet.until_ready(3)
            assert len(set(world.launcher.places.values())) == 3
            clients += [fleet.submit(*ask) for ask in ASKS]
            await clients[-1].heard(5)
            lost = fleet.pids()[0]
            world.cluster.kill(world.cluster.node_of(lost))
            for client in clients:
                assert (await client.ended()).reason == "length"
            assert [client.tokens for client in clients] == [*expected, *expected]
            moved = [client for client in clients if client.end.verdict and client.end.verdict.migrations]
            assert moved, "the instance that was killed had nothing to do"
            assert lost not in fleet.pids()

    world.play(play())


def test_what_lives_goes_on_without_the_head(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The last of this module: the cluster is of no use after it."""

    async def play() -> None:
        world.cluster.grow(2)
        async with Fleet(world.launcher, Role.MIXED) as fleet:
            await fleet.until_ready(1)
            expected = await fleet.answers(ASKS)
            with caplog.at_level(logging.WARNING):
                clients = [fleet.submit(*ask) for ask in ASKS]
                await clients[0].heard(1)
                world.cluster.kill_head()
                while "what lives goes on" not in caplog.text:  # noqa: ASYNC110 there is no event for it
                    await asyncio.sleep(0.05)
                clients += [fleet.submit(*ask) for ask in ASKS]
                for client in clients:
                    await client.ended()
                assert [client.tokens for client in clients] == [*expected, *expected]
            heard = Heard()
            spec, world.launcher._spec = world.launcher._spec, replace(world.spec, start_timeout_s=0.5)
            adapter = world.launcher.launch(9, Role.MIXED, heard)
            assert (await heard.until_lost()).startswith("it was not ready within 0.5 s")
            world.launcher._spec = spec
            adapter.close()

    world.play(play())
