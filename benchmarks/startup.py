"""Seconds from the command to readiness, from an order to a first token, and memory per instance.

    python benchmarks/startup.py --json startup.json
    python benchmarks/startup.py --json startup.json --restart      # only that, into what is there

`serve`: the installed command with two instances of the demo model, from its start until /ready shows both. `instance`:
one more instance of a running fleet, from the order to the first token it computed, forked from the warm zygote.
`restart`: the same command is killed (SIGKILL) and started anew at once, from the kill until /ready shows both, without
and with --keep; of the demo model, and of a random one of 1 GB whose file is in memory. Memory is what the kernel
counts as private to an instance's process after all of them have computed a long prompt beside fifteen others; the
first instance, which also calibrates, counts with the rest.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import uvloop

import record
import weights_model
from hyperflexis.core.instance import Role
from hyperflexis.runtime.launchers.local import LocalLauncher, LocalSpec
from hyperflexis.wire.messages import Ready, Sampling, StepReport, Submit

MODEL = record.REPOSITORY / "src" / "hyperflexis" / "demo_model"
COMMAND = Path(sys.executable).with_name("hyperflexis")
LIMITS = {"serve_ready_s": 5.0, "instance_first_token_s": 0.5, "private_mb": 100.0}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def serving(port: int, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([COMMAND, "serve", *words, "--port", str(port)], stderr=subprocess.DEVNULL)


def wait_ready(port: int) -> None:
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
                if answer.read().count(b'"state":"ready"') == 2:
                    return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.02)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    process.wait()


def serve_ready_s() -> float:
    port = free_port()
    begin_s = time.perf_counter()
    process = serving(port)
    try:
        wait_ready(port)
        return time.perf_counter() - begin_s
    finally:
        stop(process)


def restart_ready_s(*words: str) -> float:
    port = free_port()
    process = serving(port, *words)
    try:
        wait_ready(port)
        begin_s = time.perf_counter()
        process.kill()
        process.wait()
        process = serving(port, *words)
        wait_ready(port)
        return time.perf_counter() - begin_s
    finally:
        stop(process)


def restarts(rounds: int) -> dict[str, Any]:
    """Cold and adopted ones in turn, so that both see the same machine."""
    found: dict[str, Any] = {"machine": record.machine("torch", "hyperflexis")}
    with tempfile.TemporaryDirectory() as folder:
        large = weights_model.make(Path(folder, "model"))
        for tokenizer in MODEL.glob("tokenizer*.json"):
            shutil.copy(tokenizer, large)
        for name, model in (("demo", MODEL), ("1 GB", large)):
            words = (str(model), "--set", "engine.kv_cache_gib=0.25")
            cold, adopted = [], []
            for _ in range(rounds):
                cold.append(restart_ready_s(*words))
                adopted.append(restart_ready_s(*words, "--keep", f"{folder}/keep"))
            found[name] = {"cold_s": record.spread(cold), "adopted_s": record.spread(adopted)}
            for how, row in found[name].items():
                print(f"restart {name:5} {how:10} median {row['median']:.3f}  {row['min']:.3f} to {row['max']:.3f}")
    return found


class FirstToken:
    """Listens to one instance: asks for a token as soon as it is ready, and then for a lot of them."""

    def __init__(self) -> None:
        self.seen: asyncio.Future[dict[str, float]] = asyncio.get_running_loop().create_future()
        self.worked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.finished = 0
        self.begin_s = time.perf_counter()
        self.phases: dict[str, float] = {}

    def on_ready(self, ready: Ready) -> None:
        self.phases = {"ready": time.perf_counter() - self.begin_s, **ready.startup_s}
        self.adapter.submit(Submit(1, list(range(10, 42)), [], 1, Sampling(temperature=0.0)))

    def on_report(self, report: StepReport) -> None:
        if not self.seen.done():
            self.seen.set_result({"first_token": time.perf_counter() - self.begin_s, **self.phases})
            for number in range(2, 18):
                prompt = [number] * (1500 if number == 2 else 200)
                self.adapter.submit(Submit(number, prompt, [], 32, Sampling(temperature=0.0)))
        self.finished += len(report.finished)
        if self.finished == 17:
            self.worked.set_result(None)

    def on_lost(self, why: str) -> None:
        self.seen.set_exception(RuntimeError(why))


async def instances(count: int) -> list[dict[str, float]]:
    """Start instances one after another in one fleet; the first one also calibrates."""
    launcher = await LocalLauncher.start(LocalSpec(str(MODEL), device="cpu", instances=count))
    results, adapters = [], []
    for number in range(count):
        listener = FirstToken()
        listener.adapter = launcher.launch(number, Role.MIXED, listener)
        adapters.append(listener.adapter)
        seen = await listener.seen
        await listener.worked
        results.append(seen)
    # Only now: while an instance is alone, pages of libraries that it shares with nobody yet count as its own.
    for number, result in enumerate(results):
        result["private_mb"] = private_mb(launcher.pids[number])
    for adapter in adapters:
        adapter.close()
    await launcher.close()
    return results


def private_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def main_restarts(file: Path | None, rounds: int) -> int:
    report = json.loads(file.read_text(encoding="utf-8")) if file is not None and file.exists() else {"table": {}}
    report["table"]["restart"] = restarts(rounds)
    record.write(file, report)
    return 0


def main() -> int:
    words = record.parser(__doc__)
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--restart", action="store_true", help="only restarts, beside what is in --json already")
    options = words.parse_args()
    if options.restart:
        return main_restarts(options.json, options.rounds)
    serves = [serve_ready_s() for _ in range(options.rounds)]
    first, *others = uvloop.run(instances(1 + options.rounds))
    table: dict[str, Any] = {
        "serve_ready_s": record.spread(serves),
        "first_instance": first,
        "instance_first_token_s": record.spread([other["first_token"] for other in others]),
        "instance_ready_s": record.spread([other["ready"] for other in others]),
        "private_mb": record.spread([one["private_mb"] for one in (first, *others)]),
        "restart": restarts(options.rounds),
        "instances": others,
    }
    judged = {"serve_ready_s": "median", "instance_first_token_s": "median", "private_mb": "max"}
    missed = [name for name, limit in LIMITS.items() if table[name][judged[name]] > limit]
    for name, limit in LIMITS.items():
        row = table[name]
        print(f"{name:24} median {row['median']:.3f}  {row['min']:.3f} to {row['max']:.3f}  limit {limit}")
    report = {"machine": record.machine("torch", "hyperflexis"), "table": table, "limits": LIMITS, "missed": missed}
    record.write(options.json, report)
    print("missed: " + ", ".join(missed) if missed else "all limits kept")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
