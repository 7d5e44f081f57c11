"""Starts on a Ray cluster, and what a client notices when the node of its request dies.

    python benchmarks/ray_nodes.py --json ray_nodes.json

All nodes are on this machine and have room for one instance of the demo model in float32. `start`: seconds until the
first instance of the cluster is ready, one on a node that has no weights yet, and one on a node that has. `loss`: two
nodes become three; while 20 streams decode, all processes of one node are killed at once, and those of that node go on
elsewhere. The pause is the longest gap between two tokens of such a stream; that of the other streams is told beside
it. Every answer is compared with that of the request alone. Several rounds, each with a new node.
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

sys.path.append(str(record.REPOSITORY / "tests"))

from adapters.fleets import Heard
from hyperflexis.core.instance import Role
from hyperflexis.runtime.launchers.cluster import RayLauncher, RaySpec
from hyperflexis.wire.messages import TokenLogprobs
from runtime.live_world import Client
from runtime.ray_world import Fleet, RayCluster

ASKS = [([5 + 3 * index, 7, 11 + index] * (4 + index), 120 + index) for index in range(20)]
ROUNDS = 3


class Timed(Client):
    """Remembers when each token came."""

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        self.instants_s: list[float] = []

    def on_tokens(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] | None) -> None:
        super().on_tokens(tokens, logprobs)
        self.instants_s += [time.perf_counter()] * len(tokens)

    @property
    def pause_s(self) -> float:
        return max(late - early for early, late in zip(self.instants_s, self.instants_s[1:], strict=False))


async def ready_s(launcher: RayLauncher, since_s: float) -> float:
    heard = Heard()
    adapter = launcher.launch(0, Role.MIXED, heard)
    await heard.until_ready()
    took_s = time.perf_counter() - since_s
    adapter.close()
    return took_s


async def starts(spec: RaySpec) -> tuple[RayLauncher, dict[str, Any]]:
    begin_s = time.perf_counter()
    launcher = await RayLauncher.start(spec)
    first_s = await ready_s(launcher, begin_s)
    warm_s = []
    for _ in range(ROUNDS):
        await asyncio.sleep(1.0)  # Ray takes a moment to have the room back.
        warm_s.append(await ready_s(launcher, time.perf_counter()))
    return launcher, {"first_s": first_s, "warm_node_s": [round(each, 3) for each in sorted(warm_s)]}


async def loss(cluster: RayCluster, fleet: Fleet, expected: list[list[int]]) -> dict[str, Any]:
    begin_s = time.perf_counter()
    cluster.grow(3)
    await fleet.until_ready(3)
    new_node_s = time.perf_counter() - begin_s
    clients = [fleet.submit(*ask) for ask in ASKS]
    for client in clients:
        await client.heard(10)
    cluster.kill(cluster.node_of(fleet.pids()[0]))
    for client in clients:
        await client.ended()
    moved = [each for each in clients if each.end.verdict and each.end.verdict.migrations]
    others = [each for each in clients if each not in moved]
    pauses_s = sorted(each.pause_s for each in moved if isinstance(each, Timed))
    others_s = sorted(each.pause_s for each in others if isinstance(each, Timed))
    return {
        "new_node_s": round(new_node_s, 2),
        "streams_of_the_node": len(moved),
        "right_answers": sum(each.tokens == tokens for each, tokens in zip(clients, expected, strict=True)),
        "pause_ms_p50": round(1000 * statistics.median(pauses_s), 1),
        "pause_ms_max": round(1000 * pauses_s[-1], 1),
        "others_pause_ms_max": round(1000 * others_s[-1], 1),
    }


async def measure(cluster: RayCluster) -> dict[str, Any]:
    spec = RaySpec("", address=cluster.address, device="cpu", dtype="float32", kv_bytes=1 << 24)
    cluster.grow(1)
    launcher, start = await starts(spec)
    cluster.grow(2)
    try:
        async with Fleet(launcher, Role.MIXED, Role.MIXED, Role.MIXED, client=Timed) as fleet:
            await fleet.until_ready(1)
            expected = await fleet.answers(ASKS)
            await fleet.until_ready(2)
            losses = [await loss(cluster, fleet, expected) for _ in range(ROUNDS)]
    finally:
        await launcher.close()
    return {"start": start, "loss": losses, "requests": len(ASKS)}


def main() -> None:
    words = record.parser(__doc__).parse_args()
    cluster = RayCluster()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(measure(cluster))
    finally:
        cluster.close()
    report = {"machine": record.machine("ray", "torch", "uvloop"), **found}
    record.write(words.json, report)
    print(report["start"])
    for each in report["loss"]:
        print(each)


if __name__ == "__main__":
    main()
