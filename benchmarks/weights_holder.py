"""A process that takes weights, for `weights.py`: told what to do in lines of JSON, and answering in such lines.

Its first line names the identity, candidates and media; it then says where it lends what it takes, waits for a line to
begin, says when the first chunk may be had from it, and what came of it. Further lines begin it anew.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import sys
import time
from typing import Any

import msgspec

from hyperflexis.transfer.memory import map_for_reading
from hyperflexis.transfer.weights.donor import Donor
from hyperflexis.transfer.weights.filling import Filling
from hyperflexis.transfer.weights.identity import Identity
from hyperflexis.transfer.weights.manifest import Manifest
from hyperflexis.transfer.weights.offer import read_offer
from hyperflexis.transfer.weights.recipient import Wanted, take


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


class Holder:
    def __init__(self, order: dict[str, Any]) -> None:
        self.identity = msgspec.convert(order["identity"], Identity)
        self.offers = [read_offer(bytes.fromhex(each)) for each in order["candidates"]]
        self.media = order.get("media")
        self.wanted = Wanted(self.identity, attaches=self.media is None)
        self.donor = Donor(tcp_host="127.0.0.1", bytes_per_s=order.get("bytes_per_s") or math.inf)
        self.fd = -1

    def allocate(self, identity: Identity, manifest: Manifest | None) -> Filling:
        self.fd = os.memfd_create("holder", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, self.identity.size_bytes)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        filling = Filling(self.fd, self.identity.size_bytes, manifest)
        reading = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY)
        self.donor.fill(self.identity, map_for_reading(reading), filling.watermark)
        os.close(reading)
        if manifest is not None:
            self.donor.publish(manifest)
        say(filling=True)
        return filling

    def take(self) -> None:
        self.drop()
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        taken = take(self.offers, self.wanted, self.allocate, media=self.media)
        seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        say(seconds=seconds, cpu_s=cpu_s, medium=taken.medium, failures=taken.failures, phases_s=taken.phases_s)
        self.fd = self.fd if taken.fd is None else taken.fd

    def drop(self) -> None:
        """What it took before."""
        self.donor.withdraw()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def main() -> None:
    order = json.loads(sys.stdin.readline())
    if order.get("niceness"):
        os.nice(order["niceness"])
    holder = Holder(order)
    say(offer=holder.donor.offer.to_bytes().hex())
    while sys.stdin.readline():
        holder.take()
    holder.donor.close()


if __name__ == "__main__":
    main()
