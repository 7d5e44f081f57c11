"""What tests of weights take and give: sealed memory with a content, room to take it into, donors that err."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hyperflexis.transfer.memory import SharedMemory
from hyperflexis.transfer.place import here
from hyperflexis.transfer.weights.donor import Donor
from hyperflexis.transfer.weights.filling import Filling
from hyperflexis.transfer.weights.identity import Identity
from hyperflexis.transfer.weights.joined import Patience
from hyperflexis.transfer.weights.manifest import Manifest
from hyperflexis.transfer.weights.offer import VERSION, Offer

PIECE, CHUNK = 1 << 10, 4 << 10
"""Small ones, that `small_chunks` puts in force."""
SIZE = 10 * CHUNK - 700
PATIENCE = Patience(join_s=0.3, chunk_s=0.5)
IMPATIENT_FOR_NOBODY = Patience(join_s=20.0, chunk_s=20.0)
CONTENT = random.Random(3).randbytes(SIZE)
LIES = CONTENT[: 5 * CHUNK + 10] + b"?" + CONTENT[5 * CHUNK + 11 :]
"""One byte of the sixth chunk is another."""
IDENTITY = Identity("model", "float32", "layout", SIZE)


def manifest_of(content: bytes) -> Manifest:
    """Of small pieces, also before they are in force."""
    return Manifest(b"".join(hashlib.sha256(content[at : at + PIECE]).digest() for at in range(0, len(content), PIECE)))


def sealed(content: bytes) -> SharedMemory:
    fd = os.memfd_create("weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, len(content))
    os.pwrite(fd, content, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    memory = SharedMemory.of_file(fd)
    os.close(fd)
    return memory


@contextmanager
def donor(
    content: bytes = CONTENT,
    manifest: Manifest | None = None,
    identity: Identity = IDENTITY,
    **options: object,
) -> Iterator[Donor]:
    """Lends a content, and says of it what it is told to."""
    memory = sealed(content)
    one = Donor(tcp_host="127.0.0.1", **options)
    one.lend(identity, memory)
    if manifest is not None:
        one.publish(manifest)
    try:
        yield one
    finally:
        one.close()
        memory.close()


class Room:
    """Where a recipient's bytes go."""

    def __init__(self, size_bytes: int = SIZE) -> None:
        self.size_bytes = size_bytes
        self.fds: list[int] = []
        """One for each time that it was made."""
        self.fillings: list[Filling] = []

    def allocate(self, identity: Identity, manifest: Manifest | None) -> Filling:
        assert identity.size_bytes == self.size_bytes
        fd = os.memfd_create("room", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, self.size_bytes)
        self.fds.append(fd)
        self.fillings.append(Filling(fd, self.size_bytes, manifest))
        return self.fillings[-1]

    @property
    def content(self) -> bytes:
        return os.pread(self.fds[-1], self.size_bytes, 0)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


@contextmanager
def stranger(answer: bytes | None) -> Iterator[Offer]:
    """Listens where an offer says that a donor does, and answers anything with this; None: nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def serve() -> None:
        try:
            while True:
                sock, _ = listener.accept()
                held.append(sock)
                if answer is not None:
                    sock.recv(1 << 16)
                    sock.sendall(answer)
        except OSError:  # It was closed.
            return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Offer(VERSION, "a stranger", b"secret", here(), tcp=listener.getsockname()[:2])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for sock in held:
            sock.close()
