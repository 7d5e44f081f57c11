"""Strangers may say anything, at any pace: a source goes on serving, and a receiver says who was to blame."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_world import MB, MEDIA, filled

from hyperflexis.transfer.descriptor import Descriptor
from hyperflexis.transfer.door import DoorLimits
from hyperflexis.transfer.errors import PeerLost, TimedOut, TransferError
from hyperflexis.transfer.protocol import (
    LENGTH,
    REQUEST_BYTES_MAX,
    Answer,
    Claim,
    Digest,
    Fetch,
    Finished,
    Granted,
    Open,
    Opened,
    Refused,
    Request,
    frame,
    receive_answer,
)
from hyperflexis.transfer.ranges import RANGES_MAX
from hyperflexis.transfer.receiver import Receiver
from hyperflexis.transfer.source import Source, SourceLimits

WAIT_S = 20.0
IMPATIENT = SourceLimits(transfers_max=1, door=DoorLimits(request_s=0.05, idle_s=0.1, silence_s=0.1))


@contextlib.contextmanager
def connected(descriptor: Descriptor, kind: str) -> Iterator[socket.socket]:
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.connect("\0" + descriptor.unix)
    else:
        assert descriptor.tcp is not None
        sock = socket.create_connection(descriptor.tcp)
    sock.settimeout(WAIT_S)
    with sock:
        yield sock


def claim(descriptor: Descriptor) -> Claim:
    return Claim(descriptor.token, descriptor.region, descriptor.generation, "stranger")


def is_closed(sock: socket.socket) -> bool:
    """The source has ended it; what it still said is read and dropped."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


def serves(descriptor: Descriptor) -> bool:
    target = bytearray(64)
    with Receiver(["tcp"]) as receiver:
        receiver.pull(descriptor, [(0, 0, 64)], target).result(WAIT_S)
    return any(target)


@pytest.fixture(params=["unix", "tcp"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def impatient() -> Iterator[Descriptor]:
    """Of 16 MB, which no socket's buffers hold."""
    with Source(limits=IMPATIENT) as source:
        yield source.describe(source.expose(filled(16 * MB), 3600.0))


# Against a source.


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 40,
        LENGTH.pack(0),
        LENGTH.pack(REQUEST_BYTES_MAX + 1),
        LENGTH.pack(3) + b"\xc1\xc1\xc1",
        LENGTH.pack(20_004) + b"\x93\x03\xc4\x00" + b"\x91" * 20_000,  # nested more deeply than a reader may recurse
        frame(Finished()),
        frame(Open(Claim(b"", 0, 0, ""), "shm")) * 2,
    ],
)
def test_what_is_no_request_ends_the_connection(impatient: Descriptor, kind: str, said: bytes) -> None:
    with connected(impatient, kind) as sock:
        sock.sendall(said)
        assert is_closed(sock)
    assert serves(impatient)


@pytest.mark.parametrize("said", [b"", b"\x05", LENGTH.pack(100) + b"half"])
def test_slow_peer_is_dropped(impatient: Descriptor, kind: str, said: bytes) -> None:
    with connected(impatient, kind) as sock:
        sock.sendall(said)
        assert is_closed(sock)


def test_idle_peer_is_dropped(impatient: Descriptor, kind: str) -> None:
    with connected(impatient, kind) as sock:
        sock.sendall(frame(Digest(claim(impatient), [0], [1])))
        assert isinstance(receive_answer(sock), Finished)
        assert is_closed(sock)


def test_peer_that_does_not_read_is_dropped(impatient: Descriptor, kind: str) -> None:
    """It has the source's only turn; the next gets it."""
    with connected(impatient, kind) as sock:
        sock.sendall(frame(Fetch(claim(impatient), [0], [16 * MB], False)))
        assert isinstance(receive_answer(sock), Granted)
        assert serves(impatient)


def test_crowd_of_silent_peers_does_not_keep_others_out(kind: str) -> None:
    limits = SourceLimits(door=DoorLimits(connections_max=3, request_s=0.05))
    with Source(limits=limits) as source, contextlib.ExitStack() as crowd:
        descriptor = source.describe(source.expose(filled(64), 3600.0))
        for _ in range(10):
            crowd.enter_context(connected(descriptor, kind))
        assert serves(descriptor)


RANGES = [
    ([0], []),
    ([0], [0]),
    ([-1], [1]),
    ([0], [-1]),
    ([16 * MB], [1]),
    ([0], [16 * MB + 1]),
    ([2**63], [2**63]),
    ([0] * (RANGES_MAX + 1), [1] * (RANGES_MAX + 1)),
]


@pytest.mark.parametrize(("offsets", "lengths"), RANGES)
@pytest.mark.parametrize("request_type", [lambda *words: Fetch(*words, True), Digest])
def test_absurd_ranges_are_refused(
    impatient: Descriptor,
    kind: str,
    request_type: Callable[[Claim, list[int], list[int]], Request],
    offsets: list[int],
    lengths: list[int],
) -> None:
    with connected(impatient, kind) as sock:
        sock.sendall(frame(request_type(claim(impatient), offsets, lengths)))
        answer = receive_answer(sock)
        assert isinstance(answer, Refused)
        assert answer.error == "BadRanges"


@pytest.mark.parametrize("medium", ["", "nixl", "cuda_ipc", "tcp", "x" * 1000])
def test_unknown_medium_is_refused(impatient: Descriptor, medium: str) -> None:
    with connected(impatient, "unix") as sock:
        sock.sendall(frame(Open(claim(impatient), medium)))
        answer = receive_answer(sock)
        assert isinstance(answer, Refused)
        assert answer.error == "BadDescriptor"
        assert is_closed(sock)


def test_random_and_damaged_requests_harm_nobody() -> None:
    with Source(limits=IMPATIENT) as source:
        descriptor = source.describe(source.expose(filled(64), 3600.0))
        valid = frame(Fetch(claim(descriptor), [0, 10], [5, 20], True))

        @given(st.one_of(st.binary(max_size=80), _damaged(valid)))
        @settings(max_examples=150)
        def check(said: bytes) -> None:
            with connected(descriptor, "unix") as sock:
                sock.sendall(said)
                sock.shutdown(socket.SHUT_WR)
                assert is_closed(sock)

        check()
        assert serves(descriptor)


def _damaged(valid: bytes) -> st.SearchStrategy[bytes]:
    """One byte changed, or cut short."""
    changed = st.builds(
        lambda at, to: valid[:at] + bytes([to]) + valid[at + 1 :], st.integers(0, len(valid) - 1), st.integers(0, 255)
    )
    return st.one_of(changed, st.integers(0, len(valid)).map(lambda end: valid[:end]))


def test_bug_in_answering_one_peer_keeps_out_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(*_: object) -> None:
        raise RuntimeError("a bug")

    with Source() as source:
        descriptor = source.describe(source.expose(filled(64), 3600.0))
        monkeypatch.setattr(Source, "_grant", buggy)
        with connected(descriptor, "unix") as sock:
            sock.sendall(frame(Open(claim(descriptor), "shm")))
            assert is_closed(sock)
        monkeypatch.setattr(Source, "_checksums", buggy)
        with connected(descriptor, "unix") as sock:
            sock.sendall(frame(Digest(claim(descriptor), [0], [1])))
            assert is_closed(sock)
        monkeypatch.undo()
        assert serves(descriptor)


# Against a receiver.


@contextlib.contextmanager
def impostor(descriptor: Descriptor, act: Callable[[socket.socket], object]) -> Iterator[Descriptor]:
    """Listens where the descriptor then points to; acts once a request has come, and leaves."""
    name = f"hyperflexis-test-{os.urandom(8).hex()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + name)
        listener.listen()

        def run() -> None:
            with contextlib.suppress(OSError):
                sock, _ = listener.accept()
                with sock:
                    sock.recv(1 << 16)
                    act(sock)

        thread = threading.Thread(target=run)
        thread.start()
        yield msgspec.structs.replace(descriptor, unix=name)
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()


ANSWERS = [
    b"",
    b"\1",
    b"\xff" * 100,
    LENGTH.pack(2) + b"\xc1\xc1",
    frame(Opened(b"")),
    frame(Finished([1] * 100)),
    frame(Refused("SystemExit", "out")),
    frame(Granted(0.0)),
    frame(Granted(0.0)) + LENGTH.pack(63) + b"x" * 63,
    frame(Granted(0.0)) + LENGTH.pack(64) + b"x" * 20,
    frame(Granted(0.0)) + LENGTH.pack(64) + b"x" * 64 + LENGTH.pack(1),
    frame(Granted(0.0)) + LENGTH.pack(64) + b"x" * 64 + LENGTH.pack(0) + frame(Granted(0.0)),
    frame(Granted(0.0)) + LENGTH.pack(0) + frame(Finished([1])),
    frame(Granted(0.0)) + LENGTH.pack(0) + frame(Refused("Unheard", "of")),
    frame(Granted(0.0)) + LENGTH.pack(64) + b"x" * 64 + LENGTH.pack(0) + frame(Finished([1, 2])),
]


@pytest.mark.parametrize("medium", ["shm", "unix"])
@pytest.mark.parametrize("said", ANSWERS)
def test_what_is_no_answer_is_the_peers_fault(medium: str, said: bytes) -> None:
    with Source() as source, Receiver([medium]) as receiver:
        honest = source.describe(source.expose(filled(64), 3600.0))
        with impostor(honest, lambda sock: sock.sendall(said)) as descriptor:
            handle = receiver.pull(descriptor, [(0, 0, 64)], bytearray(64), has_checksums=True)
            with pytest.raises(PeerLost, match=f"process {os.getpid()}"):
                handle.result(WAIT_S)


def test_stream_that_ends_early_is_not_taken_for_whole() -> None:
    """The closing 0 before all segments have come, and then a friendly word."""
    said = frame(Granted(0.0)) + LENGTH.pack(0) + frame(Finished())
    with Source() as source, Receiver(["unix"]) as receiver:
        honest = source.describe(source.expose(filled(64), 3600.0))
        with impostor(honest, lambda sock: sock.sendall(said)) as descriptor, pytest.raises(PeerLost):
            receiver.pull(descriptor, [(0, 0, 64)], bytearray(64)).result(WAIT_S)


def _send_files(answer: Answer, *fds: int) -> Callable[[socket.socket], Any]:
    return lambda sock: socket.send_fds(sock, [frame(answer)], fds)


def test_files_that_are_no_sealed_memory_are_not_mapped() -> None:
    """Memory that may shrink would kill the reader."""
    unsealed = os.memfd_create("unsealed", os.MFD_CLOEXEC)
    os.ftruncate(unsealed, 64)
    null = os.open("/dev/null", os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))
    with Source() as source, Receiver(["shm"]) as receiver:
        honest = source.describe(source.expose(filled(64), 3600.0))
        for fds in ([unsealed, unsealed], [null, null], [null], [null] * 4):
            for answer in (Opened(b""), Refused("Revoked", "it was"), Granted(0.0)):
                with impostor(honest, _send_files(answer, *fds)) as descriptor, pytest.raises(TransferError):
                    receiver.pull(descriptor, [(0, 0, 64)], bytearray(64)).result(WAIT_S)
    os.close(unsealed)
    os.close(null)
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("medium", MEDIA)
def test_silent_source_ends_with_the_callers_patience(medium: str) -> None:
    with Source() as source, Receiver([medium]) as receiver:
        honest = source.describe(source.expose(filled(64), 3600.0))
        may_leave = threading.Event()
        with (
            impostor(honest, lambda _: may_leave.wait(WAIT_S)) as descriptor,
            socket.create_server(("127.0.0.1", 0)) as silent,
        ):
            silent_too = msgspec.structs.replace(descriptor, tcp=silent.getsockname())
            handle = receiver.pull(silent_too, [(0, 0, 64)], bytearray(64), timeout_s=0.05)
            with pytest.raises(TimedOut):
                handle.result(WAIT_S)
            may_leave.set()


def test_silent_source_does_not_hold_up_attaching() -> None:
    with Source() as source, Receiver() as receiver:
        honest = source.describe(source.expose(filled(64), 3600.0))
        may_leave = threading.Event()
        with impostor(honest, lambda _: may_leave.wait(WAIT_S)) as descriptor:
            with pytest.raises(TimedOut):
                receiver.attach(descriptor, timeout_s=0.05)
            may_leave.set()
