"""What it takes an instance to change its role: from the command to the report of its first step in the new one.

    python benchmarks/role_switch.py --json role_switch.json

Two instances of the demo model, one thread each, behind the real driver. The second one is told to prefill only, and to
do both again, by turns; first with nothing to do, then while requests come, of which those that it has prefilled go on
at the first. What it decodes when it is told to prefill stays and ends beside its prefills. Requests that fail, or do
not get all their tokens, are counted.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import uvloop

import record
from hyperflexis.core.binding import LeastPace
from hyperflexis.core.commands import Command, Reason, Why
from hyperflexis.core.control import ControlPlane, Policy
from hyperflexis.core.dispatch import SloDispatcher
from hyperflexis.core.events import Event, InstanceReported
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Role
from hyperflexis.core.roles import RoleChange
from hyperflexis.core.step import StepRules
from hyperflexis.runtime.driver import Driver
from hyperflexis.runtime.launchers.local import LocalLauncher, LocalSpec
from hyperflexis.runtime.streams import End
from hyperflexis.wire.messages import GenerateRequest, Sampling, TokenLogprobs

MODEL = record.REPOSITORY / "src" / "hyperflexis" / "demo_model"
SWITCHED = 1
PAUSE_S = 0.05
"""Between one switch and the next."""
CLIENTS = 6
PROMPT_TOKENS, ANSWER_TOKENS = 200, 60
LIMITS = {"idle_p50_ms": 5.0, "loaded_p99_ms": 50.0, "failed": 0}


class Watched(ControlPlane):
    """Notes when the switched instance has reported each version of its rules first."""

    in_force_s: dict[int, float]

    def handle(self, event: Event, now: float) -> list[Command]:
        if isinstance(event, InstanceReported) and event.instance_id == SWITCHED:
            self.in_force_s.setdefault(event.rules_version, time.perf_counter())
        return super().handle(event, now)


class Sink:
    """One request's client."""

    def __init__(self) -> None:
        self.tokens = 0
        self.end: End | None = None
        self.ended = asyncio.Event()

    def on_tokens(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] | None) -> None:
        self.tokens += len(tokens)

    def on_prompt_logprobs(self, logprobs: Sequence[TokenLogprobs]) -> None:
        raise AssertionError("nobody asked for them")

    def on_end(self, end: End) -> None:
        self.end = end
        self.ended.set()


class Fleet:
    """Two instances, of which one changes its role."""

    def __init__(self, launcher: LocalLauncher) -> None:
        policy = Policy("measured", SloDispatcher(separation=0), StepRules(prefill_tokens_max=2048), binder=LeastPace())
        self.control = Watched(policy, FleetBounds.fixed(2))
        self.control.in_force_s = {}
        self.driver = Driver(self.control, launcher, block_tokens=16)
        self.answered = self.failed = self.moved = 0
        self._salt = 0

    async def ready(self) -> None:
        self.driver.start()
        while len(self.control.cluster.ready) < 2:  # noqa: ASYNC110 links come up without an event
            await asyncio.sleep(0.01)

    async def switch(self) -> float:
        """Change the role once; returns the seconds until a step in the new one was reported."""
        instance = self.control.cluster.instances[SWITCHED]
        role = Role.MIXED if instance.role is Role.PREFILL else Role.PREFILL
        begin_s = time.perf_counter()
        commands = self.control._change_role(RoleChange(instance, role, Reason(Why.BALANCES)), time.monotonic())
        self.driver._commands.extend(commands)
        self.driver._perform()
        version = instance.rules_version
        while version not in self.control.in_force_s:  # noqa: ASYNC110 reports come without an event
            await asyncio.sleep(0.0005)
        return self.control.in_force_s[version] - begin_s

    async def serve(self, until: asyncio.Event) -> None:
        """Be a client that always has a request."""
        while not until.is_set():
            self._salt += 1
            prompt = [3 + (self._salt * 7919 + 31 * index) % 3000 for index in range(PROMPT_TOKENS)]
            sampling = Sampling(temperature=0.0, min_tokens=ANSWER_TOKENS)
            sink = Sink()
            self.driver.submit(GenerateRequest(prompt, ANSWER_TOKENS, sampling), sink)
            await sink.ended.wait()
            assert sink.end is not None
            self.answered += 1
            self.failed += sink.end.reason != "length" or sink.tokens != ANSWER_TOKENS
            self.moved += sink.end.verdict is not None and sink.end.verdict.migrations > 0


async def measured(switches: int) -> dict[str, Any]:
    spec = LocalSpec(str(MODEL), device="cpu", dtype="float32", kv_bytes=100 << 20, instances=2)
    launcher = await LocalLauncher.start(spec)
    fleet = Fleet(launcher)
    await fleet.ready()
    idle_s = []
    for _ in range(switches):
        idle_s.append(await fleet.switch())
        await asyncio.sleep(PAUSE_S / 5)
    until = asyncio.Event()
    clients = [asyncio.create_task(fleet.serve(until)) for _ in range(CLIENTS)]
    await asyncio.sleep(1.0)
    loaded_s = []
    for _ in range(switches):
        loaded_s.append(await fleet.switch())
        await asyncio.sleep(PAUSE_S)
    until.set()
    await asyncio.gather(*clients)
    fleet.control.check()
    fleet.driver.close()
    await launcher.close()
    counts = {"answered": fleet.answered, "failed": fleet.failed, "moved": fleet.moved}
    return {"switches": switches, "idle_ms": spread(idle_s), "loaded_ms": spread(loaded_s), **counts}


def spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(1e3 * each for each in seconds)
    return {"p50": statistics.median(ordered), "p99": ordered[int(0.99 * (len(ordered) - 1))], "max": ordered[-1]}


def main() -> int:
    words = record.parser(__doc__)
    words.add_argument("--switches", type=int, default=200)
    options = words.parse_args()
    table = uvloop.run(measured(options.switches))
    for name in ("idle_ms", "loaded_ms"):
        print(f"{name:10} p50 {table[name]['p50']:6.2f}  p99 {table[name]['p99']:6.2f}  max {table[name]['max']:6.2f}")
    print(f"{table['answered']} requests, {table['moved']} of them moved, {table['failed']} failed")
    seen = {
        "idle_p50_ms": table["idle_ms"]["p50"],
        "loaded_p99_ms": table["loaded_ms"]["p99"],
        "failed": table["failed"],
    }
    missed = [name for name, limit in LIMITS.items() if seen[name] > limit]
    report = {"machine": record.machine("torch", "hyperflexis"), "table": table, "limits": LIMITS, "missed": missed}
    record.write(options.json, report)
    print("missed: " + ", ".join(missed) if missed else "all limits kept")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
