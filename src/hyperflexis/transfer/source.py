"""The owner's side: exposes buffers, lends them for a time, serves those who pull, and takes them back.

A buffer's bytes may be overwritten when no lease is on them: after `revoke`, `recycle`, or the lease's end. Whoever is
in the middle of reading them then will notice, and so nobody has to be waited for. Knows no receiver by name.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from hyperflexis.transfer import cuda_ipc, nixl, shm
from hyperflexis.transfer.checksums import checksums
from hyperflexis.transfer.choice import offered
from hyperflexis.transfer.descriptor import VERSION, Descriptor
from hyperflexis.transfer.door import Connection, Door, DoorLimits, Reply, listen_tcp, listen_unix
from hyperflexis.transfer.errors import BadDescriptor, BadRanges, Revoked, TransferError, Unsettled
from hyperflexis.transfer.lease import Clock, LeasePage, monotonic_ns
from hyperflexis.transfer.medium import Buffer, Grant, is_on_device
from hyperflexis.transfer.memory import SharedMemory
from hyperflexis.transfer.pace import Pace
from hyperflexis.transfer.place import here
from hyperflexis.transfer.protocol import (
    Ask,
    Claim,
    Digest,
    Fetch,
    Finished,
    Granted,
    Open,
    Opened,
    ProtocolError,
    Refused,
    Request,
    Told,
    frame,
    send_all,
)
from hyperflexis.transfer.ranges import RANGES_MAX, Range
from hyperflexis.transfer.region import Region
from hyperflexis.transfer.tcp import end_of_stream, send_ranges
from hyperflexis.transfer.turns import Turns
from hyperflexis.transfer.watermark import Watermark

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
SETTLING_S = 30.0
"""The most that a peer is kept waiting for bytes that are still to come."""
_LOOK_S = 0.05
"""Between two looks at whether such a peer is still there."""
_TOKEN_BYTES = 16

Answering = Callable[[Connection, bytes], Reply]
"""Answers what a peer asks besides regions, in the door's thread: it must not block. The reply's data is its text."""


@dataclass(frozen=True, slots=True)
class SourceLimits:
    """How much a source does at once."""

    transfers_max: int = 4
    """Served at the same time; the rest wait, peer by peer. Media that need no serving are not counted."""
    regions_max: int = 4096
    bytes_per_s: float = math.inf
    """Sent over sockets, all peers together. What peers copy out of shared memory they copy by themselves."""
    door: DoorLimits = field(default_factory=DoorLimits)


class Errand(NamedTuple):
    """A request that takes work."""

    connection: Connection
    region: Region
    request: Fetch | Digest
    ranges: list[Range]
    since_s: float


class Source:
    """Thread-safe. Ends with `close`, or as a context manager."""

    def __init__(
        self,
        tcp_host: str | None = LOOPBACK,
        limits: SourceLimits | None = None,
        nixl_agent: nixl.NixlAgent | None = None,
        clock: Clock = monotonic_ns,
        *,
        tcp_port: int = 0,
        answer: Answering | None = None,
    ) -> None:
        """Begin to listen.

        Args:
            tcp_host: the address to listen on and to give to peers; None: no TCP.
            tcp_port: 0: any that is free.
            answer: for what peers `Ask`.
            nixl_agent: lends host and device memory by NIXL too. It stays the caller's.

        Raises:
            ValueError: the address is no single one.
            OSError: it is none of this machine's, or the port is taken.
        """
        if tcp_host in ("", "0.0.0.0", "::"):
            raise ValueError(f"name the one address that peers are to use, not {tcp_host!r}")
        limits = limits or SourceLimits()
        self.id = secrets.token_hex(8)
        self.owner = f"process {os.getpid()} on {platform.node()}"
        self._key = secrets.token_bytes(32)
        self._place = here()
        self._nixl = nixl_agent
        self._lock = threading.Lock()
        self._regions: dict[int, Region] = {}
        self._numbers = 0
        self._unix = f"hyperflexis-{self.id}"
        listeners = [listen_unix(self._unix)]
        self._tcp: tuple[str, int] | None = None
        if tcp_host is not None:
            try:
                listeners.append(listen_tcp(tcp_host, tcp_port))
            except OSError:
                listeners[0].close()
                raise
            self._tcp = (tcp_host, listeners[1].getsockname()[1])
        self._page = LeasePage(limits.regions_max, clock)
        self._pace = Pace(limits.bytes_per_s)
        self._answer_asked = answer
        self._turns: Turns[Errand] = Turns()
        self._door = Door(listeners, self._answer, limits.door, f"transfer-door-{self.id}")
        self._workers = [
            threading.Thread(target=self._work, name=f"transfer-source-{self.id}-{index}", daemon=True)
            for index in range(limits.transfers_max)
        ]
        for worker in self._workers:
            worker.start()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- for the owner

    @property
    def unix(self) -> str:
        """The name of its abstract Unix socket."""
        return self._unix

    @property
    def tcp(self) -> tuple[str, int] | None:
        """Host and port, if it listens on TCP."""
        return self._tcp

    def expose(self, buffer: Buffer, lease_s: float, name: str = "", watermark: Watermark | None = None) -> Region:
        """Lend a buffer. Regions over one buffer may overlap: each is a lease of its own.

        Args:
            lease_s: from now; math.inf for good.
            name: for people who read messages.
            watermark: the buffer is still being filled from its front; what is not settled yet is waited for.

        Raises:
            Exhausted: `regions_max` are lent already.
            TypeError, ValueError: it is no buffer in one piece, or no length of time.
        """
        view, size_bytes, device = _measured(buffer)
        media = offered(buffer, self._nixl is not None, self._tcp is not None, watermark is not None)
        with self._lock:
            slot, generation = self._page.lend(lease_s)
            self._numbers += 1
            region = Region(
                self._numbers, name[:100], buffer, view, size_bytes, device, media, slot, generation, watermark
            )
            self._regions[region.number] = region
        return region

    def describe(self, region: Region) -> Descriptor:
        """Return what a peer needs to pull it.

        Raises:
            RefusedError: it is not lent any more.
        """
        with self._lock:
            lease_s = self._check(region, region.generation)
            return Descriptor(
                version=VERSION,
                source=self.id,
                owner=self.owner,
                place=self._place,
                region=region.number,
                name=region.name,
                generation=region.generation,
                slot=region.slot,
                size_bytes=region.size_bytes,
                lease_s=lease_s,
                device=region.device,
                token=self._token(region.number),
                memory=region.buffer.id if isinstance(region.buffer, SharedMemory) else 0,
                media=region.media,
                unix=self._unix,
                tcp=self._tcp,
            )

    def renew(self, region: Region, lease_s: float) -> None:
        """Let the lease last until so many seconds from now at least; descriptors in others' hands last with it.

        Raises:
            RefusedError: it has ended, and its bytes may be others' already; `recycle` lends it anew.
        """
        with self._lock:
            self._check(region, region.generation)
            self._page.prolong(region.slot, lease_s)

    def shorten(self, region: Region, lease_s: float) -> None:
        """Let the lease last until so many seconds from now at most.

        Raises:
            RefusedError: it has ended.
        """
        with self._lock:
            self._check(region, region.generation)
            self._page.shorten(region.slot, lease_s)

    def recycle(self, region: Region, lease_s: float) -> None:
        """End the lease and lend the same memory under a new one; earlier descriptors are worth nothing.

        Raises:
            Revoked: the region is gone.
        """
        with self._lock:
            self._of(region.number)
            region.generation = self._page.lend_again(region.slot, lease_s)

    def revoke(self, region: Region) -> None:
        """End the lease and forget the region. When this returns, its bytes may be overwritten. Twice is once."""
        with self._lock:
            if self._regions.pop(region.number, None) is not None:
                self._page.end(region.slot)

    def close(self) -> None:
        """Revoke everything, end every conversation, and wait for the threads."""
        with self._lock:
            regions = list(self._regions.values())
        for region in regions:
            self.revoke(region)
        self._door.close()
        self._turns.close()
        for worker in self._workers:
            worker.join()
        self._door.release()
        self._page.close()

    # -- in the door's thread

    def _answer(self, connection: Connection, request: Request) -> Reply | None:
        if isinstance(request, Ask):
            return self._told(connection, request)
        try:
            region = self._claimed(request.claim)
            if isinstance(request, Open):
                opened = self._grant(region, request)
                return Reply(frame(Opened(opened.details)), opened.fds)
            ranges = _checked_ranges(region, request)
        except TransferError as error:
            return Reply(_refused(error), is_last=isinstance(error, BadDescriptor))
        errand = Errand(connection, region, request, ranges, time.monotonic())
        # A source that is closing answers nobody; the door closes the connection.
        return None if self._turns.put(request.claim.peer, errand) else Reply(b"", is_last=True)

    def _told(self, connection: Connection, request: Ask) -> Reply:
        if self._answer_asked is None:
            return Reply(_refused(BadDescriptor(f"{self.owner} only lends; mend the caller")), is_last=True)
        data, fds, is_last = self._answer_asked(connection, request.payload)
        return Reply(frame(Told(data)), fds, is_last)

    def _claimed(self, claim: Claim) -> Region:
        if not hmac.compare_digest(claim.token, self._token(claim.region)):
            raise BadDescriptor(f"{self.owner} has not made this descriptor; mend who carried it")
        with self._lock:
            region = self._of(claim.region)
            self._check(region, claim.generation)
            return region

    def _grant(self, region: Region, request: Open) -> Grant:
        if request.medium in region.media:
            if request.medium == "shm":
                return shm.grant(region.buffer, self._page.fd)
            if request.medium == "cuda_ipc":
                return cuda_ipc.grant(region.buffer, self._page.fd)
            if request.medium == "nixl" and self._nixl is not None:
                return self._nixl.grant(region)
        raise BadDescriptor(f"{region.title} of {self.owner} cannot be opened by {request.medium!r}; mend the caller")

    def _of(self, number: int) -> Region:
        region = self._regions.get(number)
        if region is None:
            raise Revoked(f"region {number} of {self.owner} was revoked by its owner")
        return region

    def _check(self, region: Region, generation: int) -> float:
        try:
            return self._page.check(region.slot, generation)
        except TransferError as error:
            raise type(error)(f"{region.title} of {self.owner} {error}") from None

    def _token(self, number: int) -> bytes:
        """Computed, not kept: regions that are gone still tell a forged descriptor from a late one."""
        return hmac.digest(self._key, str(number).encode(), hashlib.sha256)[:_TOKEN_BYTES]

    # -- in the workers' threads

    def _work(self) -> None:
        while (taken := self._turns.take()) is not None:
            errand, cost = taken
            is_usable = False
            try:
                is_usable = not errand.connection.has_left() and self._serve(errand)
            except (OSError, ProtocolError) as error:
                log.debug("a peer was lost while it was served: %s", error)
            except Exception:
                # A bug in serving one peer must not end the service of all.
                log.exception("a transfer failed")
            self._turns.done(cost)
            self._door.take_back(errand.connection, is_usable)

    def _serve(self, errand: Errand) -> bool:
        sock, region, request = errand.connection.sock, errand.region, errand.request
        generation = request.claim.generation
        is_streaming = False
        try:
            self._recheck(region, generation)
            self._settle(errand)
            if isinstance(request, Fetch):
                if region.view is None:
                    raise BadDescriptor(f"{region.title} of {self.owner} lies on a device; mend the caller")
                is_streaming = True
                granted = frame(Granted(time.monotonic() - errand.since_s))
                check = partial(self._recheck, region, generation)
                send_ranges(sock, region.view, errand.ranges, granted, check, pace=self._pace)
            found = self._checksums(errand)
            # The last word on the lease comes after the last look at the bytes.
            self._recheck(region, generation)
            last = frame(Finished(found))
        except TransferError as error:
            last = _refused(error)
        send_all(sock, [end_of_stream(last) if is_streaming else last])
        return True

    def _settle(self, errand: Errand) -> None:
        """Wait until all that is asked for is there: no byte is looked at before."""
        region, watermark = errand.region, errand.region.watermark
        if watermark is None:
            return
        end = max((each.source + each.length for each in errand.ranges), default=0)
        until_s = time.monotonic() + SETTLING_S
        while not watermark.reaches(end, _LOOK_S):
            self._recheck(region, errand.request.claim.generation)
            if time.monotonic() > until_s or errand.connection.has_left():
                raise Unsettled(f"{region.title} of {self.owner} has come no further within {SETTLING_S:.0f} s")

    def _recheck(self, region: Region, generation: int) -> None:
        """Without the lock: the page's words are made to be read meanwhile."""
        self._check(region, generation)

    def _checksums(self, errand: Errand) -> list[int]:
        if isinstance(errand.request, Fetch) and not errand.request.checksums:
            return []
        view = errand.region.view
        if view is None:
            return cuda_ipc.checksums_of(errand.region.buffer, errand.ranges)
        return checksums(view[each.source : each.source + each.length] for each in errand.ranges)


def _measured(buffer: Buffer) -> tuple[memoryview | None, int, str]:
    """Its bytes as far as this process sees them, how many, and where."""
    if is_on_device(buffer):
        return None, int(buffer.nbytes), str(buffer.device)
    view = memoryview(buffer.view if isinstance(buffer, SharedMemory) else buffer).cast("B").toreadonly()
    return view, view.nbytes, "cpu"


def _checked_ranges(region: Region, request: Fetch | Digest) -> list[Range]:
    if len(request.offsets) != len(request.lengths) or len(request.offsets) > RANGES_MAX:
        raise BadRanges("offsets and lengths do not pair, or are too many; mend the caller")
    ranges = [Range(offset, 0, length) for offset, length in zip(request.offsets, request.lengths, strict=True)]
    if any(each.source < 0 or each.length <= 0 or each.source + each.length > region.size_bytes for each in ranges):
        raise BadRanges(f"a range leaves {region.title} of {region.size_bytes} bytes; mend the caller")
    return ranges


def _refused(error: TransferError) -> bytes:
    return frame(Refused(type(error).__name__, str(error)))
