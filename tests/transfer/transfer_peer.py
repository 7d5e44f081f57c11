"""The other process of a two-process test: `python transfer_peer.py ACT`, spoken to over its pipes.

lend: exposes 32 MiB, prints the descriptor, serves until its stdin ends.
rewrite: keeps lending the same memory under new generations, each filled with a byte that its number gives; prints
each descriptor, and ends with its stdin.
pull: reads a descriptor, begins to pull it by the medium named, says so after the first piece, and goes no further.
"""

from __future__ import annotations

import sys
import threading

from hyperflexis.transfer import shm, tcp
from hyperflexis.transfer.descriptor import read_descriptor
from hyperflexis.transfer.memory import SharedMemory
from hyperflexis.transfer.receiver import Receiver
from hyperflexis.transfer.source import Source

LENT_BYTES = 32 << 20
REWRITTEN_BYTES = 2 << 20


def content(generation: int) -> int:
    return generation % 251


def lend() -> None:
    memory = SharedMemory(LENT_BYTES)
    with Source() as source:
        print(source.describe(source.expose(memory, 3600.0, "lent")).to_bytes().hex(), flush=True)
        sys.stdin.read()


def rewrite() -> None:
    memory = SharedMemory(REWRITTEN_BYTES)
    is_over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
    with Source() as source:
        region = source.expose(memory, 0.0)
        while not is_over.is_set():
            memory.view[:] = bytes([content(region.generation + 1)]) * REWRITTEN_BYTES
            source.recycle(region, 3600.0)
            print(source.describe(region).to_bytes().hex(), flush=True)
            is_over.wait(0.002)
            source.shorten(region, 0.0)


def pull(medium: str) -> None:
    descriptor = read_descriptor(bytes.fromhex(sys.stdin.readline()))
    if medium == "shm":
        shm._copy_large = lambda *_: stay()  # type: ignore[assignment]
    else:
        receive = tcp.receive_into
        tcp.receive_into = lambda sock, views: stay() if views[0].nbytes > 4 else receive(sock, views)
    receiver = Receiver([medium])
    receiver.pull(descriptor, [(0, 0, descriptor.size_bytes)], bytearray(descriptor.size_bytes)).result()


def stay() -> None:
    print("in the middle", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    {"lend": lend, "rewrite": rewrite, "pull": pull}[sys.argv[1]](*sys.argv[2:])
