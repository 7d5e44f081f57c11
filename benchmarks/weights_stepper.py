"""A process that computes decode steps, and may lend weights from threads of its own, for `weights.py`.

Told which model to step and which one to lend, if any, it says where it lends; it steps until a line comes, and says
when each step ended and how long it took.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

from hyperflexis.adapters.native import loading
from hyperflexis.adapters.native.calibration import Trial
from hyperflexis.adapters.native.messages import Load, Loaded, LoadFailed
from hyperflexis.engine.fingerprint import fingerprint
from hyperflexis.engine.runner import Runner
from hyperflexis.transfer.memory import SharedMemory
from hyperflexis.transfer.weights.donor import Donor
from hyperflexis.transfer.weights.identity import Identity
from hyperflexis.transfer.weights.manifest import Manifest
from hyperflexis.wire.messages import Sampling

BLOCK_TOKENS = 16


def main() -> None:
    order = json.loads(sys.stdin.readline())
    # Before anything is computed here: loading forks.
    model, loaded = load(order["model"])
    lent = lend(order["lends"]) if order["lends"] else None
    weights = model.layout.views(memoryview(model.memory.map_for_reading()))
    runner = Runner(
        model.config, weights, blocks=loaded.blocks, block_tokens=BLOCK_TOKENS, dtype=model.dtype, threads=1
    )
    print(json.dumps({"offer": lent.offer.to_bytes().hex() if lent else ""}), flush=True)
    is_over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), is_over.set()), daemon=True).start()
    print(json.dumps({"steps_s": steps(runner, is_over)}), flush=True)
    os._exit(0)  # Nothing that is left is worth waiting for.


def load(directory: str) -> tuple[loading.Model, Loaded]:
    held = loading.load(Load(directory, "cpu", "auto", BLOCK_TOKENS, 64 << 20, 1))
    assert not isinstance(held, LoadFailed), held.reason
    return held.model, held.loaded


def lend(directory: str) -> Donor:
    model, loaded = load(directory)
    memory = SharedMemory.of_file(model.memory.fd)
    donor = Donor(tcp_host="127.0.0.1")
    donor.lend(Identity(fingerprint(directory), loaded.dtype, loaded.layout_hash, loaded.arena_bytes), memory)
    donor.publish(Manifest.of(memory.view))
    return donor


def steps(runner: Runner, is_over: threading.Event) -> list[tuple[float, float]]:
    slices = Trial(decode_seqs=1, context_tokens=256).slices(BLOCK_TOKENS)
    (one,) = slices
    runner.open(one.sequence, Sampling(temperature=0.0), [1] * 256, [])
    taken = []
    while not is_over.is_set():
        began_s = time.perf_counter()
        runner.step(slices)
        ended_s = time.perf_counter()
        taken.append((ended_s, ended_s - began_s))
    return taken


if __name__ == "__main__":
    main()
