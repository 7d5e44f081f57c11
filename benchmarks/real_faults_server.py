"""One server as users run it, `hyperflexis serve` with the demo model, seen from outside: processes, memory, words.

Knows nothing of clients.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

COMMAND = Path(sys.executable).with_name("hyperflexis")
START_S = 120.0
"""A busy machine has this long to be ready."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Server:
    """Make with `serving`."""

    def __init__(self, log: Path, *arguments: str, env: Mapping[str, str]) -> None:
        self.log = log
        with log.open("w", encoding="utf-8") as written:
            self.process = subprocess.Popen(
                [COMMAND, "serve", "--port", "0", "--device", "cpu", "--dtype", "float32", *arguments],
                stdout=subprocess.DEVNULL,
                stderr=written,
                env={**os.environ, **env},
                start_new_session=True,
            )
        self.url = self._ready()

    def _ready(self) -> str:
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s and self.process.poll() is None:
            if found := re.search(r"ready after .*: (http://\S+)/v1", self.told()):
                return found[1]
            time.sleep(0.05)
        raise RuntimeError(f"it is not ready: {self.told()}")

    def told(self) -> str:
        """What it has said so far."""
        return self.log.read_text(encoding="utf-8")

    @property
    def pid(self) -> int:
        return self.process.pid

    def instances(self) -> list[int]:
        """Processes of instances, the oldest first."""
        return [pid for child in _children(self.pid) for pid in _children(child)]

    def memory_mib(self) -> dict[str, float]:
        """Resident: of the gateway; of all instances together, where what they share counts once."""
        return {"gateway": _rss_mib(self.pid), "instances": sum(map(_own_mib, self.instances()))}

    def cpu_s(self) -> float:
        """What the gateway has used so far."""
        words = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / _TICKS_PER_S

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def limit(self, what: int, most: int) -> None:
        """Set one of its resource limits (the soft one)."""
        _, hard = resource.prlimit(self.pid, what)
        resource.prlimit(self.pid, what, (most, hard))

    def stop(self) -> int:
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(START_S)


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A server that is ready, for as long as the block runs."""
    server = Server(folder / "server.log", *arguments, env=env or {})
    try:
        yield server
        assert server.stop() == 0, server.told()
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def is_there(pid: int) -> bool:
    """Whether a process has not ended; it may stand still."""
    return _state(pid) not in ("", "Z")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


def _rss_mib(pid: int) -> float:
    return _kib(pid, "status", "VmRSS") / 1024


def _own_mib(pid: int) -> float:
    """Its share: pages of several processes are divided among them."""
    return _kib(pid, "smaps_rollup", "Pss") / 1024


def _kib(pid: int, file: str, name: str) -> int:
    try:
        text = Path(f"/proc/{pid}/{file}").read_text(encoding="ascii")
    except OSError:  # It has just ended.
        return 0
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0
