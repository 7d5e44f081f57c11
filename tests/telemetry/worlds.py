"""Simulated worlds that do everything there is to count: moves, roles, sizes, losses, refusals, sleepers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from helpers.builders import H100_8B
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.fleet import Prices
from hyperflexis.core.instance import Capacity
from hyperflexis.core.sizing import Sizing, Wanted
from hyperflexis.core.slo import ServiceClass
from hyperflexis.sim.outcome import Outcome
from hyperflexis.sim.simulation import FleetSpec, Observer, Simulation
from hyperflexis.sim.startup import StartupSpec
from hyperflexis.telemetry.decisions import Decisions
from journal.recorded import CLASSES, D, M, P, World

WORLDS = {
    "plain": World(),
    "crowded": World(rate=2000.0, requests=200),
    "apart": World(roles=(P, D, M), moving="fixed", losses_s=(0.7,)),
    "planned": World((P, D, M), moving="planned", requests=150, losses_s=(0.8,), drains_s=(1.5,)),
    "elastic": World(most=4, requests=300, losses_s=(1.5,), drains_s=(2.0,)),
}


class Tide:
    """A scaler that has instances come, sleep and wake."""

    def plan(self, cluster: Cluster, sizing: Sizing, now: float) -> Wanted | None:
        count, asleep = (3, 0) if now % 3.0 < 1.5 else (1, 1)
        return Wanted({M: count}, Reason(Why.DEMAND), asleep)


def simulation(world: World, observe: Observer) -> Simulation:
    policy = world.control().policy
    spec = FleetSpec(
        len(world.roles),
        Capacity(400, 16, 32, 131_072),
        H100_8B,
        noise=0.05,
        max_tokens=256,
        losses_s=world.losses_s,
        drains_s=world.drains_s,
        startup=StartupSpec.constant(0.2),
        bounds=world.bounds(),
    )
    policy = replace(policy, scaler=Tide()) if world.most else policy
    return Simulation(world.jobs(), CLASSES, policy, spec, seed=world.seed, observe=observe)


def counted(classes: Mapping[str, ServiceClass] = CLASSES) -> Decisions:
    return Decisions(classes, dict.fromkeys(classes, 0.9), Prices(3.6, 0.36))


def play(world: World, decisions: Decisions) -> tuple[Outcome, Simulation]:
    made = simulation(world, decisions.observe)
    return made.run(), made
