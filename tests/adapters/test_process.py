"""Small parts of processes: sealed shared memory, and how an exit is put into words."""

from __future__ import annotations

import fcntl
import mmap
import os
import signal

import pytest

from hyperflexis.adapters.native.arena_memory import ArenaMemory, available_bytes
from hyperflexis.adapters.native.lineage import exit_in_words

if not hasattr(os, "memfd_create"):
    pytest.skip("shared memory without a name needs Linux", allow_module_level=True)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exited with status 0"),
        (3, "exited with status 3"),
        (-signal.SIGKILL, "killed by SIGKILL"),
        (-signal.SIGSEGV, "killed by SIGSEGV"),
        (-40, "killed by signal 40"),
    ],
)
def test_exit_in_words(code: int, words: str) -> None:
    assert exit_in_words(code) == words


def filled(content: bytes) -> ArenaMemory:
    memory = ArenaMemory()
    memory.resize(len(content))
    with memory.map_for_writing() as mapping:
        mapping[:] = content
    return memory


def test_arena_is_written_once_and_read_by_all() -> None:
    memory = filled(b"weights" * 1000)
    memory.seal()
    with memory.map_for_reading() as first, memory.map_for_reading() as second:
        assert first[:7] == second[:7] == b"weights"
        assert memory.size_bytes == len(first) == 7000
    memory.close()


def test_sealed_arena_cannot_be_changed() -> None:
    memory = filled(bytes(8192))
    memory.seal()
    with pytest.raises(PermissionError):
        memory.map_for_writing()
    for size_bytes in (0, 4096, 16384):
        with pytest.raises(PermissionError):
            memory.resize(size_bytes)
    with pytest.raises(PermissionError):
        os.pwrite(memory._fd, b"x", 0)
    with memory.map_for_reading() as mapping, pytest.raises(TypeError):
        mapping[0] = 1
    memory.close()


def test_arena_cannot_be_sealed_while_somebody_may_write() -> None:
    memory = filled(bytes(4096))
    with memory.map_for_writing(), pytest.raises(OSError, match="busy"):
        memory.seal()
    memory.seal()
    seals = fcntl.fcntl(memory._fd, fcntl.F_GET_SEALS)
    assert seals & fcntl.F_SEAL_WRITE
    memory.close()


def test_read_mapping_has_no_pages_of_its_own() -> None:
    memory = filled(os.urandom(1 << 20))
    memory.seal()
    with memory.map_for_reading() as mapping:
        assert sum(mapping[:: mmap.PAGESIZE]) > 0
        anonymous_kb = [
            int(line.split()[1]) for line in _smaps("hyperflexis-weights") if line.startswith(("Anonymous:", "Swap:"))
        ]
    assert anonymous_kb
    assert sum(anonymous_kb) == 0
    memory.close()


def _smaps(name: str) -> list[str]:
    """Lines of this process's mappings of a file."""
    lines: list[str] = []
    is_wanted = False
    with open("/proc/self/smaps", encoding="ascii") as smaps:
        for line in smaps:
            if "-" in line.split()[0]:
                is_wanted = name in line
            elif is_wanted:
                lines.append(line)
    return lines


def test_available_memory_is_known_and_plausible() -> None:
    available = available_bytes()
    assert available is not None
    assert (1 << 20) < available < (1 << 50)
