"""Requests that go from process to process behind the live driver, while processes are killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import pytest

from adapters.fleets import PATIENCE_S, NativeFleet
from helpers import soak
from hyperflexis.adapters.native.host import NativeAdapter
from hyperflexis.core.binding import LeastPace
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import SloDispatcher
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Role
from hyperflexis.core.step import StepRules
from hyperflexis.runtime.driver import Driver
from hyperflexis.wire.messages import Sampling
from runtime.live_world import CheckedControlPlane, Client, generate

pytestmark = pytest.mark.slow

PREFILL, DECODE, MIXED = Role.PREFILL, Role.DECODE, Role.MIXED


class Fleet:
    """A driver whose instances are processes; every invariant of the core is checked at every event."""

    def __init__(self, native: NativeFleet, *roles: Role) -> None:
        policy = Policy("moving", SloDispatcher(separation=0), StepRules(prefill_tokens_max=96), binder=LeastPace())
        self.control = CheckedControlPlane(policy, FleetBounds.fixed(len(roles), roles))
        self.control.journal = []
        self.driver = Driver(self.control, native.launcher, block_tokens=16)
        self.accidents: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.accidents.append(repr(context)))

    async def __aenter__(self) -> Fleet:
        self.driver.start()
        await self.until_whole()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.driver.close()
        assert not self.accidents, self.accidents

    async def until_whole(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.control.cluster.ready) < self.control.sizing.wanted:  # noqa: ASYNC110 no event tells
                await asyncio.sleep(0.005)

    def submit(self, prompt: list[int], max_tokens: int, sampling: Sampling) -> Client:
        client = Client(generate(prompt, max_tokens, sampling=sampling))
        client.ticket = self.driver.submit(client.request, client)
        return client

    def move(self, client: Client) -> bool:
        control, request = self.control, self.control.cluster.requests.get(client.ticket)
        if request is None or request.id in control.migrations or request.instance_id is None:
            return False
        source = control.cluster.instances[request.instance_id]
        targets = [each for each in control.cluster.ready if control.migrations.can(source, each)]
        if not targets or request.id in source.standing:
            return False
        reason = Reason(Why.RELIEVES)
        now = self.driver._clock()
        self.driver._commands.append(control.migrations.begin(request, targets[0], reason, now))
        self.driver._perform()
        return True

    def kill(self, instance_id: int) -> None:
        adapter = self.driver._members[instance_id].adapter
        assert isinstance(adapter, NativeAdapter)
        os.kill(adapter.pid, signal.SIGKILL)

    async def check_empty(self) -> None:
        """Every pool is whole again, as the next report of each says: what has left one says so in no report."""
        for member in self.driver._members.values():
            member.report = None
        while any(member.report is None for member in self.driver._members.values()):
            # So many at a time that each instance has some; one alone would always go to the same.
            for client in [
                self.submit([7], 2, Sampling(temperature=0.0)) for _ in range(2 * len(self.driver._members))
            ]:
                await client.ended()
        await asyncio.sleep(0.3)
        for instance_id, member in self.driver._members.items():
            assert member.ready is not None
            assert member.report is not None
            assert member.report.blocks_free == member.ready.blocks, f"i{instance_id} has something left"


def workload(chance: random.Random, count: int) -> list[tuple[list[int], int, Sampling]]:
    made = []
    for number in range(count):
        prompt = [chance.randrange(3000) for _ in range(chance.randint(1, 300))]
        # Greedy: who shares a step with whom is up to the clock here, and a draw among thousands of tokens can fall to
        # the neighbour for the last bit of a probability. Draws are compared where steps are alike (engine, contract).
        sampling = Sampling(temperature=0.0, seed=number, repetition_penalty=1.1)
        made.append((prompt, chance.randint(1, 60), sampling))
    return made


async def unbroken(fleet: Fleet, asks: list[tuple[list[int], int, Sampling]]) -> list[list[int]]:
    found = []
    for ask in asks:
        client = fleet.submit(*ask)
        await client.ended()
        found.append(client.tokens)
    return found


def test_processes_hand_off(native_fleet: NativeFleet) -> None:
    async def play() -> None:
        asks = workload(random.Random(1), 20)
        async with asyncio.timeout(PATIENCE_S), Fleet(native_fleet, PREFILL, DECODE) as fleet:
            clients = [fleet.submit(*ask) for ask in asks]
            for client in clients:
                await client.ended()
            verdicts = [client.end.verdict for client in clients if client.end.verdict]
            assert sum(verdict.migrations for verdict in verdicts) > 15
            assert [client.tokens for client in clients] == await unbroken(fleet, asks)
            await fleet.check_empty()

    native_fleet.play(play())


@pytest.mark.soak
@pytest.mark.parametrize("number", range(soak.examples(1)))
@pytest.mark.parametrize("roles", [(MIXED, MIXED, MIXED), (PREFILL, DECODE, DECODE), (PREFILL, PREFILL, DECODE)])
def test_processes_die_while_requests_move(native_fleet: NativeFleet, roles: tuple[Role, ...], number: int) -> None:
    async def play() -> None:
        chance = random.Random(len(roles) + roles.count(DECODE) + 1000 * number)
        asks = workload(chance, 24)
        async with asyncio.timeout(PATIENCE_S), Fleet(native_fleet, *roles) as fleet:
            clients = [fleet.submit(*ask) for ask in asks]
            leaving = clients[::7]
            for turn in range(40):
                fleet.move(chance.choice(clients))
                if turn in {10, 25} and len(fleet.control.cluster.ready) == len(roles):
                    fleet.kill(chance.choice(list(fleet.control.cluster.instances)))
                if turn % 10 == 5 and leaving:
                    fleet.driver.cancel(leaving.pop().ticket)
                await asyncio.sleep(chance.choice([0.0, 0.005, 0.05]))
            for client in clients:
                await client.ended()
            await fleet.until_whole()
            for client, tokens in zip(clients, await unbroken(fleet, asks), strict=True):
                wanted = tokens[: len(client.tokens)] if client.end.reason == "cancelled" else tokens
                assert client.tokens == wanted
            await fleet.check_empty()

    native_fleet.play(play())
