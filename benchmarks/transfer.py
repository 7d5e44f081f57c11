"""How fast bytes move between two processes of one host, beside the plainest code that could move them.

    python benchmarks/transfer.py --json transfer.json

A source process has a resident pool of 256 MB in shared memory. Pulls of 2, 8 and 64 MB in blocks of 64 KiB, drawn anew
for each round, into a resident target, are compared within each round with: for shared memory, a loop that copies the
same blocks out of a pool of this process's own; for sockets, `sendall` of as many such blocks, and a blocking
`recv_into`.
"""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import record
from hyperflexis.transfer.descriptor import Descriptor, read_descriptor
from hyperflexis.transfer.memory import SharedMemory
from hyperflexis.transfer.receiver import Receiver
from hyperflexis.transfer.source import Source

MB = 1 << 20
BLOCK_BYTES = 64 << 10
POOL_BYTES = 256 * MB
SIZES_MB = (2, 8, 64)
ROUNDS = 15

Blocks = list[tuple[int, int, int]]


def pool() -> SharedMemory:
    """Every page touched, so that none is made while the clock runs."""
    memory = SharedMemory(POOL_BYTES)
    pattern = random.Random(1).randbytes(MB)
    for start in range(0, POOL_BYTES, MB):
        memory.view[start : start + MB] = pattern
    return memory


def lend() -> None:
    """The source process: print what is needed to reach it, and serve until stdin ends."""
    memory = pool()
    bare = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
    bare[1].bind("")
    bare[1].listen()
    for listener in bare:
        threading.Thread(target=send_bare, args=[listener, memory.view], daemon=True).start()
    with Source() as source:
        described = source.describe(source.expose(memory, 3600.0, "pool")).to_bytes()
        print(described.hex(), bare[0].getsockname()[1], bare[1].getsockname().hex(), flush=True)
        sys.stdin.read()


def send_bare(listener: socket.socket, memory: memoryview) -> None:
    """As many blocks as eight bytes of the peer's say, from anywhere in the pool."""
    sock, _ = listener.accept()
    chance = random.Random(3)
    while data := sock.recv(8):
        for start in chance.sample(range(0, POOL_BYTES, BLOCK_BYTES), int.from_bytes(data, "little")):
            sock.sendall(memory[start : start + BLOCK_BYTES])


class Target:
    """This process's side: what it fills, and from where."""

    def __init__(self, descriptor: Descriptor, bare: dict[str, socket.socket]) -> None:
        self.descriptor = descriptor
        self.bare = bare
        self.own = pool().view
        self.memory = memoryview(bytearray(b"\1") * (max(SIZES_MB) * MB))
        self.chance = random.Random(2)

    def blocks(self, size_bytes: int) -> Blocks:
        starts = self.chance.sample(range(0, POOL_BYTES, BLOCK_BYTES), size_bytes // BLOCK_BYTES)
        return [(start, index * BLOCK_BYTES, BLOCK_BYTES) for index, start in enumerate(starts)]

    def copy(self, blocks: Blocks) -> None:
        for source, target, length in blocks:
            self.memory[target : target + length] = self.own[source : source + length]

    def receive(self, medium: str, blocks: Blocks) -> None:
        sock, length = self.bare[medium], len(blocks) * BLOCK_BYTES
        sock.sendall(len(blocks).to_bytes(8, "little"))
        got = 0
        while got < length:
            got += sock.recv_into(self.memory[got:length])

    def plain(self, medium: str) -> Callable[[Blocks], None]:
        return self.copy if medium == "shm" else lambda blocks: self.receive(medium, blocks)


def seconds(work: Callable[[Blocks], object], blocks: Blocks) -> float:
    began_s = time.perf_counter()
    work(blocks)
    return time.perf_counter() - began_s


def compare(target: Target, medium: str, size_bytes: int) -> dict[str, dict[str, float]]:
    """Rounds of both; the ratio is of each round's two."""
    with Receiver([medium]) as receiver:

        def pull(blocks: Blocks) -> None:
            receiver.pull(target.descriptor, blocks, target.memory).result()

        # Maps every page, opens every connection.
        everything = target.blocks(POOL_BYTES)
        for start in range(0, len(everything), 1024):
            pull([(source, at * BLOCK_BYTES, n) for at, (source, _, n) in enumerate(everything[start : start + 1024])])
        rounds = []
        for _ in range(ROUNDS):
            plain_s = seconds(target.plain(medium), target.blocks(size_bytes))
            rounds.append((plain_s, seconds(pull, target.blocks(size_bytes))))
    return {
        "pull_gb_per_s": record.spread([size_bytes / pulled / 1e9 for _, pulled in rounds]),
        "plain_gb_per_s": record.spread([size_bytes / plain / 1e9 for plain, _ in rounds]),
        "ratio": record.spread([plain / pulled for plain, pulled in rounds]),
    }


def measure() -> dict[str, Any]:
    report: dict[str, Any] = {"machine": record.machine("numpy"), "block_bytes": BLOCK_BYTES, "media": {}}
    process = subprocess.Popen([sys.executable, __file__, "--lend"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        described, port, name = process.stdout.readline().decode().split()
        with socket.create_connection(("127.0.0.1", int(port))) as tcp, socket.socket(socket.AF_UNIX) as unix:
            unix.connect(bytes.fromhex(name))
            target = Target(read_descriptor(bytes.fromhex(described)), {"tcp": tcp, "unix": unix})
            for medium in ("shm", "unix", "tcp"):
                for size_mb in SIZES_MB:
                    found = compare(target, medium, size_mb * MB)
                    report["media"].setdefault(medium, {})[f"{size_mb} MB"] = found
                    pulled, plain, ratio = (each["median"] for each in found.values())
                    rates = f"pull {pulled:5.2f} GB/s, plain {plain:5.2f} GB/s"
                    print(f"{medium:5} {size_mb:3} MB: {rates}, ratio {ratio:.2f}", flush=True)
    finally:
        process.communicate()
    return report


def main() -> None:
    if sys.argv[1:2] == ["--lend"]:
        lend()
        return
    arguments = record.parser(__doc__).parse_args()
    record.write(arguments.json, measure())


if __name__ == "__main__":
    main()
