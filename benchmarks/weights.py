"""How long weights take from each source to a new holder, what that costs their donor, and how soon a start serves.

    python benchmarks/weights.py --json weights.json

The model is a random one in the shape of Qwen2.5-0.5B (1 GB of bfloat16), made in a temporary directory; times to ready
are measured with the demo model too. Parts (`--parts`), a minute or two each, add to what the file has already:

steps      the weight step, within each round: disk with the file's pages dropped (mincore says whether they are gone),
           disk with them in memory, attach, copies by shared memory, Unix socket and TCP, and a plain copy into the
           same kind of memory (fresh, as a new holder's is) and into resident memory
receivers  1, 2 and 4 holders at once: attached; copied in a chain
links      copied in a chain, and each from the first donor, where each sender gives at most 0.125 GB/s, as over a
           network: then links are what is short, and not this machine's two cores
donor M    steps of model M (demo, 0.5B) while weights are copied from a keeper beside it
threads M  the same where they are copied from threads of the process that steps, which was not chosen
ready M    from the decision to the first token that is served, by phase: fork; donor and warm zygote; all of it cold
sleep M    what an instance takes to sleep and to wake
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import uvloop

import record
import weights_model
from hyperflexis.adapters.contract import Adapter
from hyperflexis.adapters.native.messages import WeightsSpec
from hyperflexis.core.instance import Role
from hyperflexis.engine.arena import ArenaLayout
from hyperflexis.engine.config import ModelConfig
from hyperflexis.engine.fingerprint import fingerprint
from hyperflexis.runtime.launchers.local import LocalLauncher, LocalSpec
from hyperflexis.transfer.weights.identity import Identity
from hyperflexis.wire.messages import Asleep, Awake, News, Ready, Sampling, Sleep, StepReport, Submit, Wake

DEMO = record.REPOSITORY / "src" / "hyperflexis" / "demo_model"
HOLDER, STEPPER = (Path(__file__).with_name(f"weights_{name}.py") for name in ("holder", "stepper"))
GREEDY = Sampling(temperature=0.0)
ROUNDS = 5
KV_BYTES = 64 << 20
FORK, ATTACH = "fork of a loaded zygote", "warm zygote, attach"
PARTS = (
    "steps",
    "receivers",
    "links",
    *(f"{part} {model}" for part in ("donor", "threads", "ready", "sleep") for model in ("demo", "0.5B")),
)
LINK_BYTES_PER_S = 1.25e8
TOGETHER: dict[str, dict[str, tuple[int, ...]]] = {
    "receivers": {"attach": (1, 2, 4), "chain": (1, 2, 4)},
    "links": {"chain": (1, 2, 4), "apart": (1, 2)},
}
"""How many holders at once, by part and way."""
COPY_S = 3.0
"""How long copies are kept up while a donor's steps are timed."""
GOALS: dict[str, tuple[tuple[str, ...], str, float]] = {
    "attach, times as fast as cold disk": (("steps", "times as fast as cold disk", "attach", "median"), ">=", 19.39),
    "copy by shared memory, of a plain copy into memory as fresh": (
        ("steps", "of a plain copy into fresh memory", "shm", "median"),
        ">=",
        0.8,
    ),
    "the same into memory that is there already": (
        ("steps", "of a plain copy into resident memory", "shm", "median"),
        ">=",
        0.8,
    ),
    "4 attached, times one": (("receivers", "attach", "times one", "4", "median"), "<=", 1.3),
    "4 in a chain, times one, links of 0.125 GB/s": (("links", "chain", "times one", "4", "median"), "<=", 1.3),
    "4 in a chain, times one, two cores the limit": (("receivers", "chain", "times one", "4", "median"), "<=", 1.3),
    "donor's step during a copy, times its p50": (
        ("donor 0.5B", "keeper, tcp", "p50 during, times p50"),
        "<=",
        1.2,
    ),
    "demo, fork to first token, s": (("ready demo", FORK, "total", "median"), "<=", 0.3),
    "0.5B, warm zygote and donor to first token, s": (("ready 0.5B", ATTACH, "total", "median"), "<=", 1.0),
}
"""Where each figure stands, and what it is to be."""


class Instance:
    """Listens to one instance, from the decision to start it."""

    def __init__(self) -> None:
        self.began_s = time.perf_counter()
        self.ready_s = self.first_token_s = 0.0
        self.startup_s: dict[str, float] = {}
        self.steps_s: list[tuple[float, float]] = []
        """When each ended, and how long it took."""
        self.finished: set[int] = set()
        self.news: list[News] = []
        self.adapter: Adapter
        self._heard = asyncio.Event()

    def on_ready(self, ready: Ready) -> None:
        self.ready_s = time.perf_counter() - self.began_s
        self.startup_s = ready.startup_s
        self.ask(0, 1)

    def ask(self, number: int, tokens: int, prompt_tokens: int = 32) -> None:
        self.adapter.submit(Submit(number, list(range(10, 10 + prompt_tokens)), [], tokens, GREEDY))

    def on_report(self, report: StepReport) -> None:
        now = time.perf_counter()
        self.first_token_s = self.first_token_s or now - self.began_s
        if report.decode_seqs and not report.prefill_tokens:
            self.steps_s.append((now, report.duration_s))
        self.finished.update(report.finished)
        self._heard.set()

    def on_news(self, news: News) -> None:
        self.news.append(news)
        self._heard.set()

    def on_lost(self, why: str) -> None:
        raise RuntimeError(why)

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self._heard.clear()
            await self._heard.wait()


def start(launcher: LocalLauncher, number: int, began_s: float | None = None) -> Instance:
    instance = Instance()
    if began_s is not None:
        instance.began_s = began_s
    instance.adapter = launcher.launch(number, Role.MIXED, instance)
    return instance


def spec(directory: Path, **fields: Any) -> LocalSpec:
    return LocalSpec(str(directory), device="cpu", kv_bytes=KV_BYTES, **fields)


def lending(**fields: Any) -> WeightsSpec:
    return WeightsSpec(lends=True, host="127.0.0.1", **fields)


# -- holders: processes that take weights and do nothing else


class Holder:
    def __init__(
        self,
        identity: Identity,
        candidates: list[str],
        media: list[str] | None,
        *,
        niceness: int = 0,
        bytes_per_s: float | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HOLDER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        order = {"identity": msgspec.to_builtins(identity), "candidates": candidates, "media": media}
        self._write(json.dumps({**order, "niceness": niceness, "bytes_per_s": bytes_per_s}))
        self.offer: str = self._read()["offer"]

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        said: dict[str, Any] = json.loads(self._process.stdout.readline())
        return said

    def begin(self) -> None:
        self._write("begin")

    def until_filling(self) -> None:
        self._read()

    def result(self) -> dict[str, Any]:
        while "seconds" not in (said := self._read()):
            pass
        assert not said["failures"], said
        return said

    def take(self) -> dict[str, Any]:
        self.begin()
        return self.result()

    def close(self) -> None:
        self._process.communicate()


# -- parts


def plain_copy_s(size_bytes: int, *, is_fresh: bool) -> float:
    source, target = os.memfd_create("plain"), os.memfd_create("plain")
    mapped = []
    for fd in (source, target):
        os.ftruncate(fd, size_bytes)
        mapped.append(np.memmap(f"/proc/self/fd/{fd}", np.uint8, "r+"))
    mapped[0][:] = 1
    if not is_fresh:
        mapped[1][:] = 2
    began_s = time.perf_counter()
    np.copyto(mapped[1], mapped[0])
    taken_s = time.perf_counter() - began_s
    del mapped
    os.close(source)
    os.close(target)
    return taken_s


async def disk_step_s(model: Path) -> float:
    launcher = await LocalLauncher.start(spec(model))
    await launcher.close()
    return launcher.loaded.phases_s["disk"]


class Bench(NamedTuple):
    model: Path
    identity: Identity
    offer: str


async def steps(bench: Bench, rounds: int) -> dict[str, Any]:
    seen: dict[str, list[float]] = {}
    cold_shares = []

    def note(name: str, seconds: float) -> None:
        seen.setdefault(name, []).append(seconds)

    media = {"attach": None, "shm": ["shm", "unix"], "unix": ["unix"], "tcp": ["tcp"]}
    for _ in range(rounds):
        cold_shares.append(weights_model.drop_pages(bench.model))
        note("disk, cold", await disk_step_s(bench.model))
        note("disk, in page cache", await disk_step_s(bench.model))
        for name, only in media.items():
            holder = Holder(bench.identity, [bench.offer], only)
            note(name, holder.take()["seconds"])
            holder.close()
        note("plain copy, fresh memory", plain_copy_s(bench.identity.size_bytes, is_fresh=True))
        note("plain copy, resident memory", plain_copy_s(bench.identity.size_bytes, is_fresh=False))
    cold = seen["disk, cold"]
    fresh, resident = seen["plain copy, fresh memory"], seen["plain copy, resident memory"]

    def ratio(of: list[float], to: list[float]) -> dict[str, float]:
        return record.spread([one / other for one, other in zip(of, to, strict=True)])

    return {
        "size_bytes": bench.identity.size_bytes,
        "pages in memory when cold": cold_shares,
        "seconds": {name: record.spread(values) for name, values in seen.items()},
        "times as fast as cold disk": {name: ratio(cold, seen[name]) for name in (*media, "disk, in page cache")},
        "of a plain copy into fresh memory": {name: ratio(fresh, seen[name]) for name in media},
        "of a plain copy into resident memory": {name: ratio(resident, seen[name]) for name in media},
    }


async def receivers(
    bench: Bench, rounds: int, ways: dict[str, tuple[int, ...]], link: float | None = None
) -> dict[str, Any]:
    found: dict[str, dict[str, list[float]]] = {way: {} for way in ways}
    for _ in range(rounds):
        for way, counts in ways.items():
            for count in counts:
                found[way].setdefault(str(count), []).append(_together_s(bench, count, way, link))
    return {
        way: {
            "seconds": {count: record.spread(values) for count, values in counts.items()},
            "times one": {
                count: record.spread([one / alone for one, alone in zip(values, counts["1"], strict=True)])
                for count, values in counts.items()
            },
        }
        for way, counts in found.items()
    }


def _together_s(bench: Bench, count: int, way: str, link: float | None) -> float:
    """From the first holder's beginning to the last one's end."""
    made: list[Holder] = []
    try:
        for _ in range(count):
            before = [made[-1].offer] if made and way == "chain" else []
            media = None if way == "attach" else ["tcp"]
            made.append(Holder(bench.identity, [*before, bench.offer], media, bytes_per_s=link))
        began_s = time.perf_counter()
        for holder in made:
            holder.begin()
            if way == "chain":
                holder.until_filling()
        for holder in made:
            holder.result()
        return time.perf_counter() - began_s
    finally:
        for holder in made:
            holder.close()


async def donor(model: Path, identity: Identity, steps_of: Path) -> dict[str, Any]:
    """Steps of one model while the large one is lent."""
    found: dict[str, Any] = {}
    async with _lender(model, identity, None) as bench:
        for medium in ("tcp", "attach"):
            found[f"keeper, {medium}"] = await asyncio.to_thread(_disturbed, identity, steps_of, bench.offer, medium)
    return found


async def threads(model: Path, identity: Identity, steps_of: Path) -> dict[str, Any]:
    """The same steps in a process that lends the large model from threads of its own."""
    return {"tcp": await asyncio.to_thread(_disturbed, identity, steps_of, "", "tcp", lends=model)}


def _disturbed(
    identity: Identity, steps_of: Path, offer: str, medium: str, *, lends: Path | None = None
) -> dict[str, Any]:
    """Take the weights again and again, after as long without; the holder stands for another host's, so it yields."""
    process = subprocess.Popen([sys.executable, str(STEPPER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"model": str(steps_of), "lends": lends and str(lends)}) + "\n")
    process.stdin.flush()
    offer = json.loads(process.stdout.readline())["offer"] or offer
    holder = Holder(identity, [offer], [medium] if medium != "attach" else None, niceness=15)
    time.sleep(COPY_S)
    began_s, rates = time.perf_counter(), []
    while time.perf_counter() < began_s + COPY_S:
        rates.append(identity.size_bytes / holder.take()["seconds"] / 1e9)
    ended_s = time.perf_counter()
    holder.close()
    said, _ = process.communicate("over\n")
    return _compared(json.loads(said)["steps_s"], began_s, ended_s, rates)


def _compared(steps_s: list[tuple[float, float]], began_s: float, ended_s: float, rates: list[float]) -> dict[str, Any]:
    before = [step for at, step in steps_s if began_s - COPY_S < at < began_s]
    during = [step for at, step in steps_s if began_s < at < ended_s]

    def times(of: Callable[[list[float]], float]) -> float:
        return of(during) / of(before)

    return {
        "gb_per_s": statistics.median(rates),
        "step_p50_s": statistics.median(before),
        "p50 during, times p50": times(statistics.median),
        "mean during, times mean": times(statistics.mean),
        "p99 during, times p99": times(lambda steps: record.percentile(steps, 0.99)),
        "steps": [len(before), len(during)],
    }


async def ready(model: Path, rounds: int) -> dict[str, Any]:
    """Every start is of an instance that decides, is made, computes and is heard of."""
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        weights_model.drop_pages(model)
        cold = await _cold(model)
        found.setdefault("cold: process, disk, calibration", []).append(cold)
        first = await LocalLauncher.start(spec(model, weights=lending()))
        measuring = start(first, 0)
        await measuring.until(lambda: 0 in measuring.finished)  # noqa: B023  # awaited at once
        measuring.adapter.close()
        found.setdefault(FORK, []).append(await _forked(first, 1))
        offer = await first.offer()
        for name, fields in {"attach": {}, "copy": {"attaches": False}}.items():
            row = await _joined(model, WeightsSpec(candidates=[offer], **fields))
            found.setdefault(f"warm zygote, {name}", []).append(row)
        row = await _cold(model, WeightsSpec(candidates=[offer]))
        found.setdefault("process, attach", []).append(row)
        await first.close()
    return {
        name: {phase: record.spread([row[phase] for row in rows]) for phase in rows[0]} for name, rows in found.items()
    }


async def _cold(model: Path, weights: WeightsSpec | None = None) -> dict[str, float]:
    began_s = time.perf_counter()
    launcher = await LocalLauncher.start(spec(model, weights=weights or WeightsSpec()))
    loaded_s = time.perf_counter() - began_s
    row = await _first_token(launcher, 0, began_s)
    await launcher.close()
    return {"process": loaded_s - launcher.loaded.load_s, **_load_phases(launcher), **row}


async def _joined(model: Path, weights: WeightsSpec) -> dict[str, float]:
    """With a zygote that was there already and had no model."""
    zygote = LocalLauncher.prepare()
    await zygote.warm()
    began_s = time.perf_counter()
    launcher = await LocalLauncher.start(spec(model, weights=weights), zygote)
    assert launcher.loaded.origin != "disk", launcher.loaded.failures
    loaded_s = time.perf_counter() - began_s
    row = await _first_token(launcher, 0, began_s)
    await launcher.close()
    return {"fork to load": loaded_s - launcher.loaded.load_s, **_load_phases(launcher), **row}


async def _forked(launcher: LocalLauncher, number: int) -> dict[str, float]:
    return await _first_token(launcher, number, time.perf_counter())


async def _first_token(launcher: LocalLauncher, number: int, began_s: float) -> dict[str, float]:
    launched_s = time.perf_counter() - began_s
    instance = start(launcher, number, began_s)
    await instance.until(lambda: 0 in instance.finished)
    phases = instance.startup_s
    instance.adapter.close()
    return {
        "fork": instance.ready_s - launched_s - sum(phases.values()),
        **{f"instance: {name}": seconds for name, seconds in phases.items()},
        "first token": instance.first_token_s - instance.ready_s,
        "total": instance.first_token_s,
    }


def _load_phases(launcher: LocalLauncher) -> dict[str, float]:
    loaded = launcher.loaded
    rest = loaded.load_s - sum(loaded.phases_s.values())
    return {**{f"load: {name}": seconds for name, seconds in loaded.phases_s.items()}, "load: rest": rest}


async def sleep(model: Path, rounds: int) -> dict[str, Any]:
    launcher = await LocalLauncher.start(spec(model))
    instance = start(launcher, 0)
    await instance.until(lambda: 0 in instance.finished)
    rows: dict[str, list[float]] = {}
    freed = {}
    for round_ in range(rounds):
        for level in (1, 2):
            began_s = time.perf_counter()
            asleep = await _answered(instance, Sleep(level))
            assert isinstance(asleep, Asleep), asleep
            rows.setdefault(f"sleep {level}", []).append(time.perf_counter() - began_s)
            freed[f"sleep {level}"] = asleep.freed_bytes
            began_s = time.perf_counter()
            awake = await _answered(instance, Wake())
            assert isinstance(awake, Awake), awake
            rows.setdefault(f"wake {level}", []).append(time.perf_counter() - began_s)
            number = 1 + 2 * round_ + level
            instance.ask(number, 1)
            await instance.until(lambda: number in instance.finished)  # noqa: B023  # awaited at once
            rows.setdefault(f"wake {level} to first token", []).append(time.perf_counter() - began_s)
    instance.adapter.close()
    await launcher.close()
    return {"freed_bytes": freed, "seconds": {name: record.spread(values) for name, values in rows.items()}}


async def _answered(instance: Instance, order: Sleep | Wake) -> News:
    count = len(instance.news)
    instance.adapter.order(order)
    await instance.until(lambda: len(instance.news) > count)
    return instance.news[-1]


# -- the whole


@asynccontextmanager
async def _lender(model: Path, identity: Identity, link: float | None) -> AsyncIterator[Bench]:
    launcher = await LocalLauncher.start(spec(model, weights=lending(bytes_per_s=link or math.inf)))
    try:
        while not launcher.digest:  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.1)
        yield Bench(model, identity, (await launcher.offer()).hex())
    finally:
        await launcher.close()


async def measure(model: Path, parts: list[str], rounds: int, report: dict[str, Any]) -> None:
    config = ModelConfig.from_directory(model)
    layout = ArenaLayout.of(config, config.dtype)
    identity = Identity(fingerprint(model), "bfloat16", layout.hash, layout.bytes)
    for part, link in {"steps": None, "receivers": None, "links": LINK_BYTES_PER_S}.items():
        if part in parts:
            async with _lender(model, identity, link) as bench:
                if part == "steps":
                    report[part] = await steps(bench, rounds)
                else:
                    report[part] = await receivers(bench, rounds, TOGETHER[part], link)
    for name, each in {"demo": DEMO, "0.5B": model}.items():
        if f"donor {name}" in parts:
            report[f"donor {name}"] = await donor(model, identity, each)
        if f"threads {name}" in parts:
            report[f"threads {name}"] = await threads(model, identity, each)
        if f"ready {name}" in parts:
            report[f"ready {name}"] = await ready(each, rounds)
        if f"sleep {name}" in parts:
            report[f"sleep {name}"] = await sleep(each, rounds)


def main() -> None:
    words = record.parser(__doc__)
    words.add_argument("--parts", default=",".join(PARTS))
    words.add_argument("--rounds", type=int, default=ROUNDS)
    words.add_argument("--model", type=Path, help="where the random model is, or is to be kept")
    options = words.parse_args()
    parts = options.parts.split(",")
    has_before = options.json is not None and options.json.exists()
    report: dict[str, Any] = json.loads(options.json.read_text(encoding="utf-8")) if has_before else {}
    with tempfile.TemporaryDirectory() as directory:
        model: Path = options.model or Path(directory) / "qwen2.5-0.5b-shaped"
        if not model.exists():
            weights_model.make(model)
        uvloop.run(measure(model, parts, options.rounds, report))
    report["machine"] = {**report.get("machine", {}), **dict.fromkeys(parts, record.machine("torch", "hyperflexis"))}
    report["goals"] = _judged(report)
    record.write(options.json, report)
    for name, row in report["goals"].items():
        print(f"{name:60} {row['figure']:8.3f}  {row['goal']:>9}  {'' if row['is_met'] else 'missed'}")


def _judged(report: dict[str, Any]) -> dict[str, Any]:
    """The goals whose figures are there."""
    judged = {}
    for name, (path, relation, goal) in GOALS.items():
        figure: Any = report
        for step in path:
            figure = figure.get(step, {})
        if figure != {}:
            is_met = figure >= goal if relation == ">=" else figure <= goal
            judged[name] = {"figure": figure, "goal": f"{relation} {goal:g}", "is_met": is_met}
    return judged


if __name__ == "__main__":
    main()
