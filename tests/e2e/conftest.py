"""Real processes: the installed command, the demo model, loopback."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

COMMAND = Path(sys.executable).with_name("hyperflexis")
START_S = 60.0
"""Generous: the machine may be busy with other tests."""


class Serving:
    """One `hyperflexis serve` process."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [COMMAND, "serve", "--port", "0", "--device", "cpu", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        self.errors: list[str] = []

    @property
    def stderr(self) -> IO[str]:
        assert self.process.stderr is not None
        return self.process.stderr

    def wait_ready(self) -> str:
        """The address that it prints once all instances are ready."""
        for line in self.stderr:
            self.errors.append(line)
            if found := re.search(r"ready after .*: (http://\S+)/v1", line):
                return found[1]
        raise AssertionError(f"it ended before it was ready: {''.join(self.errors)}")

    def instance_pids(self) -> list[int]:
        return [pid for child in children(self.process.pid) for pid in children(child)]

    def all_pids(self) -> list[int]:
        return [self.process.pid, *children(self.process.pid), *self.instance_pids()]

    def stop(self) -> int:
        """Ctrl-C, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(START_S)
        finally:
            self.stderr.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(START_S)
        self.stderr.close()


def children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except FileNotFoundError:
        return []
    return [int(word) for word in text.split()]


def wait_gone(pids: list[int]) -> None:
    """Return once none of these processes runs. The kernel tells only parents, so look."""
    deadline_s = time.monotonic() + START_S
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline_s, f"still running: {[pid for pid in pids if is_running(pid)]}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Serving, str]]:
    """Two instances of the demo model and their address, for all tests of a module."""
    serving = Serving("--set", "classes={code: {ttft_ms: 20000, tpot_ms: 5000, priority: 1}}")
    try:
        yield serving, serving.wait_ready()
    finally:
        serving.stop()
