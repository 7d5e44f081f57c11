"""How many requests the simulator gets through per second of CPU, and what it holds in memory.

    python benchmarks/sim_speed.py --json sim_speed.json

Two fixed workloads of 5,000 requests, 1,155 tokens in and 211 out, Poisson: one instance at 6.45/s, forty at 200/s (an
8B model on H100s). Each run is a process of its own; CPU time is of the simulation alone, without imports. Then 100,000
requests for the peak of resident memory.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

import record

ROUNDS = 5
POLICIES = ("hyperflexis", "round_robin")
LOADS = {"1 instance, 6.45/s": (1, 6.45), "40 instances, 200/s": (40, 200.0)}
MANY = 100_000


def simulate(requests: int, instances: int, rate: float, policy: str) -> dict[str, float]:
    """One run, in this process."""
    from hyperflexis.core.instance import Capacity
    from hyperflexis.core.slo import ServiceClass, Slo
    from hyperflexis.policies import create
    from hyperflexis.sim.job import Job
    from hyperflexis.sim.profiles import load_profile
    from hyperflexis.sim.simulation import FleetSpec
    from hyperflexis.sim.simulation import simulate as run

    profile = load_profile("llama-3-8b/h100/tp1/bfloat16")
    arrivals = np.cumsum(np.random.default_rng(1).exponential(size=requests)) / rate
    jobs = (Job(float(at_s), 1155, 211, "chat") for at_s in arrivals)
    fleet = FleetSpec(instances, Capacity(profile.kv_tokens // 16, 16, 512), profile.latency)
    classes = {"chat": ServiceClass("chat", Slo(2.0, 0.05))}
    began_s = time.process_time()
    outcome = run(jobs, classes, create(policy, 8192), fleet)
    cpu_s = time.process_time() - began_s
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"requests_per_cpu_s": requests / cpu_s, "peak_mib": peak_mib, "attainment": float(outcome.attained.mean())}


def apart(*arguments: str) -> dict[str, float]:
    """The same in a process of its own."""
    words = [sys.executable, __file__, "--one", *arguments]
    result: dict[str, float] = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return result


def measure() -> dict[str, Any]:
    report: dict[str, Any] = {"machine": record.machine("numpy"), "rounds": ROUNDS, "requests_per_cpu_s": {}}
    for name, (instances, rate) in LOADS.items():
        for policy in POLICIES:
            runs = [apart("5000", str(instances), str(rate), policy) for _ in range(ROUNDS)]
            speeds = [run["requests_per_cpu_s"] for run in runs]
            report["requests_per_cpu_s"][f"{policy}: {name}"] = record.spread(speeds)
            print(f"{policy:12} {name:22} {statistics.median(speeds):8.0f} requests per CPU second", flush=True)
    many = apart(str(MANY), "40", "200", "hyperflexis")
    report["peak_mib_of_100000_requests"] = many["peak_mib"]
    print(f"{MANY} requests: {many['peak_mib']:.0f} MiB at most")
    return report


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        requests, instances, rate, policy = sys.argv[2:]
        print(json.dumps(simulate(int(requests), int(instances), float(rate), policy)))
        return
    arguments = record.parser(__doc__).parse_args()
    record.write(arguments.json, measure())


if __name__ == "__main__":
    main()
