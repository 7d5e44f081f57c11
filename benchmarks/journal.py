"""What a journal costs and what it gives: CPU beside a gateway under load, bytes per request, time to find a request.

    python benchmarks/journal.py --json benchmarks/results/journal.json

CPU: two gateways with stand-in instances behind them, one with a journal, are given the same load in turn (streams of
`ANSWER_TOKENS` tokens, `RATE` of them a second); run time of all threads by the kernel's count, and the difference of
each pair; beside that, what the journal's thread alone took, and what handing entries to it takes, which are too little
to be seen well in a difference. Finding: a simulated journal is written until it has `SIZE` bytes, and the
command is run whole, in a process of its own, for requests from everywhere in it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import uvloop
from tokenizers import Tokenizer

import record
from gateway_cost import CLIENT_CORE, MODEL, PROMPT_TOKENS, Client, Server, ours, source_text
from hyperflexis.cli import recordings
from hyperflexis.core.control import ControlPlane
from hyperflexis.core.events import InstanceReported, RequestArrived
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Capacity
from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.journal.checking import compare
from hyperflexis.journal.entries import Entry, encode
from hyperflexis.journal.parts import Parts
from hyperflexis.journal.reading import open_all
from hyperflexis.journal.recorder import LiveRecorder, Recorder
from hyperflexis.journal.story import tell
from hyperflexis.policies import create
from hyperflexis.sim.job import Job
from hyperflexis.sim.profiles import load_profile
from hyperflexis.sim.simulation import FleetSpec, simulate

RATE, ANSWER_TOKENS = 200.0, 20
SIZE = 1 << 30
SIMULATED = 10_000
FRAME_ENTRIES = 256
"""As many as come in a second or so."""
LISTS = ("started", "began", "preempted", "resumed", "suspended")
LIMITS = {"cpu_share": 0.03, "explain_s": 1.0}
BLOCK_TOKENS = 16


# -- CPU


async def load_cpu_s(server: Server, prompt: str, idle: list[Client], seconds: float) -> float:
    """The server's CPU for so many seconds of load."""

    async def one() -> None:
        if idle:
            client = idle.pop()
        else:
            client = Client(*await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 22))
        await client.ask(prompt, ANSWER_TOKENS, stream=True)
        idle.append(client)

    begin_cpu_s, start_s, tasks = server.cpu_s(), time.perf_counter(), []
    for number in range(int(RATE * seconds)):
        await asyncio.sleep(max(0.0, start_s + number / RATE - time.perf_counter()))
        tasks.append(asyncio.ensure_future(one()))
    await asyncio.gather(*tasks)
    await asyncio.sleep(1.5)  # What is written only now is part of it.
    return server.cpu_s() - begin_cpu_s


async def cpu(rounds: int, seconds: float, folder: Path) -> dict[str, Any]:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    ids = [token for token in tokenizer.encode(source_text(tokenizer, 3000)).ids if token > 8]
    prompt = source_text(tokenizer, PROMPT_TOKENS)
    servers = {"without": ours(ids[:2000]), "with": ours(ids[:2000], folder)}
    idle: dict[str, list[Client]] = {who: [] for who in servers}
    pairs: list[dict[str, float]] = []
    threads_s: list[float] = []
    try:
        for number in range(rounds + 1):
            order = list(servers)[:: 1 if number % 2 else -1]
            begin_s = servers["with"].thread_s()
            pair = {who: await load_cpu_s(servers[who], prompt, idle[who], seconds) for who in order}
            if number:  # The first round warms up.
                pairs.append(pair)
                threads_s.append(servers["with"].thread_s() - begin_s)
    finally:
        for server in servers.values():
            server.close()
    (journal,) = open_all(folder)
    arrivals = (rounds + 1) * int(RATE * seconds)
    shares = [pair["with"] / pair["without"] - 1 for pair in pairs]
    entries = sum(frame.entries for frame in journal.frames()) / arrivals
    own = [
        (thread_s / seconds + handing_s() * entries * RATE) / (pair["without"] / seconds)
        for thread_s, pair in zip(threads_s, pairs, strict=True)
    ]
    return {
        "requests_per_s": RATE,
        "answer_tokens": ANSWER_TOKENS,
        "prompt_tokens": PROMPT_TOKENS,
        "cpu_s_per_s": {who: record.spread([pair[who] / seconds for pair in pairs]) for who in servers},
        "cpu_share": record.spread(own),
        "cpu_share_by_difference": record.spread(shares),
        "thread_cpu_s_per_s": record.spread([each / seconds for each in threads_s]),
        "handing_us_per_entry": handing_s() * 1e6,
        "bytes_per_request": journal.bytes_total() / arrivals,
        "entries_per_request": entries,
    }


class _Nowhere(Recorder):
    """Writes nothing."""

    def __init__(self) -> None:
        pass

    def write(self, entries: Sequence[Entry]) -> int:
        return 0

    def close(self) -> None:
        pass


def handing_s() -> float:
    """CPU of the loop's thread for one entry."""
    live, event, times = LiveRecorder(_Nowhere(), flush_s=3600.0), RequestArrived(0, 400, 20, Slo()), 100_000
    begin_s = time.thread_time()
    for number in range(times):
        live.observe(float(number), event, [])
    spent_s = time.thread_time() - begin_s
    live.close()
    return spent_s / times


# -- finding


def jobs(count: int, rate: float) -> Iterator[Job]:
    """Requests with prompts of some thousand tokens, of which no two are alike."""
    rng, at_s = random.Random(1), 0.0
    for number in range(count):
        at_s += rng.expovariate(rate)
        prompt_tokens = int(rng.lognormvariate(6.5, 0.9)) + 1
        hashes = tuple(rng.randbytes(16) for _ in range(prompt_tokens // BLOCK_TOKENS))
        yield Job(at_s, prompt_tokens, 1 + int(rng.expovariate(1 / 150)), ("chat", "code")[number % 2], hashes)


def write_large(folder: Path, size: int) -> dict[str, Any]:
    """A journal of about so many bytes: a simulation, and then the same again and again under other numbers."""
    profile = load_profile("llama-3-8b/h100/tp1/bfloat16")
    capacity = Capacity(profile.kv_tokens // BLOCK_TOKENS, BLOCK_TOKENS, 256)
    classes = {"chat": ServiceClass("chat", Slo(1.0, 0.05)), "code": ServiceClass("code", Slo(0.5, 0.1), 1)}
    policy, fleet = create("hyperflexis", 2048), FleetBounds.fixed(8)
    header = recordings.header("hyperflexis", 2048, ControlPlane(policy, fleet), classes.values(), wall_s=1e9)
    entries: list[Entry] = []
    spec = FleetSpec(8, capacity, profile.latency)
    simulate(jobs(SIMULATED, 60.0), classes, policy, spec, observe=lambda *each: entries.append(Entry(*each)))
    recorder = Recorder(Parts(folder, 1 << 60), header)
    raw_bytes = written = copies = 0
    while written < size:
        again = [_shifted(each, copies * SIMULATED, copies * entries[-1].now) for each in entries]
        for start in range(0, len(again), FRAME_ENTRIES):
            some = again[start : start + FRAME_ENTRIES]
            written += recorder.write(some)
            raw_bytes += len(encode(some))
        copies += 1
    recorder.close()
    (journal,) = open_all(folder)
    requests = copies * SIMULATED
    return {
        "requests": requests,
        "entries": copies * len(entries),
        "frames": sum(1 for _ in journal.frames()),
        "parts": len(journal.parts),
        "raw_bytes": raw_bytes,
        "disk_bytes": journal.bytes_total(),
        "bytes_per_request": journal.bytes_total() / requests,
        "hash_bytes_per_request": sum(16 * len(each.block_hashes) for each in jobs(SIMULATED, 60.0)) / SIMULATED,
    }


def _shifted(entry: Entry, requests: int, seconds: float) -> Entry:
    """The same of other requests, later, and with a name."""
    event: Any = entry.event
    if isinstance(event, InstanceReported):
        lists = {name: [each + requests for each in getattr(event, name)] for name in LISTS}
        event = event._replace(**lists)
    elif hasattr(event, "request_id"):
        event = event._replace(request_id=event.request_id + requests)
    commands: list[Any] = [
        each._replace(request_id=each.request_id + requests) if hasattr(each, "request_id") else each
        for each in entry.commands
    ]
    name = f"cmpl-{event.request_id:024x}" if isinstance(event, RequestArrived) else ""
    return Entry(entry.now + seconds, event, commands, name)


def find(folder: Path, requests: int, times: int) -> dict[str, Any]:
    """Seconds of the whole command."""
    rng, by_number, by_name, within = random.Random(2), list[float](), list[float](), list[float]()
    for _ in range(times):
        number = rng.randrange(requests)
        by_number.append(_explain_s(folder, str(number)))
        by_name.append(_explain_s(folder, f"cmpl-{number:024x}"))
        within.append(_found_s(folder, f"cmpl-{number:024x}"))
    return {
        "by_number_s": record.spread(by_number),
        "by_name_s": record.spread(by_name),
        "by_name_without_start_s": record.spread(within),
        "start_s": record.spread([_run_s("version")[0] for _ in range(times)]),
    }


def _found_s(folder: Path, name: str) -> float:
    """Of it, what finding and telling takes."""
    begin_s = time.perf_counter()
    (journal,) = open_all(folder)
    (number,) = journal.named(name)
    assert tell(number, journal.of_request(number)).verdict
    return time.perf_counter() - begin_s


def _explain_s(folder: Path, request: str) -> float:
    seconds, told = _run_s("explain", str(folder), request)
    assert "done: " in told, told
    return seconds


def _run_s(*words: str) -> tuple[float, str]:
    begin_s = time.perf_counter()
    command = [sys.executable, "-m", "hyperflexis", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - begin_s, done.stdout


def check_s(folder: Path, entries: int) -> dict[str, float]:
    """How fast a replay goes, of the first entries."""
    (journal,) = open_all(folder)
    begin_s = time.process_time()
    found = compare(itertools.islice(journal.until_damage(), entries), recordings.control_plane(journal.header))
    assert found.difference is None, found.difference
    return {"events": found.events, "events_per_cpu_s": found.events / (time.process_time() - begin_s)}


# -- the run


def main() -> int:
    words = record.parser(__doc__)
    words.add_argument("--rounds", type=int, default=9)
    words.add_argument("--seconds", type=float, default=10.0)
    words.add_argument("--size", type=float, default=float(SIZE), help="bytes of the large journal")
    options = words.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large = write_large(folder / "large", int(options.size))
        print(large, flush=True)
        found = find(folder / "large", large["requests"], 7)
        print(found, flush=True)
        checked = check_s(folder / "large", 4 * SIMULATED)
        print(checked, flush=True)
        os.sched_setaffinity(0, {CLIENT_CORE})
        cost = uvloop.run(cpu(options.rounds, options.seconds, folder / "live"))
        print(cost, flush=True)
    figures = {
        "cpu_share": cost["cpu_share"]["median"],
        "explain_s": max(found[each]["median"] for each in ("by_number_s", "by_name_s")),
    }
    missed = [each for each, value in figures.items() if value > LIMITS[each]]
    judged = {each: {"value": value, "limit": LIMITS[each]} for each, value in figures.items()}
    report = {"cpu": cost, "large": large, "explain": found, "replay": checked, "judged": judged, "missed": missed}
    record.write(options.json, {"machine": record.machine("msgspec", "zstandard", "uvloop", "numpy"), **report})
    print("missed: " + ", ".join(missed) if missed else "all limits kept")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
