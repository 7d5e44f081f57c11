"""The thread that hands tokens out asks for short slices of time, and what it starts has usual ones."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import subprocess
import sys
import threading

import pytest

from hyperflexis.adapters.native import time_slice

SCHED_GETATTR = {"x86_64": 315, "aarch64": 275, "riscv64": 275}
RELEASE = tuple(int(part) for part in platform.release().split(".")[:2])
READ = """
import ctypes, struct, sys
attributes = ctypes.create_string_buffer(56)
assert ctypes.CDLL(None).syscall(int(sys.argv[1]), 0, attributes, 56, 0) == 0
print(struct.unpack("=IIQiIQQQII", attributes)[5])
"""


def slice_ns() -> int:
    """Of the calling thread."""
    attributes = ctypes.create_string_buffer(56)
    assert ctypes.CDLL(None).syscall(SCHED_GETATTR[platform.machine()], 0, attributes, 56, 0) == 0
    return int(struct.unpack("=IIQiIQQQII", attributes)[5])


def of_a_child_ns() -> int:
    """Of a process that the calling thread starts. That thread may have asked for short slices: others do so here."""
    child = [sys.executable, "-c", READ, str(SCHED_GETATTR[platform.machine()])]
    return int(subprocess.run(child, capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(
    platform.machine() not in SCHED_GETATTR or RELEASE < (6, 12), reason="the kernel has no such slices"
)
def test_slices_are_short_for_whoever_asks_and_nobody_else() -> None:
    before_ns, usual_ns = slice_ns(), of_a_child_ns()
    found: list[int] = []
    nice = os.getpriority(os.PRIO_PROCESS, 0)

    def ask() -> None:
        time_slice.ask_for_short_slices()
        found.append(slice_ns())
        found.append(os.getpriority(os.PRIO_PROCESS, 0))
        found.append(of_a_child_ns())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [time_slice.SHORT_NS, nice, usual_ns]
    assert slice_ns() == before_ns


def test_kernel_that_does_not_know_how_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_slice, "_SCHED_SETATTR", {platform.machine(): 100_000})
    time_slice.ask_for_short_slices()
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    time_slice.ask_for_short_slices()
