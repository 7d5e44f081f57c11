"""What really goes wrong, done to a server as users run it; what its clients noticed.

python benchmarks/real_faults.py --json real_faults.json
python benchmarks/real_faults.py --only kills --kills 100 --streams 50
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import uvloop

import record
from hyperflexis.journal.entries import Gap
from hyperflexis.journal.reading import open_all
from real_faults_clients import Heard, Readers, body, instances, prompt, session, stream
from real_faults_overload import overload
from real_faults_server import Server, is_there, serving

PROMPTS = 24
PROMPT_TOKENS, ANSWER_TOKENS = 24, 240
INSTANCES = 3
KILL_PAUSE_S = (0.5, 2.0)


def several() -> list[dict[str, Any]]:
    return [body(prompt(seed, PROMPT_TOKENS), ANSWER_TOKENS) for seed in range(PROMPTS)]


async def kills(folder: Path, options: Namespace) -> dict[str, Any]:
    """One instance after another dies by SIGKILL, whichever it is; the next when the one before is replaced."""
    rng = random.Random(options.seed)
    with serving(folder, "--instances", str(INSTANCES)) as server:
        async with session() as client:
            readers = Readers(client, server.url, several())
            await readers.learn()
            readers.start(options.streams)
            for _ in range(options.kills):
                await whole(client, server, readers)
                await asyncio.sleep(rng.uniform(*KILL_PAUSE_S))
                os.kill(rng.choice(server.instances()), signal.SIGKILL)
            await readers.finish()
    return {"kills": options.kills, "streams": options.streams, **account(readers)}


async def whole(client: aiohttp.ClientSession, server: Server, readers: Readers) -> None:
    """Return when all instances serve, and every stream has gone on since this was called."""
    began_s = time.monotonic()
    before = list(readers.live.values())
    while any(not each.ended_s and (each.at_s or [0])[-1] < began_s for each in before):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await all_ready(client, server)


async def all_ready(client: aiohttp.ClientSession, server: Server) -> None:
    while sum(each["state"] == "ready" for each in await instances(client, server.url)) < INSTANCES:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


def account(readers: Readers) -> dict[str, Any]:
    """What all clients heard."""
    moved = [each for each in readers.heard if each.moves and each.is_whole]
    unmoved = [each for each in readers.heard if not each.moves and each.is_whole]
    return {
        "answers": len(readers.heard),
        "failed_or_wrong": len(readers.wrong),
        "what": readers.wrong[:10],
        "continued": len(moved),
        "tokens_compared": sum(len(each.tokens) for each in readers.heard),
        "moves_most": max((each.moves for each in readers.heard), default=0),
        "gap_ms": {"continued": gaps(moved), "others": gaps(unmoved)},
    }


def gaps(heard: Sequence[Heard]) -> dict[str, float]:
    """The longest time between two events of each stream, milliseconds."""
    values = [1e3 * each.gap_s for each in heard]
    if not values:
        return {}
    return {
        "p50": statistics.median(values),
        "p99": record.percentile(values, 0.99),
        "max": max(values),
        "streams": len(values),
    }


async def stops(folder: Path, options: Namespace) -> dict[str, Any]:
    """An instance is stopped under all streams, for good or for a while that is shorter than it is waited for."""
    silence_s = 5
    rng = random.Random(options.seed)
    found_s, resumed = [], []
    with serving(folder, "--instances", str(INSTANCES), "--set", f"engine.silence_timeout_s={silence_s}") as server:
        async with session() as client:
            readers = Readers(client, server.url, several())
            await readers.learn()
            readers.start(options.streams)
            for _ in range(options.stops):
                await whole(client, server, readers)
                await asyncio.sleep(rng.uniform(*KILL_PAUSE_S))
                victim = rng.choice(server.instances())
                os.kill(victim, signal.SIGSTOP)
                began_s = time.monotonic()
                while is_there(victim):  # noqa: ASYNC110 processes end without an event
                    await asyncio.sleep(0.02)
                found_s.append(time.monotonic() - began_s)
            # And one that goes on in time is forgiven.
            await whole(client, server, readers)
            victim = server.instances()[0]
            os.kill(victim, signal.SIGSTOP)
            await asyncio.sleep(0.4 * silence_s)
            os.kill(victim, signal.SIGCONT)
            await asyncio.sleep(2 * silence_s)
            resumed.append(is_there(victim))
            await readers.finish()
    return {
        "stops": options.stops,
        "silence_timeout_s": silence_s,
        "found_out_after_s": record.spread(found_s),
        "short_stop_forgiven": all(resumed),
        **account(readers),
    }


async def full_disk(folder: Path, options: Namespace) -> dict[str, Any]:
    """The journal's file system is full for a while."""
    journal = folder / "journal"
    journal.mkdir()
    is_mounted = _mount(journal, "64k")
    try:
        with serving(folder, "--instances", "1", "--journal", str(journal)) as server:
            async with session() as client:
                readers = Readers(client, server.url, several()[:4])
                await readers.learn()
                if is_mounted:
                    (journal / "ballast").write_bytes(bytes(_free(journal)))
                else:
                    server.limit(resource.RLIMIT_FSIZE, max(each.stat().st_size for each in journal.iterdir()))
                readers.start(4)
                await told(server, "the journal cannot be written")
                await asyncio.sleep(5)
                while_full = len(readers.heard)
                lost = await metric(client, server.url, "hyperflexis_journal_lost_events_total")
                if is_mounted:
                    (journal / "ballast").unlink()
                else:
                    server.limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
                await told(server, "the journal is written again")
                await readers.finish()
                await asyncio.sleep(2)
            words = [line[24:] for line in server.told().splitlines() if "journal" in line]
        (read,) = open_all(journal)
        gaps_read = [entry.event.events for entry in read.entries() if isinstance(entry.event, Gap)]
        damages = len(read.damages)
    finally:
        if is_mounted:
            _unmount(journal)
    return {
        "how": "tmpfs of 64 KiB" if is_mounted else "RLIMIT_FSIZE",
        "answers_while_full": while_full,
        "events_lost_by_metric_while_full": lost,
        "events_missing_by_journal": gaps_read,
        "damages_read": damages,
        "log": words,
        **account(readers),
    }


def _mount(folder: Path, size: str) -> bool:
    """A small file system, where this may be made."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True, check=False
    )
    return done.returncode == 0


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", folder], check=True)  # What was read of it may still be mapped.


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_bsize


async def told(server: Server, words: str) -> None:
    """Return once it has said so."""
    deadline_s = time.monotonic() + 60
    while words not in server.told():
        assert time.monotonic() < deadline_s, server.told()
        await asyncio.sleep(0.05)


async def metric(client: aiohttp.ClientSession, url: str, name: str) -> float | None:
    async with client.get(f"{url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), None)


async def descriptors(folder: Path, options: Namespace) -> dict[str, Any]:
    """No descriptor is left: whoever comes is refused or waits, whoever is there is served, and it passes."""
    with serving(folder, "--instances", str(INSTANCES)) as server:
        async with session() as client:
            readers = Readers(client, server.url, several()[:4])
            await readers.learn()
            readers.start(4)
            while len(readers.live) < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            server.limit(resource.RLIMIT_NOFILE, server.descriptors() + 8)
            crowd = [await _opened(server.url) for _ in range(100)]
            before_s, began_s = server.cpu_s(), time.monotonic()
            served_before = len(readers.heard)
            os.kill(server.instances()[-1], signal.SIGKILL)  # To start another takes descriptors, too.
            await asyncio.sleep(10)
            cpu = (server.cpu_s() - before_s) / (time.monotonic() - began_s)
            served = len(readers.heard) - served_before
            for writer in crowd:
                if writer is not None:
                    writer.close()
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            server.limit(resource.RLIMIT_NOFILE, soft)
            began_s = time.monotonic()
            await all_ready(client, server)
            recovered_s = time.monotonic() - began_s
            await readers.finish()
        lines = len(server.told().splitlines())
    return {
        "connections_tried": len(crowd),
        "connections_made": sum(writer is not None for writer in crowd),
        "gateway_cpu_share_while_exhausted": round(cpu, 3),
        "answers_while_exhausted": served,
        "fleet_whole_again_s": recovered_s,
        "log_lines": lines,
        **account(readers),
    }


async def _opened(url: str) -> asyncio.StreamWriter | None:
    """A connection that says nothing."""
    host, _, port = url.removeprefix("http://").partition(":")
    try:
        async with asyncio.timeout(2):
            _, writer = await asyncio.open_connection(host, int(port))
    except (OSError, TimeoutError):
        return None
    return writer


async def slow_clients(folder: Path, options: Namespace) -> dict[str, Any]:
    """Some read their streams: alone, beside many who read long ones, and beside as many who read nothing of theirs."""
    count, kib = 100, 64
    arguments = ("--instances", "2", "--set", f"limits.stream_buffer_kib={kib}", "--set", "engine.kv_cache_gib=1")
    told: dict[str, Any] = {"others": count, "stream_buffer_kib": kib}
    with serving(folder, *arguments) as server:
        async with session() as client:
            readers = Readers(client, server.url, several()[:4])
            await readers.learn()
            readers.start(4)
            told["alone"] = await _beside(server, readers, options.slow_s)
            reading = [asyncio.create_task(stream(client, server.url, _long(seed))) for seed in range(count)]
            told["beside_readers"] = await _beside(server, readers, options.slow_s)
            for each in reading:
                each.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
            silent = [await _deaf(server.url, seed) for seed in range(count)]
            told["beside_silent"] = await _beside(server, readers, options.slow_s)
            for one in silent:
                one.close()
            await readers.finish()
            deadline_s = time.monotonic() + 60
            while running := sum(each["running_seqs"] for each in await instances(client, server.url)):
                assert time.monotonic() < deadline_s, f"{running} go on although their clients have left"
                await asyncio.sleep(0.1)
            told["gateway_mib_after"] = server.memory_mib()["gateway"]
    return {**told, **account(readers)}


async def _beside(server: Server, readers: Readers, seconds: float) -> dict[str, Any]:
    """How long readers wait between two events for the next seconds, and what memory the gateway takes at most."""
    most_mib, from_s = 0.0, time.monotonic()
    while time.monotonic() < from_s + seconds:
        await asyncio.sleep(0.5)
        most_mib = max(most_mib, server.memory_mib()["gateway"])
    waits = [
        1e3 * (later - earlier)
        for each in [*readers.heard, *readers.live.values()]
        for earlier, later in itertools.pairwise(each.at_s)
        if later > from_s
    ]
    between = {"p50": statistics.median(waits), "p99": record.percentile(waits, 0.99), "max": max(waits)}
    return {"between_events_ms": between, "gateway_mib_most": most_mib}


def _long(seed: int) -> dict[str, Any]:
    return body(prompt(seed, PROMPT_TOKENS), 1900)


async def _deaf(url: str, seed: int) -> socket.socket:
    """A client that asks for a stream, and never reads."""
    host, _, port = url.removeprefix("http://").partition(":")
    said = msgspec.json.encode({**_long(seed), "stream": True, "logprobs": 0})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(said)}"
    head += "\r\nContent-Type: application/json"
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(one, (host, int(port)))
    await loop.sock_sendall(one, head.encode() + b"\r\n\r\n" + said)
    return one


async def clock(folder: Path, options: Namespace) -> dict[str, Any]:
    """The clock of the day is set forth and back by hours while clients stream."""
    given = os.environ.get("FAKETIME_LIBRARY", "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
    if not os.access(given, os.R_OK):
        return {"skipped": f"needs libfaketime, at {given} or where FAKETIME_LIBRARY says"}
    setting = folder / "clock"
    setting.write_text("+0")
    env = {
        "LD_PRELOAD": given,
        "FAKETIME_TIMESTAMP_FILE": str(setting),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    created = []
    with serving(folder, "--instances", "2", env=env) as server:
        async with session() as client:
            readers = Readers(client, server.url, several()[:8])
            await readers.learn()
            readers.start(8)
            for hours in (3, -3, 0, 24, -24):
                setting.write_text(f"{hours:+}h")
                await asyncio.sleep(2)
                created.append(await _says(client, server.url))
            await readers.finish()
    shifts_h = [round((told_s - real_s) / 3600) for told_s, real_s in created]
    return {"hours_seen_in_answers": shifts_h, **account(readers)}


async def _says(client: aiohttp.ClientSession, url: str) -> tuple[float, float]:
    """What the server takes the time for, and what it is."""
    async with client.post(f"{url}/v1/completions", json=body([5, 6], 1)) as answer:
        return float((await answer.json())["created"]), time.time()


Section = Callable[[Path, Namespace], Awaitable[dict[str, Any]]]
SECTIONS: dict[str, Section] = {
    "kills": kills,
    "stops": stops,
    "overload": overload,
    "full_disk": full_disk,
    "descriptors": descriptors,
    "slow_clients": slow_clients,
    "clock": clock,
}


def main() -> int:
    words = record.parser(__doc__)
    words.add_argument("--only", choices=SECTIONS, action="append", help="this fault alone; may be given again")
    words.add_argument("--kills", type=int, default=100)
    words.add_argument("--streams", type=int, default=50)
    words.add_argument("--stops", type=int, default=5)
    words.add_argument("--overload-s", type=float, default=60.0)
    words.add_argument("--slow-s", type=float, default=20.0)
    words.add_argument("--seed", type=int, default=1)
    options = words.parse_args()
    table: dict[str, Any] = {}
    report = {"machine": record.machine("torch", "hyperflexis"), "table": table}
    for name in options.only or SECTIONS:
        with tempfile.TemporaryDirectory() as folder:
            load, began_s = os.getloadavg()[0], time.monotonic()
            table[name] = uvloop.run(SECTIONS[name](Path(folder), options))
            table[name] |= {"load_average_before": round(load, 2), "took_s": round(time.monotonic() - began_s, 1)}
        print(name, table[name], flush=True)
        record.write(options.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
