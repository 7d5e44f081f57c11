"""How long one dispatch decision takes, by the number of instances, with ten requests waiting on each.

    python benchmarks/dispatch_cost.py --json dispatch_cost.json

A thousand instances have 10,000 requests waiting and 10,000 decoding. Between two decisions three instances report, as
they would; that is not timed, but what the decision has to look at again because of it is. The placed request is taken
away again, so that every decision meets the same load. CPU time of `Dispatcher.choose`, and of the whole
`ControlPlane.handle` of an arrival.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import record
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.control import ControlPlane
from hyperflexis.core.events import InstanceReady, InstanceReported, RequestArrived, RequestCancelled, Wakeup
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Capacity
from hyperflexis.core.latency import StepShape
from hyperflexis.core.request import Request
from hyperflexis.core.slo import Slo
from hyperflexis.policies import create
from hyperflexis.sim.profiles import load_profile

FLEETS = (10, 40, 100, 300, 1000)
DECISIONS = 3000
WAITING = DECODING = 10
PROFILE = load_profile("llama-3-70b/h100/tp4/bfloat16")


def slo(rng: np.random.Generator) -> Slo:
    return Slo(float(rng.choice([0.5, 2.0, 10.0])), float(rng.choice([0.04, 0.05, 0.1])))


def filled(instances: int, rng: np.random.Generator) -> ControlPlane:
    """A fleet, each of whose instances has so many requests waiting and decoding."""
    control = ControlPlane(create("hyperflexis", 8192), FleetBounds.fixed(instances), requests_max=10**9)
    control.handle(Wakeup(), 0.0)
    for instance in list(control.cluster.instances.values()):
        capacity = Capacity(PROFILE.kv_tokens // 16, 16, 512)
        control.handle(InstanceReady(instance.id, capacity, PROFILE.latency), 0.0)
    for number in range(instances * (WAITING + DECODING)):
        control.handle(RequestArrived(number, int(rng.integers(100, 3000)), 2048, slo(rng)), 0.0)
    for instance in control.cluster.ready:
        begun = list(instance.waiting)[: len(instance.waiting) // 2]
        control.handle(InstanceReported(instance.id, StepShape(512, 512**2), 0.05, started=begun, began=begun), 0.05)
    return control


def timed(control: ControlPlane, rng: np.random.Generator, *, whole: bool) -> list[float]:
    """Microseconds of each decision."""
    cluster, dispatcher = control.cluster, control.policy.dispatcher
    took_us = []
    for number in range(DECISIONS):
        now, number_ = 0.1 + number * 1e-3, 10**8 + number
        for index in rng.integers(0, len(cluster.ready), size=3):
            report(control, cluster, int(index), now)
        prompt, promise = int(rng.integers(100, 3000)), slo(rng)
        if whole:
            event = RequestArrived(number_, prompt, 2048, promise)
            began_s = time.thread_time()
            control.handle(event, now)
            took_us.append(1e6 * (time.thread_time() - began_s))
            control.handle(RequestCancelled(number_), now)
        else:
            request = Request(number_, now, prompt, 2048, promise)
            began_s = time.thread_time()
            dispatcher.choose(request, cluster.ready, cluster, now)
            took_us.append(1e6 * (time.thread_time() - began_s))
    return took_us


def report(control: ControlPlane, cluster: Cluster, index: int, now: float) -> None:
    instance = cluster.ready[index]
    shape = StepShape(0, 0, len(instance.decoding), instance.context_tokens)
    control.handle(InstanceReported(instance.id, shape, 0.02), now)


def measure() -> dict[str, Any]:
    rows = []
    for instances in FLEETS:
        rng = np.random.default_rng(1)
        control = filled(instances, rng)
        row: dict[str, Any] = {"instances": instances, "requests": len(control.cluster.requests)}
        for name, whole in (("choose", False), ("arrival", True)):
            took_us = timed(control, rng, whole=whole)
            row[f"{name}_us"] = {f"p{share}": float(np.percentile(took_us, share)) for share in (50, 99)}
        rows.append(row)
        print(row, flush=True)
    return {"machine": record.machine("numpy"), "decisions": DECISIONS, "rows": rows}


def main() -> None:
    arguments = record.parser(__doc__).parse_args()
    record.write(arguments.json, measure())


if __name__ == "__main__":
    main()
