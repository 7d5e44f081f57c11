"""What the gateway adds: latency to the first token, CPU per token and per request, stalls from a huge prompt.

    python benchmarks/gateway_cost.py --json gateway_cost.json

The whole gateway process is measured (HTTP, text, control plane, wire) with stand-in instances behind it, beside a bare
asyncio server that sends the same events at the same pace. Server and client have a core each; the stand-in instance
shares the client's. CPU is the kernel's nanosecond run time of all threads of the server's process. Rounds alternate.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop
from tokenizers import Tokenizer

import record

SERVER_CORE, CLIENT_CORE = 0, (os.cpu_count() or 1) - 1
MODEL = record.REPOSITORY / "src" / "hyperflexis" / "demo_model"
HERE = Path(__file__).resolve()
PROMPT_TOKENS, HUGE_TOKENS = 400, 100_000
STREAMS = 64
LIMITS = {
    "ttft_added_ms": 1.0,
    "busy_ttft_added_ms": 1.0,
    "cpu_token_us": 20.0,
    "cpu_request_us": 700.0,
    "stall_ms": 50.0,
}


# -- the servers


async def serve_ours(tokens: list[int], journal: Path | None = None) -> None:
    """Become a gateway over two stand-in instances, with a journal if it is said where; prints its port."""
    from hyperflexis.adapters.contract import Adapter, Listener
    from hyperflexis.adapters.native.host import NativeAdapter
    from hyperflexis.cli import recordings
    from hyperflexis.core.control import ControlPlane
    from hyperflexis.core.fleet import FleetBounds
    from hyperflexis.core.instance import Role
    from hyperflexis.core.slo import ServiceClass
    from hyperflexis.gateway.backend import ServedModel
    from hyperflexis.gateway.server import Gateway
    from hyperflexis.journal.parts import Parts
    from hyperflexis.journal.recorder import LiveRecorder, Recorder
    from hyperflexis.policies import create
    from hyperflexis.runtime.driver import Driver, Observer

    class StandIns:
        def launch(self, instance_id: int, role: Role, listener: Listener) -> Adapter:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            command = [sys.executable, str(HERE.parent / "standins.py"), "instance", str(theirs.fileno())]
            process = subprocess.Popen(
                [*command, ",".join(map(str, tokens))],
                pass_fds=[theirs.fileno()],
            )
            os.sched_setaffinity(process.pid, {CLIENT_CORE})
            theirs.close()
            adapter = NativeAdapter(listener, asyncio.get_running_loop())
            adapter.connect(ours)
            return adapter

    control = ControlPlane(create("hyperflexis", 2048), FleetBounds.fixed(2))
    observers, threads = list[Observer](), ""
    if journal is not None:
        header = recordings.header("hyperflexis", 2048, control, (), wall_s=time.time(), origin_s=time.monotonic())
        recorder = LiveRecorder(Recorder(Parts(journal, 1 << 30), header))
        observers.append(recorder.observe)
        threads = f" {recorder.thread_id}"
    driver = Driver(control, StandIns(), 16, observers=observers)
    driver.start()
    await driver.wait_until(lambda: driver.ready_instances == 2)
    gateway = Gateway(
        driver,
        MODEL,
        models=[ServedModel("demo", 0, 200_000)],
        service_classes={"default": ServiceClass("default")},
        port=0,
    )
    port = await gateway.start()
    gc.collect()
    gc.freeze()  # As `hyperflexis serve` does.
    print(f"{port}{threads}", flush=True)
    await asyncio.Event().wait()


class Server:
    """A server process on its own core."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        os.sched_setaffinity(self.process.pid, {SERVER_CORE})
        assert self.process.stdout is not None
        self.port, *self.threads = map(int, self.process.stdout.readline().split())

    def cpu_s(self) -> float:
        """Run time of all threads so far."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def thread_s(self) -> float:
        """The same of the threads that the server has named, such as its journal's."""
        tasks = [Path(f"/proc/{self.process.pid}/task/{thread}/schedstat") for thread in self.threads]
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def ours(tokens: list[int], journal: Path | None = None) -> Server:
    where = [] if journal is None else ["--journal", str(journal)]
    return Server([sys.executable, str(HERE), "--serve", ",".join(map(str, tokens)), *where])


def plain() -> Server:
    return Server([sys.executable, str(HERE.parent / "standins.py"), "server"])


# -- the client


class Client:
    """One kept-alive connection, as bare as a client can be."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    @asynccontextmanager
    async def connect(cls, port: int) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    async def ask(self, prompt: str, max_tokens: int, *, stream: bool) -> tuple[float, list[float]]:
        """Return the instants of sending and of each arrival."""
        body = json.dumps(
            {"model": "demo", "prompt": prompt, "max_tokens": max_tokens, "stream": stream, "ignore_eos": True}
        )
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        sent_s = time.perf_counter()
        self.writer.write(f"{head}\r\n\r\n{body}".encode())
        if not stream:
            head_bytes = await self.reader.readuntil(b"\r\n\r\n")
            assert head_bytes.startswith(b"HTTP/1.1 200"), head_bytes
            length = int(head_bytes.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            await self.reader.readexactly(length)
            return sent_s, [time.perf_counter()]
        return sent_s, await self._events()

    async def _events(self) -> list[float]:
        arrivals: list[float] = []
        tail = b""
        while not tail.endswith(b"0\r\n\r\n"):
            data = await self.reader.read(1 << 16)
            assert data, f"the server closed the stream: {tail!r}"
            arrivals += [time.perf_counter()] * data.count(b"data: {")
            tail = (tail + data)[-64:]
        return arrivals


async def ttft_ms(port: int, prompt: str, rate: float, seconds: float) -> list[float]:
    """From sending to the first event, at a steady rate over kept-alive connections, milliseconds."""
    idle: list[Client] = []
    results: list[float] = []

    async def one() -> None:
        if idle:
            client = idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
            client = Client(reader, writer)
        sent_s, arrivals = await client.ask(prompt, 2, stream=True)
        results.append((arrivals[0] - sent_s) * 1e3)
        idle.append(client)

    tasks, start_s = [], time.perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start_s + number / rate - time.perf_counter()))
        tasks.append(asyncio.ensure_future(one()))
    await asyncio.gather(*tasks)
    for client in idle:
        client.writer.close()
    return results[len(results) // 10 :]


async def busy_ttft_ms(port: int, prompt: str, count: int) -> list[float]:
    """The same, one request right after the other: caches stay warm, which at 50 requests/s they do not."""
    async with Client.connect(port) as client:
        results = []
        for _ in range(count):
            sent_s, arrivals = await client.ask(prompt, 1, stream=True)
            results.append((arrivals[0] - sent_s) * 1e3)
        return results


async def streams_cpu_us(server: Server, prompt: str, seconds: float) -> float:
    """Server CPU per token in the steady part of `STREAMS` streams."""
    tokens = int((seconds + 2.0) * 100)
    tasks = [asyncio.ensure_future(_stream(server.port, prompt, tokens)) for _ in range(STREAMS)]
    await asyncio.sleep(1.0)
    begin_s, begin_cpu_s = time.perf_counter(), server.cpu_s()
    await asyncio.sleep(seconds)
    end_s, cpu_s = time.perf_counter(), server.cpu_s() - begin_cpu_s
    arrivals = await asyncio.gather(*tasks)
    inside = sum(begin_s <= arrival < end_s for stream in arrivals for arrival in stream)
    return cpu_s / inside * 1e6


async def _stream(port: int, prompt: str, tokens: int) -> list[float]:
    async with Client.connect(port) as client:
        return (await client.ask(prompt, tokens, stream=True))[1]


async def request_cpu_us(server: Server, prompt: str, count: int) -> float:
    """Server CPU per request of `PROMPT_TOKENS` and one token out, not streamed, eight at a time."""

    async def several() -> None:
        async with Client.connect(server.port) as client:
            for _ in range(count // 8):
                await client.ask(prompt, 1, stream=False)

    begin_s = server.cpu_s()
    await asyncio.gather(*(several() for _ in range(8)))
    return (server.cpu_s() - begin_s) / count * 1e6


async def stall_ms(server: Server, prompt: str, huge: str) -> tuple[float, float]:
    """Longest gap in any of eight streams, without and with a huge prompt arriving among them."""
    tasks = [asyncio.ensure_future(_stream(server.port, prompt, 400)) for _ in range(8)]
    await asyncio.sleep(2.0)
    huge_at_s = time.perf_counter()
    async with Client.connect(server.port) as client:
        await client.ask(huge, 1, stream=False)
    gaps: tuple[list[float], list[float]] = ([], [])
    for arrivals in await asyncio.gather(*tasks):
        for before, after in itertools.pairwise(arrivals):
            gaps[after > huge_at_s].append((after - before) * 1e3)
    return max(gaps[0]), max(gaps[1])


# -- the run


def source_text(tokenizer: Tokenizer, tokens: int, offset: int = 0) -> str:
    """Python source of about so many tokens."""
    text = (Path(sysconfig.get_path("stdlib")) / "typing.py").read_text(encoding="utf-8") * (1 + tokens // 20_000)
    return tokenizer.decode(tokenizer.encode(text[offset : offset + 12 * tokens]).ids[:tokens])


async def measure(rounds: int, seconds: float) -> dict[str, Any]:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    ids = [token for token in tokenizer.encode(source_text(tokenizer, 3000)).ids if token > 8]
    prompt, huge = source_text(tokenizer, PROMPT_TOKENS), source_text(tokenizer, HUGE_TOKENS)
    servers = {"ours": ours(ids[:2000]), "plain": plain()}
    table: dict[str, dict[str, list[float]]] = {}

    def note(name: str, who: str, value: float) -> None:
        table.setdefault(name, {}).setdefault(who, []).append(value)

    try:
        for number in range(rounds + 1):
            for who, server in servers.items():
                ttfts = await ttft_ms(server.port, prompt, 50, seconds)
                busy = await busy_ttft_ms(server.port, prompt, 300)
                per_token = await streams_cpu_us(server, prompt, seconds)
                per_request = await request_cpu_us(server, prompt, 400)
                if number:  # The first round warms up.
                    note("ttft_p50_ms", who, statistics.median(ttfts))
                    note("ttft_p99_ms", who, record.percentile(ttfts, 0.99))
                    note("busy_ttft_p50_ms", who, statistics.median(busy))
                    note("cpu_token_us", who, per_token)
                    note("cpu_request_us", who, per_request)
            without, during = await stall_ms(servers["ours"], prompt, huge)
            if number:
                note("gap_quiet_ms", "ours", without)
                note("stall_ms", "ours", during)
    finally:
        for server in servers.values():
            server.close()
    measured = {name: {who: record.spread(values) for who, values in row.items()} for name, row in table.items()}
    tokenising = {
        f"after_{pause_s * 1e3:g}_ms": tokenise_us(tokenizer, prompt, pause_s) for pause_s in (0.0, 0.002, 0.02)
    }
    return {"measured": measured, "prompt_chars": len(prompt), "tokenise_us": tokenising}


def tokenise_us(tokenizer: Tokenizer, prompt: str, pause_s: float) -> float:
    """Time of tokenising the prompt alone, after a pause: what a cold cache costs is the machine's doing."""
    times = []
    for _ in range(200):
        time.sleep(pause_s)
        begin_s = time.perf_counter()
        tokenizer.encode_batch_fast([prompt])
        times.append((time.perf_counter() - begin_s) * 1e6)
    return statistics.median(times)


def judge(table: dict[str, Any]) -> list[str]:
    medians = {name: {who: row["median"] for who, row in rows.items()} for name, rows in table["measured"].items()}
    figures = {
        "ttft_added_ms": medians["ttft_p50_ms"]["ours"] - medians["ttft_p50_ms"]["plain"],
        "busy_ttft_added_ms": medians["busy_ttft_p50_ms"]["ours"] - medians["busy_ttft_p50_ms"]["plain"],
        "cpu_token_us": medians["cpu_token_us"]["ours"],
        "cpu_request_us": medians["cpu_request_us"]["ours"],
        "stall_ms": medians["stall_ms"]["ours"],
    }
    table["judged"] = {name: {"value": value, "limit": LIMITS[name]} for name, value in figures.items()}
    return [name for name, value in figures.items() if value > LIMITS[name]]


def main() -> int:
    words = record.parser(__doc__)
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--seconds", type=float, default=4.0)
    words.add_argument("--serve", help="become the server under test, with these token ids")
    words.add_argument("--journal", type=Path, help="where the server under test writes its journal")
    options = words.parse_args()
    if options.serve:
        uvloop.run(serve_ours([int(token) for token in options.serve.split(",")], options.journal))
    os.sched_setaffinity(0, {CLIENT_CORE})
    table = uvloop.run(measure(options.rounds, options.seconds))
    missed = judge(table)
    for name, row in table["measured"].items():
        print(f"{name:16}", "  ".join(f"{who} {values['median']:.3f}" for who, values in row.items()))
    print(f"tokenising alone: {table['tokenise_us']}")
    for name, figure in table["judged"].items():
        print(f"{name:16} {figure['value']:.3f}, limit {figure['limit']}")
    packages = ("aiohttp", "uvloop", "tokenizers", "msgspec")
    record.write(
        options.json, {"machine": record.machine(*packages), "rounds": options.rounds, "table": table, "missed": missed}
    )
    print("missed: " + ", ".join(missed) if missed else "all limits kept")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
