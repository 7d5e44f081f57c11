"""Live fleets that change their size, in virtual time: what starts, sleeps, wakes and ends, and who notices."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from helpers.virtual_loop import run
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.control import Policy
from hyperflexis.core.fleet import FleetBounds, Range
from hyperflexis.core.instance import InstanceState, Role, StartSource
from hyperflexis.core.sizing import Sizing, Wanted
from hyperflexis.policies import create
from hyperflexis.wire.messages import Asleep, Awake
from runtime.live_world import ModelledLauncher, World


@dataclass
class Told:
    """Wants what the test says."""

    count: int
    asleep: int = 0

    def plan(self, cluster: Cluster, sizing: Sizing, now: float) -> Wanted:
        return Wanted({Role.MIXED: self.count}, Reason(Why.DEMAND), self.asleep)


def world_of(told: Told, least: int = 0, most: int = 4, *, is_dry: bool = False) -> World:
    made = create("hyperflexis:roles=fixed", 64)
    policy: Policy = replace(made, scaler=told)
    fleet = FleetBounds(
        {Role.MIXED: Range(least, most)},
        startup_s={StartSource.DISK: 0.1},
        asleep_max=2,
        is_dry=is_dry,
        start_timeout_s=5.0,
    )
    return World(policy=policy, fleet=fleet, launcher=ModelledLauncher())


def states(world: World) -> list[str]:
    return [each.state for each in world.driver.instances()]


async def have(world: World, wanted: Sequence[str]) -> None:
    """Wait until the instances are in these states."""
    for _ in range(5000):
        if states(world) == list(wanted):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{states(world)}, and not {wanted}")


def test_instances_come_and_go_while_requests_run() -> None:
    async def main() -> None:
        told = Told(1)
        with world_of(told) as world:
            clients = [world.submit(20, 400) for _ in range(8)]
            await have(world, ["ready"])
            told.count = 3
            await have(world, ["ready"] * 3)
            clients += [world.submit(20, 200) for _ in range(8)]
            await asyncio.sleep(0.5)
            told.count = 1
            await have(world, ["ready"])
            await world.settle()
            assert all(client.end.reason == "length" for client in clients)

    run(main())


def test_the_first_request_starts_an_instance_and_waits_for_it() -> None:
    async def main() -> None:
        policy = create("hyperflexis:roles=fixed", 64)
        fleet = FleetBounds({Role.MIXED: Range(0, 2)}, startup_s={StartSource.DISK: 0.1})
        with World(policy=policy, fleet=fleet) as world:
            await asyncio.sleep(10)
            assert world.driver.instances() == []
            assert world.driver.is_ready()
            client = world.submit(20, 5)
            await client.ended()
            assert client.end.reason == "length"
            await asyncio.sleep(120)
            assert world.driver.instances() == []

    run(main())


def test_a_sleeper_is_woken_and_takes_work_again() -> None:
    async def main() -> None:
        told = Told(2)
        with world_of(told) as world:
            await have(world, ["ready", "ready"])
            told.count, told.asleep = 1, 1
            await have(world, ["ready", "asleep"] if states(world)[0] == "ready" else ["asleep", "ready"])
            assert world.driver.ready_instances == 1
            launched = len(world.launcher.launched_s)
            told.count = 2
            await have(world, ["ready", "ready"])
            assert len(world.launcher.launched_s) == launched
            clients = [world.submit(20, 50) for _ in range(6)]
            await world.settle()
            assert all(client.end.reason == "length" for client in clients)

    run(main())


def test_a_sleeper_that_cannot_wake_is_lost_and_another_starts(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        told = Told(2)
        with world_of(told) as world:
            await have(world, ["ready", "ready"])
            told.count, told.asleep = 1, 1
            for _ in range(1000):
                await asyncio.sleep(0.01)
                if "asleep" in states(world):
                    break
            (number,) = [
                each.id for each in world.control.cluster.instances.values() if each.state is InstanceState.ASLEEP
            ]
            adapter = world.launcher.adapters.pop(number)
            adapter.order = lambda order: None  # type: ignore[method-assign]
            told.count = 2
            await asyncio.sleep(0.4)
            world.driver._on_news(number, Asleep(1, why="no memory is left"))
            await have(world, ["ready", "ready"])
            client = world.submit(20, 5)
            await client.ended()
            assert number not in world.control.cluster.instances

    with caplog.at_level(logging.WARNING):
        run(main())
    assert "no memory is left" in caplog.text


def test_an_instance_that_does_not_want_to_sleep_says_so_and_stays_out_of_service(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        told = Told(2)
        with world_of(told) as world:
            await have(world, ["ready", "ready"])
            told.count, told.asleep = 1, 1
            await asyncio.sleep(2)
            (number,) = [
                each.id for each in world.control.cluster.instances.values() if each.state is InstanceState.ASLEEP
            ]
            world.driver._on_news(number, Awake(why="it holds a request"))
            assert world.control.cluster.instances[number].state is InstanceState.ASLEEP

    with caplog.at_level(logging.WARNING):
        run(main())
    assert "it holds a request" in caplog.text


def test_a_dry_run_says_what_it_would_do(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with world_of(Told(3), 1, is_dry=True) as world:
            await have(world, ["ready"])
            await asyncio.sleep(5)
            assert states(world) == ["ready"]

    with caplog.at_level(logging.INFO, logger="hyperflexis.runtime"):
        run(main())
    said = [each.getMessage() for each in caplog.records if each.getMessage().startswith("the fleet")]
    assert said == [f"the fleet should have 3 mixed instances (has 1): {Why.DEMAND.value}"]
