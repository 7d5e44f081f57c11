"""The same simulation in other processes, under other hash seeds, gives the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import dataclasses, hashlib, sys
import numpy as np
from hyperflexis.core.instance import Capacity
from hyperflexis.core.latency import LatencyModel
from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.policies import create
from hyperflexis.sim.job import Job
from hyperflexis.sim.startup import StartupSpec
from hyperflexis.sim.simulation import FleetSpec, simulate

rng = np.random.default_rng(1)
classes = {"strict": ServiceClass("strict", Slo(0.3, 0.03), 1), "loose": ServiceClass("loose", Slo(5.0, 0.2))}
jobs, at_s = [], 0.0
for number in range(300):
    at_s += float(rng.exponential(0.01))
    prefix = tuple(b"%d" % (number % 7) + b"%d" % depth for depth in range(3))
    name = ("strict", "loose")[int(rng.integers(2))]
    jobs.append(Job(at_s, int(rng.integers(64, 400)), int(rng.integers(1, 120)), name, prefix))
model = LatencyModel(4.73e-3, 6.396e-3, 0.01665e-3, 6.93e-10, 0.0109e-3, 4.147e-8)
for policy in ("hyperflexis", "round_robin"):
    fleet = FleetSpec(3, Capacity(400, 16, 32), model, noise=0.05, losses_s=(1.0,), startup=StartupSpec.constant(0.2))
    said = []
    outcome = simulate(jobs, classes, create(policy, 512), fleet, seed=3, observe=lambda *line: said.append(repr(line)))
    for field in dataclasses.fields(outcome):
        value = getattr(outcome, field.name)
        print(field.name, value.tobytes().hex() if isinstance(value, np.ndarray) else repr(value))
    print(hashlib.sha256("\\n".join(said).encode()).hexdigest())
"""


def test_hash_seed_changes_nothing() -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for seed in ("0", "1", "4242")
    ]
    told = [process.communicate(timeout=100) for process in started]
    assert [errors for _, errors in told] == [b""] * 3
    outputs = [output for output, _ in told]
    assert len(outputs[0]) > 10_000
    assert outputs[0] == outputs[1] == outputs[2]
