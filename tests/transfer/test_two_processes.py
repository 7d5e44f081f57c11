"""Two processes: bytes cross, and either side's death leaves the other sound."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transfer_peer import LENT_BYTES, REWRITTEN_BYTES, content
from transfer_world import MB, filled

from hyperflexis.transfer import shm, tcp
from hyperflexis.transfer.descriptor import Descriptor, read_descriptor
from hyperflexis.transfer.errors import PeerLost, RefusedError, Unreachable, WorldError
from hyperflexis.transfer.receiver import Receiver
from hyperflexis.transfer.source import Source, SourceLimits

WAIT_S = 20.0


@contextmanager
def peer(*words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__).with_name("transfer_peer.py")), *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def descriptor_from(process: subprocess.Popen[str]) -> Descriptor:
    return read_descriptor(bytes.fromhex(heard(process)))


@pytest.fixture(scope="module")
def lender() -> Iterator[Descriptor]:
    """A source that lives as long as these tests."""
    with peer("lend") as process:
        yield descriptor_from(process)


@pytest.fixture(params=["shm", "unix", "tcp"])
def anywhere(request: pytest.FixtureRequest) -> Iterator[Receiver]:
    """A receiver with the clock of all processes."""
    with Receiver([request.param]) as receiver:
        yield receiver


def test_bytes_cross_processes(lender: Descriptor, anywhere: Receiver) -> None:
    target = bytearray(b"\1" * 5 * MB)
    anywhere.pull(lender, [(7, 0, 5 * MB)], target, has_checksums=True).result(WAIT_S)
    assert not any(target)


def test_source_killed_while_a_pull_waits(anywhere: Receiver) -> None:
    with peer("lend") as process:
        descriptor = descriptor_from(process)
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)  # Until all of its threads have stopped.
        handle = anywhere.pull(descriptor, [(0, 0, 5 * MB)], bytearray(5 * MB))
        while not anywhere._running:
            time.sleep(0.001)
        process.kill()
        began_s = time.monotonic()
        with pytest.raises(WorldError, match=f"process {process.pid}"):
            handle.result(WAIT_S)
        assert time.monotonic() - began_s < 5


@pytest.mark.parametrize("medium", ["unix", "tcp"])
def test_source_killed_while_it_sends(medium: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with peer("lend") as process, Receiver([medium]) as receiver:
        descriptor = descriptor_from(process)
        _after_pieces(monkeypatch, 3, process.kill)
        handle = receiver.pull(descriptor, [(0, 0, LENT_BYTES)], bytearray(LENT_BYTES))
        with pytest.raises(PeerLost, match=f"process {process.pid} .* was lost during the pull of region lent"):
            handle.result(WAIT_S)


def _after_pieces(monkeypatch: pytest.MonkeyPatch, pieces: int, act: Callable[[], None]) -> None:
    receive = tcp.receive_into
    count = 0

    def counting(sock: Any, views: list[memoryview]) -> None:
        nonlocal count
        count += 1
        if count == 2 * pieces:
            act()
        receive(sock, views)

    monkeypatch.setattr(tcp, "receive_into", counting)


def test_dead_source_is_unmapped_and_unreachable() -> None:
    with Receiver(["shm"]) as receiver:
        with peer("lend") as process:
            descriptor = descriptor_from(process)
            receiver.pull(descriptor, [(0, 0, 64)], bytearray(64)).result(WAIT_S)
            assert receiver._shared_memory.has(descriptor)
        with pytest.raises(Unreachable):
            receiver.pull(descriptor, [(0, 0, 64)], bytearray(64)).result(WAIT_S)
        assert not receiver._shared_memory.has(descriptor)


@pytest.mark.parametrize("medium", ["shm", "unix", "tcp"])
def test_receiver_killed_in_the_middle_leaves_the_source_clean(medium: str) -> None:
    """With one transfer at a time, the next could not begin if the dead one were still being served."""
    memory = filled(16 * MB)
    with Source(limits=SourceLimits(transfers_max=1)) as source:
        descriptor = source.describe(source.expose(memory, 3600.0))
        before = _open_files()
        with peer("pull", medium) as process:
            assert process.stdin is not None
            process.stdin.write(descriptor.to_bytes().hex() + "\n")
            process.stdin.flush()
            assert heard(process) == "in the middle"
            process.kill()
            process.wait()
            with Receiver(["tcp"]) as receiver:
                target = bytearray(1000)
                receiver.pull(descriptor, [(MB, 0, 1000)], target).result(WAIT_S)
                assert target == memory.view[MB : MB + 1000]
        _until(lambda: _open_files() == before)


def _open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def _until(condition: Callable[[], bool]) -> None:
    """What the source's own threads do soon."""
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.001)


@pytest.mark.parametrize("medium", ["shm", "unix", "tcp"])
def test_bytes_overwritten_meanwhile_are_never_accepted(medium: str) -> None:
    """An owner that rewrites its memory as fast as it can, and a reader that is always a little late."""
    target = bytearray(REWRITTEN_BYTES)
    with peer("rewrite") as process, Receiver([medium]) as receiver:
        assert process.stdin is not None
        for _ in range(60):
            descriptor = descriptor_from(process)
            try:
                receiver.pull(descriptor, [(0, 0, REWRITTEN_BYTES)], target).result(WAIT_S)
            except RefusedError:
                continue
            assert target.count(content(descriptor.generation)) == REWRITTEN_BYTES
        process.stdin.close()


def test_shared_memory_is_copied_in_the_middle_of_being_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, made to happen: the owner's next content comes while half is copied."""
    target = bytearray(REWRITTEN_BYTES)
    copy = shm._copy_large
    with peer("rewrite") as process, Receiver(["shm"]) as receiver:
        latest = descriptor_from(process)

        def copy_with_a_pause(source: memoryview, into: memoryview, whole: Any, transfer: Any) -> None:
            half = whole.length // 2
            copy(source, into, whole._replace(length=half), transfer)
            while descriptor_from(process).generation <= latest.generation + 1:
                pass
            copy(source, into, whole._replace(source=half, target=half, length=half), transfer)

        monkeypatch.setattr(shm, "_copy_large", copy_with_a_pause)
        with pytest.raises(RefusedError):
            receiver.pull(latest, [(0, 0, REWRITTEN_BYTES)], target).result(WAIT_S)
