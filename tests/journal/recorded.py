"""Small runs with a journal: simulations of every kind of fleet, in which instances die and clients ask for much."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from helpers.builders import H100_8B
from hyperflexis.cli import fleets, recordings
from hyperflexis.core.control import ControlPlane
from hyperflexis.core.fleet import FleetBounds, Range
from hyperflexis.core.instance import Capacity, Role, StartSource
from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.journal.header import Header
from hyperflexis.journal.parts import Parts
from hyperflexis.journal.reading import Journal, open_all
from hyperflexis.journal.recorder import Recorder
from hyperflexis.sim.job import Job
from hyperflexis.sim.outcome import Outcome
from hyperflexis.sim.simulation import REQUESTS_MAX, FleetSpec, simulate
from hyperflexis.sim.startup import StartupSpec

CLASSES = {
    "strict": ServiceClass("strict", Slo(ttft_s=0.3, tpot_s=0.03), 1),
    "late_never": ServiceClass("late_never", Slo(ttft_s=0.1), refuses_late=True),
    "loose": ServiceClass("loose", Slo(e2e_s=20.0)),
}
P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED
PREFILL_TOKENS = 512


class World(NamedTuple):
    """What is simulated."""

    roles: tuple[Role, ...] = (M, M)
    policy: str = "hyperflexis"
    moving: fleets.Moving = "keeps"
    most: int = 0
    """Of an elastic fleet; 0 keeps its size."""
    requests: int = 60
    rate: float = 40.0
    losses_s: tuple[float, ...] = ()
    drains_s: tuple[float, ...] = ()
    seed: int = 0
    classes: tuple[str, ...] = tuple(CLASSES)

    @property
    def spelled(self) -> str:
        return fleets.spelled(self.policy, self.moving, is_elastic=self.most > 0)

    def bounds(self) -> FleetBounds:
        if not self.most:
            return FleetBounds.fixed(len(self.roles), self.roles)
        startup_s = {StartSource.DISK: 0.4, StartSource.SLEEPER: 0.1}
        return FleetBounds({M: Range(1, self.most)}, startup_s=startup_s, asleep_max=1)

    def control(self) -> ControlPlane:
        policy = fleets.create(self.policy, PREFILL_TOKENS, self.moving, is_elastic=self.most > 0)
        return ControlPlane(policy, self.bounds(), REQUESTS_MAX)

    def jobs(self) -> list[Job]:
        rng, jobs, at_s = random.Random(self.seed), list[Job](), 0.0
        for _ in range(self.requests):
            at_s += rng.expovariate(self.rate)
            head = rng.randrange(5)
            hashes = tuple(b"%02d-%02d" % (head, depth) for depth in range(rng.randrange(6)))
            tokens = max(1, 16 * len(hashes) + rng.randrange(300))
            jobs.append(Job(at_s, tokens, rng.choice((1, 2, 20, 120)), rng.choice(self.classes), hashes))
        return jobs


def header_of(world: World, **changed: object) -> Header:
    words = {"seed": world.seed, "max_tokens": 256, **changed}
    return recordings.header(world.spelled, PREFILL_TOKENS, world.control(), CLASSES.values(), **words)


@contextlib.contextmanager
def recorder(folder: Path, header: Header | None = None, bytes_max: int = 1 << 40) -> Iterator[Recorder]:
    made = Recorder(Parts(folder, bytes_max), header or header_of(World()))
    with contextlib.closing(made):
        yield made


def play(world: World, folder: Path, *, noise: float = 0.05) -> Outcome:
    """Simulate it, and write its journal there."""
    spec = FleetSpec(
        len(world.roles),
        Capacity(400, 16, 32, 131_072),
        H100_8B,
        noise=noise,
        max_tokens=256,
        losses_s=world.losses_s,
        drains_s=world.drains_s,
        startup=StartupSpec.constant(0.2),
        bounds=world.bounds(),
    )
    with recorder(folder, header_of(world)) as made:
        control = world.control()
        return simulate(world.jobs(), CLASSES, control.policy, spec, seed=world.seed, observe=made.observe)


def only_run(folder: Path) -> Journal:
    (journal,) = open_all(folder)
    return journal
