"""A burst on real instances: how many there were, which promises were kept, and what the simulator says of the same.

    python benchmarks/scaling_live.py --json scaling_live.json

One to six instances of the demo model on CPU behind the live driver (no HTTP), sized by the scaler that serves. Calm,
burst and calm again take a minute each; arrivals are Poisson, seeded. An instance takes few sequences at a time, so
that seats are what a burst needs more of: the cores, which all instances share here, would not grow with them.

The simulator then plays the very same requests on instances with the seats, blocks and step times that the first one
measured of itself, and with the start-up time that was seen. It knows nothing of shared cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop

import record
from hyperflexis.core.commands import Command, Launch, Stop
from hyperflexis.core.control import ControlPlane
from hyperflexis.core.events import Event, InstanceReady
from hyperflexis.core.fleet import FleetBounds, Range
from hyperflexis.core.instance import Capacity, Role, StartSource
from hyperflexis.core.latency import LatencyModel
from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.policies import create
from hyperflexis.runtime.driver import Driver
from hyperflexis.runtime.launchers.local import LocalLauncher, LocalSpec
from hyperflexis.runtime.streams import End
from hyperflexis.sim.job import Job
from hyperflexis.sim.outcome import Outcome
from hyperflexis.sim.simulation import FleetSpec, Simulation
from hyperflexis.sim.startup import StartupSpec
from hyperflexis.wire.messages import GenerateRequest, Sampling, TokenLogprobs

MODEL = record.REPOSITORY / "src" / "hyperflexis" / "demo_model"
POLICY = "hyperflexis:roles=fixed"
VOCABULARY = 3072
SEATS = 4
FEWEST, MOST = 1, 6
PROMPT_TOKENS, ANSWER_TOKENS = (40, 160), (60, 180)
TTFT_S, TPOT_S = 1.0, 0.05
CALM_RPS = 1.5
BURSTS_RPS = (12.0, 22.0)
"""The second needed all six, on two cores that they shared."""


@dataclass
class Probe:
    """The sink of one request."""

    ends: list[End | None]
    index: int
    tokens: int = 0

    def on_tokens(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] | None) -> None:
        self.tokens += len(tokens)

    def on_prompt_logprobs(self, logprobs: Sequence[TokenLogprobs]) -> None:
        pass

    def on_end(self, end: End) -> None:
        self.ends[self.index] = end


@dataclass
class Watch:
    """What came and went, as the control plane said it."""

    began_s: dict[int, float] = field(default_factory=dict)
    starts_s: list[float] = field(default_factory=list)
    sizes: list[tuple[float, int]] = field(default_factory=list)
    count: int = 0

    def see(self, now: float, event: Event, commands: Sequence[Command]) -> None:
        if isinstance(event, InstanceReady):
            self.starts_s.append(now - self.began_s[event.instance_id])
        for command in commands:
            if isinstance(command, Launch):
                self.began_s[command.instance_id] = now
                self.count += 1
            elif isinstance(command, Stop):
                self.count -= 1
            if isinstance(command, Launch | Stop):
                self.sizes.append((round(now, 2), self.count))


class Watched(ControlPlane):
    """Shows what it decides."""

    watch: Watch

    def handle(self, event: Event, now: float) -> list[Command]:
        commands = super().handle(event, now)
        self.watch.see(now, event, commands)
        return commands


def bounds(startup_s: float) -> FleetBounds:
    return FleetBounds(
        {Role.MIXED: Range(FEWEST, MOST)}, sources=(StartSource.CACHE,), startup_s={StartSource.CACHE: startup_s}
    )


def arrivals(seconds: float, burst_rps: float, seed: int) -> list[tuple[float, GenerateRequest]]:
    """Calm, burst, calm, a third each."""
    rng = random.Random(seed)
    at_s, found = 0.0, []
    while True:
        rate = burst_rps if seconds / 3 <= at_s < 2 * seconds / 3 else CALM_RPS
        at_s += rng.expovariate(rate)
        if at_s >= seconds:
            return found
        request = GenerateRequest(
            prompt=[rng.randrange(10, VOCABULARY) for _ in range(rng.randint(*PROMPT_TOKENS))],
            max_tokens=rng.randint(*ANSWER_TOKENS),
            sampling=Sampling(temperature=0.0),
            service_class="chat",
            ttft_s=TTFT_S,
            tpot_s=TPOT_S,
        )
        found.append((at_s, request))


async def live(seconds: float, burst_rps: float, seed: int) -> tuple[dict[str, Any], FleetSpec]:
    launcher = await LocalLauncher.start(LocalSpec(str(MODEL), device="cpu", instances=MOST, seqs_max=SEATS))
    control = Watched(create(POLICY, 2048), bounds(0.3), 10_000)
    control.watch = Watch()
    driver = Driver(control, launcher, 16)
    driver.start()
    await driver.wait_until(lambda: driver.ready_instances == FEWEST)
    loop = asyncio.get_running_loop()
    plan = arrivals(seconds, burst_rps, seed)
    ends: list[End | None] = [None] * len(plan)
    probes = [Probe(ends, index) for index in range(len(plan))]
    start_s, before_s = loop.time(), control.sizing.bill.seconds(loop.time())[0]
    for probe, (at_s, request) in zip(probes, plan, strict=True):
        await asyncio.sleep(max(0.0, start_s + at_s - loop.time()))
        driver.submit(request, probe)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(driver.wait_until(lambda: driver.live_requests == 0), 60)
    instance = next(iter(control.cluster.instances.values()))
    told = {
        "requests": len(plan),
        "whole": sum(
            end is not None and end.reason == "length" and probe.tokens == request.max_tokens
            for end, probe, (_, request) in zip(ends, probes, plan, strict=True)
        ),
        "attainment": statistics.fmean(
            end is not None and end.verdict is not None and end.verdict.attained for end in ends
        ),
        "instance_seconds": control.sizing.bill.seconds(loop.time())[0] - before_s,
        "instances_most": max(count for _, count in control.watch.sizes),
        "start_s": statistics.median(control.watch.starts_s),
        "sizes": [(round(at_s - start_s, 1), count) for at_s, count in control.watch.sizes],
    }
    spec = FleetSpec(
        FEWEST,
        Capacity(instance.capacity.blocks, 16, SEATS, instance.capacity.kv_token_bytes),
        instance.latency.model,
        bounds=bounds(told["start_s"]),
        startup=StartupSpec.constant(told["start_s"]),
    )
    driver.close()
    await launcher.close()
    return told, spec


def simulated(spec: FleetSpec, seconds: float, burst_rps: float, seed: int) -> dict[str, Any]:
    """The same requests; believed and true step times are what the instances believed in the end."""
    jobs = [Job(at_s, len(each.prompt), each.max_tokens, "chat") for at_s, each in arrivals(seconds, burst_rps, seed)]
    classes = {"chat": ServiceClass("chat", Slo(TTFT_S, TPOT_S))}
    watch = Watch()
    outcome: Outcome = Simulation(jobs, classes, create(POLICY, 2048), spec, seed=seed, observe=watch.see).run()
    return {
        "attainment": float(outcome.attained.mean()),
        "instance_seconds": outcome.usage.awake_s,
        "instances_most": max(count for _, count in watch.sizes),
    }


def _latency(model: LatencyModel) -> dict[str, float]:
    return {name: getattr(model, name) for name in model.__dataclass_fields__}


async def measure(seconds: float, bursts_rps: Sequence[float], seeds: Sequence[int]) -> dict[str, Any]:
    runs = []
    for burst_rps, seed in itertools.product(bursts_rps, seeds):
        real, spec = await live(seconds, burst_rps, seed)
        virtual = simulated(spec, seconds, burst_rps, seed)
        runs.append(
            {
                "burst_rps": burst_rps,
                "seed": seed,
                "live": real,
                "simulated": virtual,
                "latency": _latency(spec.latency),
            }
        )
        print(
            f"{burst_rps:g} rps, seed {seed}: {real['whole']} of {real['requests']} whole; "
            f"kept {real['attainment']:.1%} live, {virtual['attainment']:.1%} simulated; "
            f"instance-seconds {real['instance_seconds']:.0f} live, {virtual['instance_seconds']:.0f} simulated; "
            f"most {real['instances_most']} and {virtual['instances_most']}",
            flush=True,
        )
    return {"seconds": seconds, "seats": SEATS, "calm_rps": CALM_RPS, "runs": runs}


def main() -> int:
    words = record.parser(__doc__)
    words.add_argument("--seconds", type=float, default=180.0)
    words.add_argument("--burst-rps", type=float, action="append")
    words.add_argument("--seed", type=int, action="append")
    options = words.parse_args()
    found = uvloop.run(measure(options.seconds, options.burst_rps or BURSTS_RPS, options.seed or [0]))
    record.write(options.json, {"benchmark": "scaling_live", "machine": record.machine("torch"), **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
