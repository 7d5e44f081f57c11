"""The NIXL medium: one-sided reads over RDMA or NVLink between hosts, where the optional `nixl` package is installed.

Without a fabric NIXL falls back to TCP at a tenth of a socket's speed and many times its cost, so an agent is for hosts
that have one (`is_worthwhile`); nothing here makes one by itself. The owner is asked about the lease over its socket,
before and after the read, for it cannot see who reads.
"""

from __future__ import annotations

import importlib
import importlib.util
import secrets
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hyperflexis.transfer.checksums import checksums, compare
from hyperflexis.transfer.connections import Connections
from hyperflexis.transfer.errors import PeerLost, Unreachable
from hyperflexis.transfer.handle import Transfer
from hyperflexis.transfer.medium import Grant, address_of, ask_digest, is_on_device
from hyperflexis.transfer.place import here
from hyperflexis.transfer.protocol import Open, Opened
from hyperflexis.transfer.region import Region

_PACKAGES = ("nixl", "nixl_cu13", "nixl_cu12")
_BUFFERS_MAX = 64
_POLL_S = 50e-6


class Remote(msgspec.Struct, frozen=True, array_like=True):
    """What a peer needs to read a region."""

    metadata: bytes
    """NIXL's own description of the owner's agent and its registered memory."""
    address: int
    device: int
    kind: str
    """DRAM or VRAM."""


_decoder = msgspec.msgpack.Decoder(Remote)


def is_available() -> bool:
    return any(importlib.util.find_spec(name) for name in _PACKAGES)


def is_worthwhile(fabric: Path = Path("/sys/class/infiniband")) -> bool:
    """It is installed, and there is an RDMA device for it."""
    return is_available() and fabric.is_dir() and any(fabric.iterdir())


class NixlAgent:
    """One per process, for its sources and receivers. Thread-safe: NIXL itself is entered by one thread at a time."""

    def __init__(self) -> None:
        """Start NIXL, which takes about a second.

        Raises:
            ImportError: it is not installed.
        """
        found = next((name for name in _PACKAGES if importlib.util.find_spec(name)), _PACKAGES[0])
        api = importlib.import_module(f"{found}._api")
        self._agent: Any = api.nixl_agent(secrets.token_hex(8), api.nixl_agent_config(backends=["UCX"]))
        self._lock = threading.Lock()
        self._registered: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def grant(self, region: Region) -> Grant:
        """The owner's side."""
        where = _located(region.buffer if region.view is None else region.view)
        with self._lock:
            self._register(where)
            remote = Remote(self._agent.get_agent_metadata(), where[0], where[2], where[3])
        return Grant(msgspec.msgpack.encode(remote))

    def read(self, transfer: Transfer, remote: Remote) -> None:
        """Fill the target, and return when nothing writes to it any more.

        Raises:
            PeerLost: the read failed.
            TransferError: somebody asked for the end.
        """
        address, _, device, kind = where = _located(transfer.target)
        ours = [(address + each.target, each.length, device) for each in transfer.ranges]
        theirs = [(remote.address + each.source, each.length, remote.device) for each in transfer.ranges]
        with self._lock:
            self._register(where)
            peer = self._agent.add_remote_agent(remote.metadata)
            peer = peer.decode() if isinstance(peer, bytes) else peer
            local = self._agent.get_xfer_descs(ours, kind)
            handle = self._agent.initialize_xfer("READ", local, self._agent.get_xfer_descs(theirs, remote.kind), peer)
            state = self._agent.transfer(handle)
        try:
            while state == "PROC":
                transfer.check()
                time.sleep(_POLL_S)
                with self._lock:
                    state = self._agent.check_xfer_state(handle)
        finally:
            with self._lock:
                # Aborts what still runs.
                self._agent.release_xfer_handle(handle)
        if state != "DONE":
            raise PeerLost(f"{transfer.descriptor.owner} was lost during the pull of {transfer.descriptor}: {state}")

    def _register(self, where: tuple[int, int, int, str]) -> None:
        address, size_bytes, device, kind = where
        key = (address, size_bytes)
        if key not in self._registered:
            self._registered[key] = self._agent.register_memory([(address, size_bytes, device, "")], kind)
        self._registered.move_to_end(key)
        if len(self._registered) > _BUFFERS_MAX:
            self._agent.deregister_memory(self._registered.popitem(last=False)[1])


class NixlMedium:
    """The receiver's side."""

    name = "nixl"

    def __init__(self, connections: Connections, agent: NixlAgent) -> None:
        self._connections = connections
        self._agent = agent

    def pull(self, transfer: Transfer) -> None:
        """See `Medium.pull`."""
        descriptor = transfer.descriptor
        address = address_of(descriptor, here().shares_memory_with(descriptor.place))
        request = Open(self._connections.claim(descriptor), self.name)
        with self._connections.ask(address, request, transfer) as heard:
            if not isinstance(heard.answer, Opened):
                raise PeerLost(f"{descriptor.owner} sent no memory for {descriptor}; it is of no use")
            remote = _decoder.decode(heard.answer.details)
        if is_on_device(transfer.target) and transfer.has_checksums:
            raise Unreachable("checksums of device memory are not computed for this medium; pull without them")
        self._agent.read(transfer, remote)
        sent = ask_digest(self._connections, address, transfer)
        if transfer.has_checksums:
            target: memoryview = transfer.target
            arrived = checksums(target[each.target : each.target + each.length] for each in transfer.ranges)
            compare(descriptor, transfer.ranges, sent, arrived)

    def close(self) -> None:
        """The agent is its maker's."""


def _located(buffer: Any) -> tuple[int, int, int, str]:
    """Address, bytes, device and kind of memory."""
    if is_on_device(buffer):
        return buffer.data_ptr(), buffer.nbytes, buffer.device.index or 0, "VRAM"
    data = np.frombuffer(buffer, np.uint8)
    return int(data.__array_interface__["data"][0]), data.nbytes, 0, "DRAM"
