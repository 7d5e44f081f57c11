"""Pages of shared memory: there before they are written, and gone when they are given back."""

from __future__ import annotations

import os
import sys

import pytest

from hyperflexis.adapters.native.pages import give_back, populate
from hyperflexis.transfer.memory import SharedMemory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")

SIZE = 40 << 20
"""More than one piece."""


def pages_bytes(memory: SharedMemory) -> int:
    return os.fstat(memory.fd).st_blocks * 512


def test_pages_come_and_go() -> None:
    memory = SharedMemory(SIZE)
    assert pages_bytes(memory) == 0
    memory.view[5] = 7
    populate(memory.view)
    assert pages_bytes(memory) >= SIZE
    assert memory.view[5] == 7
    assert give_back(memory) >= SIZE
    assert pages_bytes(memory) == 0
    assert bytes(memory.view[:8]) == bytes(8)
    memory.view[SIZE - 1] = 1
    assert 0 < pages_bytes(memory) < SIZE
    memory.close()
