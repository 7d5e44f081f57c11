"""Servers that fail at random while requests come and go: tokens are right, ends are ends, and nothing is left behind.

`make soak` plays other worlds each time, and more of them.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from helpers import soak
from hyperflexis.adapters.vllm.standin.server import StandIn
from hyperflexis.core.instance import Role
from hyperflexis.policies import create
from runtime.attached_world import TRAITS, AttachedWorld, live

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED
CONNECTED = replace(TRAITS, has_connector=True, root="/models/demo", step_s=0.001)
FAULTS = ("refuse", "cut", "done_without_reason", "abort", "unhealthy", "no_metrics", "wrong_first_token")
ACTIONS = 60


class Chaos:
    """One world in which everything may happen."""

    def __init__(self, world: AttachedWorld, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.stopped: list[StandIn] = []

    async def act(self) -> None:
        draw = self.random.random()
        if draw < 0.55:
            self._submit()
        elif draw < 0.65:
            self.world.driver.cancel(self.random.choice(self.world.clients).ticket)
        elif draw < 0.85:
            await self._fault()
        elif draw < 0.93:
            await self._die()
        elif self.stopped:
            await self.stopped.pop().start()
        await asyncio.sleep(self.random.choice([0.0, 0.001, 0.01]))

    def _submit(self) -> None:
        prompt = [20 + self.random.randrange(2000) for _ in range(self.random.randrange(1, 60))]
        self.world.submit(prompt, self.random.choice([1, 2, 5, 30, 80]))

    async def _fault(self) -> None:
        """Something is wrong with a server for a moment."""
        server, fault = self.random.choice(self.world.servers), self.random.choice(FAULTS)
        setattr(server.faults, fault, True)
        await asyncio.sleep(self.random.choice([0.002, 0.02, 0.06]))
        setattr(server.faults, fault, False)

    async def _die(self) -> None:
        server = self.random.choice(self.world.servers)
        if server in self.stopped:
            return
        if self.random.random() < 0.5:
            await server.restart()
        elif len(self.stopped) + 1 < len(self.world.servers):
            await server.stop()
            self.stopped.append(server)

    async def end(self) -> None:
        """Everything is well again; everybody has an end, and the right tokens up to it."""
        for server in self.stopped:
            await server.start()
        for client in self.world.clients:
            await client.ended()
            client.check()
            assert client.end.reason in ("length", "cancelled", "rejected"), client.end
            assert client.end.reason != "rejected" or "gave it back" in client.end.message, client.end
        assert self.world.driver.live_requests == 0
        assert not self.world.control.cluster.requests
        for adapter in self.world.launcher._adapters.values():
            assert not adapter._running
            assert not adapter._moves.taking
            assert not adapter._moves._standing
            assert not adapter._moves._callers
            assert not adapter._gate._held
        for instance in self.world.control.cluster.instances.values():
            assert instance.is_empty
            assert not instance.standing
            assert not instance.arriving
        while any(server.live for server in self.world.servers):  # noqa: ASYNC110 servers notice by themselves
            await asyncio.sleep(0.005)


@pytest.mark.soak
@pytest.mark.parametrize("roles", [(M, M, M), (P, D, M), (P, P, D, D)], ids=["mixed", "some apart", "apart"])
@pytest.mark.parametrize("seed", range(soak.FIRST_SEED, soak.FIRST_SEED + soak.examples(2)))
@live
async def test_anything_may_happen(seed: int, roles: tuple[Role, ...]) -> None:
    policy = create("hyperflexis", 2048, roles="fixed")
    async with AttachedWorld([CONNECTED] * len(roles), roles=roles, policy=policy, passes_kv=True) as world:
        await world.ready()
        chaos = Chaos(world, seed)
        for _ in range(3):
            chaos._submit()
        for _ in range(ACTIONS):
            await chaos.act()
        await chaos.end()
