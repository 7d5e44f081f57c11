"""Where a process runs, as far as it decides what it can share with another. Knows identities, not media."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec


class Place(msgspec.Struct, frozen=True, array_like=True):
    """One kernel, and the namespaces in which things that processes share have their names."""

    boot: str
    """The kernel's id of this boot; empty where it does not tell, which equals no other place."""
    network: str = ""
    """Abstract Unix sockets live in it."""
    time: str = ""
    """Instants of the monotonic clock mean something in it."""
    processes: str = ""
    """CUDA hands memory to process ids."""
    ipc: str = ""

    def shares_memory_with(self, other: Place) -> bool:
        """A Unix socket leads there, and its clock is ours."""
        return bool(self.boot) and (self.boot, self.network, self.time) == (other.boot, other.network, other.time)

    def shares_devices_with(self, other: Place) -> bool:
        return self.shares_memory_with(other) and (self.processes, self.ipc) == (other.processes, other.ipc)


def here() -> Place:
    """The place of this process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return Place("")
    return Place(boot, *(_namespace(kind) for kind in ("net", "time", "pid", "ipc")))


def _namespace(kind: str) -> str:
    try:
        return os.readlink(f"/proc/self/ns/{kind}")
    except OSError:  # The kernel has no such namespaces: there is one for all.
        return ""
