"""Starts real vLLM servers for tests, waits until they answer, and ends all of their processes.

Each takes half a minute and 1.5 GiB: they are started once and kept. Flags are what was found to work on processors.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

START_S = 300.0
END_S = 15.0
KV_BYTES = 64 << 20
LEASE_S = 300
"""How long prefilled KV is kept for who pulls it: on a slow machine the default is over before."""
ENVIRONMENT = {
    "VLLM_CPU_CI_ENV": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
FLAGS = (
    *("--host", "127.0.0.1", "--max-model-len", "512", "--max-num-seqs", "32", "--dtype", "float32"),
    *("--enforce-eager", "--kv-cache-memory-bytes", str(KV_BYTES)),
)
"""Without float32, answers would not be those of another server, token for token."""


def why_not() -> str:
    """Why there can be no server here; empty if there can.

    The folder of these tests is called vllm too: only a package with a file of its own is the real one.
    """
    spec = importlib.util.find_spec("vllm")
    return "" if spec is not None and spec.origin else "vLLM is not installed; `make test-vllm` runs this with it"


@dataclass
class Server:
    """A running one."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """End all its processes at once, as a machine that fails does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """Ask it to end; whatever is left of it then is killed."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)
        self.kill()


@contextlib.contextmanager
def serving(
    model: Path, folder: Path, flags: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """One server; what it says is in `folder`."""
    server = start(model, folder, flags, environment)
    try:
        await_health(server)
        yield server
    finally:
        server.end()


@contextlib.contextmanager
def pair(model: Path, folder: Path) -> Iterator[tuple[Server, Server]]:
    """One server that prefills and one that decodes what it pulls from the former. They start side by side.

    Each is bound to a core: the thread of NIXL in it never rests, and would take the other one's.
    """
    cores = sorted(os.sched_getaffinity(0))
    lease = {"kv_connector_extra_config": {"kv_lease_duration": LEASE_S}}
    producer = {"kv_connector": "NixlConnector", "kv_role": "kv_producer"} | lease
    consumer = {"kv_connector": "NixlConnector", "kv_role": "kv_consumer", "kv_load_failure_policy": "recompute"}
    servers = []
    try:
        for index, config in enumerate((producer, consumer)):
            environment = {
                "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
                "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port()),
                "VLLM_CPU_OMP_THREADS_BIND": str(cores[index % len(cores)]),
            }
            servers.append(start(model, folder, ("--kv-transfer-config", json.dumps(config)), environment))
        for server in servers:
            await_health(server)
        yield servers[0], servers[1]
    finally:
        for server in servers:
            server.end()


def start(model: Path, folder: Path, flags: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Server:
    """Start one, without waiting for it."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"server-{port}.log"
    words = [str(Path(sys.executable).with_name("vllm")), "serve", str(model), "--port", str(port), *FLAGS, *flags]
    with log.open("wb") as output:
        process = subprocess.Popen(
            words,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | ENVIRONMENT | (environment or {}),
            start_new_session=True,
        )
    return Server(f"http://127.0.0.1:{port}", process, log)


def await_health(server: Server, wait_s: float = START_S) -> None:
    """Until it answers.

    Raises:
        RuntimeError: it has ended, or takes too long; with the end of what it said.
    """
    deadline_s = time.monotonic() + wait_s
    while time.monotonic() < deadline_s and server.process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server.url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    state = "takes too long" if server.process.poll() is None else f"ended with {server.process.returncode}"
    raise RuntimeError(f"vLLM {state}:\n{server.log.read_text(encoding='utf-8', errors='replace')[-4000:]}")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
