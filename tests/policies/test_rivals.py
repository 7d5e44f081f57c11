"""Every policy, tuned in every way, through a small simulation: nothing is lost, and each is of some use."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from helpers.builders import A100_14B
from hyperflexis.core.instance import Capacity, Role
from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.policies import create
from hyperflexis.policies.tunings import TUNINGS
from hyperflexis.sim.job import Job
from hyperflexis.sim.simulation import FleetSpec, simulate

CLASSES = {
    "code": ServiceClass("code", Slo(1.5, 0.15), priority=1),
    "chat": ServiceClass("chat", Slo(3.0, 0.05)),
    "batch": ServiceClass("batch", Slo(30.0)),
}
FLEET = FleetSpec(3, Capacity(blocks=3000, block_tokens=16, seqs_max=64), A100_14B, max_tokens=400, losses_s=(8.0,))
"""Small enough that blocks run out now and then, and one instance is lost."""
WITH_ROLES = frozenset({"distserve", "splitwise", "arrow", "llumnix_pd", "taichi", "tokenscale", "dynamo_pd"})
"""Policies of instances with roles, for which three instances are too few to be compared with those of others."""
POOLS = replace(FLEET, instances=5, roles=(Role.DECODE, Role.PREFILL) * 2, losses_s=(4.7, 8.6))
"""The same for these, the fifth one mixed: one instance of each role is lost."""
SHARES = (0.4, 0.5, 0.1)
PROMPTS = (2000, 800, 4000)
ANSWERS = (20, 150, 100)


def jobs(rate: float, count: int) -> list[Job]:
    """Bursts of code between steady chat, and sessions of chat that share prefixes."""
    rng = np.random.default_rng(7)
    arrivals = np.cumsum(rng.gamma(0.3, 1 / 0.3 / rate, count))
    made = []
    for at_s in arrivals:
        kind = int(rng.choice(3, p=SHARES))
        prompt = int(PROMPTS[kind] * rng.lognormal(sigma=0.5)) + 1
        answer = min(400, int(ANSWERS[kind] * rng.lognormal(sigma=0.5)) + 1)
        session = int(rng.integers(20))
        hashes = tuple(b"%d.%d" % (session, block) for block in range(prompt // 16)) if kind == 1 else ()
        made.append(Job(float(at_s), prompt, answer, list(CLASSES)[kind], hashes))
    return made


@cache
def attained(name: str, tuning: tuple[tuple[str, object], ...] = (), fleet: FleetSpec = FLEET) -> float:
    """Share of all requests that kept their promises; none may get lost."""
    outcome = simulate(jobs(8.0, 150), CLASSES, create(name, 2048, **dict(tuning)), fleet, checks=True)
    assert outcome.finished.all()
    return float(outcome.attained.mean())


ALL_TUNINGS = [(name, tuple(tuning.items())) for name, tunings in TUNINGS.items() for tuning in tunings]


@pytest.mark.parametrize(("name", "tuning"), ALL_TUNINGS)
def test_nothing_is_lost(name: str, tuning: tuple[tuple[str, object], ...]) -> None:
    assert attained(name, tuning) > 0.2


@pytest.mark.parametrize(("name", "tuning"), [each for each in ALL_TUNINGS if each[0] in WITH_ROLES])
def test_nothing_is_lost_between_pools(name: str, tuning: tuple[tuple[str, object], ...]) -> None:
    assert attained(name, tuning, POOLS) > 0.4


@pytest.mark.parametrize("name", sorted(TUNINGS.keys() - WITH_ROLES - {"round_robin"}))
def test_tuned_rival_is_no_worse_than_the_best_round_robin(name: str) -> None:
    def best(of: str) -> float:
        return max(attained(of, tuple(tuning.items())) for tuning in TUNINGS[of])

    print(f"{name} {best(name):.3f}, round_robin {best('round_robin'):.3f}")
    assert best(name) >= best("round_robin") - 0.02
