"""A strict and a loose class on one small fleet of real engines: round robin's capacity, and what happens beyond it.

    python benchmarks/two_classes.py --json two_classes.json

Two instances of the demo model on CPU, one thread each, behind the live driver (no HTTP). Strict requests are short and
are promised a quick start; loose ones carry long prompts and are promised little. Arrivals are Poisson, seeded, alike
for both policies. The strict target is long against one long prompt, so that what ends round robin is its queue.
`capacity` is the highest rate at which round robin, with first come first served inside instances, keeps 90 % of both
classes; both policies are then run at 1.2 times that rate, in turn. Every request counts; one that has not ended a
minute after the last arrival is a miss. Clients, driver and engines share the machine's cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

import record
from hyperflexis.core.control import ControlPlane
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.policies import create
from hyperflexis.runtime.driver import Driver
from hyperflexis.runtime.launchers.local import LocalLauncher, LocalSpec
from hyperflexis.runtime.streams import End
from hyperflexis.wire.messages import GenerateRequest, Sampling, TokenLogprobs

MODEL = record.REPOSITORY / "src" / "hyperflexis" / "demo_model"
VOCABULARY = 3072
HOLDS = 0.9


@dataclass(frozen=True)
class Load:
    """One class of traffic."""

    name: str
    share: float
    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    ttft_s: float
    tpot_s: float


LOADS = (
    Load("strict", 0.6, (24, 96), (8, 32), ttft_s=2.0, tpot_s=0.3),
    Load("loose", 0.4, (600, 1400), (32, 96), ttft_s=30.0, tpot_s=0.5),
)


class Probe:
    """The sink of one request: only wants to know whether its promises were kept."""

    def __init__(self, results: list[bool | None], index: int) -> None:
        self.results, self.index = results, index

    def on_tokens(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] | None) -> None:
        pass

    def on_prompt_logprobs(self, logprobs: Sequence[TokenLogprobs]) -> None:
        pass

    def on_end(self, end: End) -> None:
        self.results[self.index] = end.verdict is not None and end.verdict.attained and end.reason == "length"


def arrivals(rate: float, seconds: float, seed: int) -> list[tuple[float, Load, GenerateRequest]]:
    """A Poisson stream of both classes; every prompt is its own, so that no prefix is shared."""
    rng = random.Random(seed)
    at_s, result = 0.0, []
    while (at_s := at_s + rng.expovariate(rate)) < seconds:
        (load,) = rng.choices(LOADS, weights=[one.share for one in LOADS])
        prompt = [rng.randrange(10, VOCABULARY) for _ in range(rng.randint(*load.prompt_tokens))]
        request = GenerateRequest(
            prompt=prompt,
            max_tokens=rng.randint(*load.output_tokens),
            sampling=Sampling(temperature=0.0),
            service_class=load.name,
            ttft_s=load.ttft_s,
            tpot_s=load.tpot_s,
        )
        result.append((at_s, load, request))
    return result


async def run(launcher: LocalLauncher, policy: str, rate: float, seconds: float, seed: int) -> dict[str, float]:
    """Attainment by class."""
    driver = Driver(ControlPlane(create(policy, 2048), FleetBounds.fixed(2)), launcher, 16)
    driver.start()
    await driver.wait_until(lambda: driver.ready_instances == 2)
    loop = asyncio.get_running_loop()
    plan = arrivals(rate, seconds, seed)
    results: list[bool | None] = [None] * len(plan)
    start_s = loop.time()
    for index, (at_s, _, request) in enumerate(plan):
        await asyncio.sleep(max(0.0, start_s + at_s - loop.time()))
        driver.submit(request, Probe(results, index))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(driver.wait_until(lambda: driver.live_requests == 0), 60)
    kept = {
        load.name: [bool(ok) for (_, one, _), ok in zip(plan, results, strict=True) if one is load] for load in LOADS
    }
    driver.close()
    return {name: statistics.fmean(outcomes) for name, outcomes in kept.items()}


async def capacity(launcher: LocalLauncher, seconds: float, seed: int) -> tuple[float, list[dict[str, Any]]]:
    """The highest rate that round robin holds, within 6 %: raised by half until it fails, then bisected."""
    tried: list[dict[str, Any]] = []

    async def holds(rate: float) -> bool:
        kept = await run(launcher, "round_robin", rate, seconds, seed)
        tried.append({"rate": round(rate, 3), **kept})
        print(f"round_robin at {rate:6.2f}/s: {told(kept)}", flush=True)
        return min(kept.values()) >= HOLDS

    low, high = 0.0, 20.0
    while await holds(high):
        low, high = high, 1.5 * high
    while high - low > 0.06 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if await holds(middle) else (low, middle)
    return low, tried


def told(kept: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in kept.items())


async def measure(rounds: int, seconds: float, held: float | None) -> dict[str, Any]:
    launcher = await LocalLauncher.start(LocalSpec(str(MODEL), device="cpu", instances=2))
    tried: list[dict[str, Any]] = []
    if held is None:
        held, tried = await capacity(launcher, seconds, seed=0)
    rows: dict[str, list[dict[str, float]]] = {"round_robin": [], "hyperflexis": []}
    for seed in range(1, rounds + 1):
        for policy, runs in rows.items():
            runs.append(await run(launcher, policy, 1.2 * held, seconds, seed))
            print(f"{policy:12} at {1.2 * held:6.2f}/s, seed {seed}: {told(runs[-1])}", flush=True)
    await launcher.close()
    medians = {
        policy: {name: statistics.median(one[name] for one in runs) for name in runs[0]}
        for policy, runs in rows.items()
    }
    return {"capacity_rate": held, "tried": tried, "rate": 1.2 * held, "runs": rows, "medians": medians}


def judge(medians: dict[str, dict[str, float]]) -> list[str]:
    theirs, ours = medians["round_robin"], medians["hyperflexis"]
    missed = []
    if ours["strict"] < 2 * theirs["strict"]:
        missed.append("strict attainment at least twice round robin's")
    if ours["loose"] < theirs["loose"]:
        missed.append("loose attainment not below round robin's")
    return missed


def main() -> int:
    words = record.parser(__doc__)
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--seconds", type=float, default=60.0)
    words.add_argument("--held", type=float, help="round robin's capacity, where it is known already")
    options = words.parse_args()
    table = uvloop.run(measure(options.rounds, options.seconds, options.held))
    missed = judge(table["medians"])
    loads = [vars(load) for load in LOADS]
    report = {"machine": record.machine("torch"), "loads": loads, "seconds": options.seconds, **table, "missed": missed}
    record.write(options.json, report)
    for policy, kept in table["medians"].items():
        print(f"{policy:12} median: {told(kept)}")
    print("missed: " + ", ".join(missed) if missed else "all limits kept")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
