"""Ten times as much as the fleet can do: who is refused and how, what was promised to who is not, and how it passes.

Two classes come in equal parts: `strict`, which promises and refuses what could not be kept, and `loose`, which
promises nothing. The capacity is what the same mix gets through where so many clients ask that some always wait.

A refusal says after how many seconds to come again (`Retry-After`, whole seconds, at least 1). It is called honest if
that is within a factor of 2 of when a request of that class was next accepted, whoever's it was; where that was sooner
than the least that can be said allows, 1 is honest. That is asked of every refusal; in an overload that goes on others
may be quicker to take the place, so some clients do as they are told, and it is counted how often they had to.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from argparse import Namespace
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

import record
from real_faults_clients import Heard, ask, body, prompt, session
from real_faults_server import Server, serving

FACTOR = 10.0
CLASSES = ("strict", "loose")
PROMPT_TOKENS, ANSWER_TOKENS = 160, 48
TTFT_MS, TPOT_MS = 2000, 250
REQUESTS_MAX = 64
CAPACITY_CLIENTS, CAPACITY_S = 32, 20.0
PROBE_S = 0.25
OBEDIENT_SHARE = 0.05
ARGUMENTS = (
    *("--instances", "2", "--set", f"limits.requests_max={REQUESTS_MAX}"),
    *("--set", f"classes.strict={{ttft_ms: {TTFT_MS}, tpot_ms: {TPOT_MS}, priority: 1, refuse_late: true}}"),
    *("--set", "classes.loose={}"),
)


def asked(seed: int, service_class: str) -> dict[str, Any]:
    return body(prompt(seed, PROMPT_TOKENS), ANSWER_TOKENS, service_tier=service_class)


async def overload(folder: Path, options: Namespace) -> dict[str, Any]:
    """Measure the capacity, ask for ten times as much, and look on until it has passed."""
    with serving(folder, *ARGUMENTS) as server:
        async with session() as client:
            capacity_rps = await _capacity(client, server.url)
            crowd = _Crowd(client, server, options.seed)
            before_mib = server.memory_mib()
            await crowd.play(FACTOR * capacity_rps, options.overload_s)
            recovered_s, probes = await crowd.recover()
            await crowd.finish()
    return {
        "capacity_rps": capacity_rps,
        "offered_rps": crowd.sent / options.overload_s,
        "seconds": options.overload_s,
        "promise": {"ttft_ms": TTFT_MS, "tpot_ms": TPOT_MS},
        "statuses": {name: dict(Counter(each.status for each in crowd.heard[name])) for name in CLASSES},
        "broken": _broken([each for name in CLASSES for each in crowd.heard[name] if not each.status]),
        "strict": _kept([each for each in crowd.heard["strict"] if each.status == 200]),
        "retry_after": {name: _honesty(crowd.heard[name]) for name in CLASSES},
        "obedient": crowd.obedience(),
        "memory_mib": {"before": before_mib, "seconds": crowd.memory},
        "recovered_s": recovered_s,
        "probes_until_then": probes,
    }


async def _capacity(client: aiohttp.ClientSession, url: str) -> float:
    """Answers per second, of the mix, while some always wait."""
    ended: list[float] = []
    until_s = time.monotonic() + CAPACITY_S

    async def one(number: int) -> None:
        turn = number
        while time.monotonic() < until_s:
            heard = await ask(client, url, asked(1_000_000 + turn, CLASSES[turn % 2]))
            if heard.status == 200:
                ended.append(heard.ended_s)
            else:
                await asyncio.sleep(0.1)
            turn += CAPACITY_CLIENTS + 1

    await asyncio.gather(*(one(number) for number in range(CAPACITY_CLIENTS)))
    steady = [each for each in ended if until_s - 0.75 * CAPACITY_S < each < until_s]
    return len(steady) / (0.75 * CAPACITY_S)


class _Crowd:
    """Everybody who asks during the overload."""

    def __init__(self, client: aiohttp.ClientSession, server: Server, seed: int) -> None:
        self._client = client
        self._server = server
        self._rng = random.Random(seed)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.sent = 0
        self.heard: dict[str, list[Heard]] = {name: [] for name in CLASSES}
        self.memory: list[tuple[float, float, float, int]] = []
        """(seconds, MiB of the gateway, of its instances, descriptors that the gateway has open)."""
        self._tries: list[int] = []
        """Of those who came again when they were told to, how often they asked until they were let in."""
        self._is_over = asyncio.Event()

    async def play(self, rate_rps: float, seconds: float) -> None:
        """Arrivals at random, however slow the answers."""
        watching = asyncio.create_task(self._watch())
        start_s = due_s = time.monotonic()
        while due_s < start_s + seconds:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            service_class = self._rng.choice(CLASSES)
            obeys = self._rng.random() < OBEDIENT_SHARE
            self._spawn(self._come_again(service_class) if obeys else self._ask(service_class))
            self.sent += 1
            due_s += self._rng.expovariate(rate_rps)
        self._is_over.set()
        await watching

    async def recover(self) -> tuple[float, int]:
        """Ask for a strict promise now and then; returns when the first was asked for that was given and kept."""
        end_s, probes = time.monotonic(), list[Heard]()

        async def probe() -> None:
            probes.append(await ask(self._client, self._server.url, asked(self._rng.getrandbits(40), "strict")))

        while time.monotonic() < end_s + 60 and not any(each.attained for each in probes):
            self._spawn(probe())
            await asyncio.sleep(PROBE_S)
        first_s = min((each.sent_s for each in probes if each.attained), default=float("inf"))
        return first_s - end_s, sum(each.sent_s < first_s for each in probes)

    async def finish(self) -> None:
        await asyncio.gather(*self._tasks)

    def obedience(self) -> dict[str, Any]:
        counts = sorted(self._tries)
        return {"clients_let_in": len(counts), "tries": record.spread(counts)} if counts else {}

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, service_class: str) -> Heard:
        heard = await ask(self._client, self._server.url, asked(self._rng.getrandbits(40), service_class))
        self.heard[service_class].append(heard)
        return heard

    async def _come_again(self, service_class: str) -> None:
        tries = 1
        while (heard := await self._ask(service_class)).retry_after_s is not None:
            if self._is_over.is_set():
                return
            await asyncio.sleep(heard.retry_after_s)
            tries += 1
        self._tries.append(tries)

    async def _watch(self) -> None:
        start_s = time.monotonic()
        while not self._is_over.is_set():
            mib = self._server.memory_mib()
            at_s = round(time.monotonic() - start_s)
            measured = round(mib["gateway"], 1), round(mib["instances"], 1), self._server.descriptors()
            self.memory.append((at_s, *measured))
            await asyncio.sleep(2)


def _broken(heard: Sequence[Heard]) -> dict[str, int]:
    """How often connections broke before there was an answer, by the kind of error."""
    return dict(Counter(each.error.partition("(")[0] for each in heard))


def _kept(accepted: Sequence[Heard]) -> dict[str, Any]:
    if not accepted:
        return {"accepted": 0}
    ttfts_ms = [each.verdict["ttft"]["actual_ms"] for each in accepted]
    return {
        "accepted": len(accepted),
        "attainment": statistics.fmean(each.attained for each in accepted),
        "ttft_p99_ms": record.percentile(ttfts_ms, 0.99),
    }


def _honesty(heard: Sequence[Heard]) -> dict[str, Any]:
    """What was said, against when one of that class was next let in."""
    accepted_s = sorted(each.sent_s for each in heard if each.status == 200)
    refused = [each for each in heard if each.status == 429]
    judged = []
    for each in refused:
        index = bisect_left(accepted_s, each.sent_s)
        if each.retry_after_s is not None and index < len(accepted_s):
            judged.append((each.retry_after_s, accepted_s[index] - each.sent_s))
    honest = [told <= max(1, 2 * really_s) and really_s <= 2 * told for told, really_s in judged]
    return {
        "refused": len(refused),
        "without_header": sum(each.retry_after_s is None for each in refused),
        "judged": len(judged),
        "honest_share": statistics.fmean(honest) if honest else None,
        "told_s": dict(sorted(Counter(told for told, _ in judged).items())),
        "really_s": record.spread([really_s for _, really_s in judged]) if judged else {},
        "really_p99_s": record.percentile([really_s for _, really_s in judged], 0.99) if judged else None,
    }
