"""What HyperFlexis adds in front of vLLM: time to the first token, and CPU per streamed token.

    python benchmarks/vllm_gateway.py --json vllm_gateway.json

The server is the stand-in of adapters/vllm (a first token after one step, then one each STEP_MS), asked directly and
through `hyperflexis serve --attach`. The client is as bare as a client can be, and the same for both. CPU is the
kernel's run time of all threads of our process. The gateway has a core to itself; client and stand-in share the other.
Rounds alternate. Both get the same token ids; what a text costs besides is told too, and is what vLLM would need for
it as well. The tenth percentile says what is added where no other program is in the way. A gateway mostly rests, and
what has rested is slower: so what a request costs alone and beside others is told too, and what a bare socket takes to
send one event after a rest and without.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import uvloop
from tokenizers import Tokenizer

import record
from gateway_cost import Client, source_text

MODEL = record.REPOSITORY / "src" / "hyperflexis" / "demo_model"
OUR_CORE, OTHER_CORE = 0, (os.cpu_count() or 1) - 1
PROMPT_TOKENS = 400
STEP_MS = 20.0
STREAMS = 48
BESIDE = 24
EVENT_BYTES = 206
LIMITS = {"ttft_added_p50_ms": 1.0, "cpu_token_us": 60.0}


class Process:
    """A server on its own core, once it has said where it listens."""

    def __init__(self, command: list[str], core: int, *, reads: str) -> None:
        pipes: dict[str, Any] = {reads: subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-m", *command], text=True, **pipes)
        os.sched_setaffinity(self.process.pid, {core})
        stream = getattr(self.process, reads)
        self.url = ""
        while not self.url:
            line = stream.readline()
            assert line, f"{command[0]} ended before it served"
            if "at http://" in line or "ready after" in line:
                self.url = next(word for word in line.split() if word.startswith("http://")).removesuffix("/v1")

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def cpu_s(self) -> float:
        """Run time of all threads so far."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


async def ttft_ms(ports: dict[str, int], prompts: dict[str, Any], count: int) -> dict[str, list[float]]:
    """From sending to the first event, one request after the other, by turns, milliseconds."""
    found: dict[str, list[float]] = {name: [] for name in ports}
    for _ in range(count):
        for name, port in ports.items():
            async with Client.connect(port) as client:
                sent_s, arrivals = await client.ask(prompts[name], 2, stream=True)
                found[name].append((arrivals[0] - sent_s) * 1e3)
    return found


async def token_us(server: Process, prompt: str, seconds: float) -> tuple[float, float]:
    """CPU per token in the steady part of the streams, and tokens per second."""
    tokens = int((seconds + 3.0) * 1000 / STEP_MS)
    tasks = [asyncio.ensure_future(_stream(server.port, prompt, tokens)) for _ in range(STREAMS)]
    await asyncio.sleep(1.5)
    begin_s, begin_cpu_s = time.perf_counter(), server.cpu_s()
    await asyncio.sleep(seconds)
    end_s, cpu_s = time.perf_counter(), server.cpu_s() - begin_cpu_s
    arrivals = await asyncio.gather(*tasks)
    inside = sum(begin_s <= arrival < end_s for stream in arrivals for arrival in stream)
    return cpu_s / inside * 1e6, inside / (end_s - begin_s)


async def request_ms(server: Process, prompt: Any, count: int, at_once: int) -> float:
    """CPU per request, from its connection to the last byte of two tokens."""
    seats = asyncio.Semaphore(at_once)

    async def one() -> None:
        async with seats, Client.connect(server.port) as client:
            await client.ask(prompt, 2, stream=True)

    begin_s = server.cpu_s()
    await asyncio.gather(*(one() for _ in range(count)))
    return (server.cpu_s() - begin_s) / count * 1e3


def send_us(rest_s: float, rounds: int = 100) -> float:
    """CPU of one event on one of as many loopback connections, by nothing but the kernel's call."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        clients = [socket.create_connection(listening.getsockname()) for _ in range(STREAMS)]
        servers = [listening.accept()[0] for _ in clients]
    found = []
    for _ in range(rounds):
        time.sleep(rest_s)
        begin_s = time.thread_time()
        for each in servers:
            each.send(bytes(EVENT_BYTES))
        found.append((time.thread_time() - begin_s) / STREAMS * 1e6)
        for each in clients:
            each.recv(1 << 16)
    for each in (*servers, *clients):
        each.close()
    return statistics.median(found)


async def _stream(port: int, prompt: str, tokens: int) -> list[float]:
    async with Client.connect(port) as client:
        return (await client.ask(prompt, tokens, stream=True))[1]


async def measure(rounds: int, seconds: float, requests: int) -> dict[str, Any]:
    standin = Process(
        [
            "hyperflexis.adapters.vllm.standin",
            str(MODEL),
            "--port",
            "0",
            "--step-ms",
            str(STEP_MS),
            "--served-model-name",
            "demo",
        ],
        OTHER_CORE,
        reads="stdout",
    )
    ours = Process(["hyperflexis", "serve", "--attach", standin.url, "--port", "0"], OUR_CORE, reads="stderr")
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    text = source_text(tokenizer, PROMPT_TOKENS)
    ids = tokenizer.encode(text).ids
    prompts: dict[str, Any] = {"direct": ids, "ours": ids, "text": text}
    ports = {"direct": standin.port, "ours": ours.port, "text": ours.port}
    table: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        table.setdefault(name, []).append(value)

    try:
        for number in range(rounds + 1):
            ttfts = await ttft_ms(ports, prompts, requests)
            per_token_us, tokens_per_s = await token_us(ours, text, seconds)
            if number:  # The first round warms up.
                for share, word in ((0.1, "p10"), (0.5, "p50")):
                    direct, through, text_through = (record.percentile(ttfts[name], share) for name in ports)
                    note(f"ttft_direct_{word}_ms", direct)
                    note(f"ttft_ours_{word}_ms", through)
                    note(f"ttft_added_{word}_ms", through - direct)
                    note(f"ttft_text_added_{word}_ms", text_through - direct)
                note("cpu_token_us", per_token_us)
                note("tokens_per_s", tokens_per_s)
                note("cpu_request_alone_ms", await request_ms(ours, ids, requests, 1))
                note("cpu_request_beside_ms", await request_ms(ours, ids, 4 * requests, BESIDE))
                note("bare_send_rested_us", send_us(STEP_MS / 1e3))
                note("bare_send_us", send_us(0.0))
    finally:
        ours.close()
        standin.close()
    return {name: record.spread(values) for name, values in table.items()}


def main() -> int:
    words = record.parser(__doc__)
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--seconds", type=float, default=4.0)
    words.add_argument("--requests", type=int, default=100, help="by turns, in each round")
    options = words.parse_args()
    os.sched_setaffinity(0, {OTHER_CORE})
    table = uvloop.run(measure(options.rounds, options.seconds, options.requests))
    for name, row in table.items():
        print(f"{name:20}", json.dumps(row))
    missed = [name for name, limit in LIMITS.items() if table[name]["median"] > limit]
    report = {
        "machine": record.machine("aiohttp", "uvloop", "tokenizers", "msgspec"),
        "prompt_tokens": PROMPT_TOKENS,
        "step_ms": STEP_MS,
        "streams": STREAMS,
        "rounds": options.rounds,
        "table": table,
        "limits": LIMITS,
        "missed": missed,
    }
    record.write(options.json, report)
    print("missed: " + ", ".join(missed) if missed else "all limits kept")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
