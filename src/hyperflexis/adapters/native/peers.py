"""An instance's links with others: its KV is lent to those that may take from it, and theirs is pulled from here.

A link leads from one instance to another and has a version, which grows; a newer one replaces what was there. Bytes go
by `transfer`, in threads; what ends there is told in `finished`, and a descriptor becomes readable so that a loop that
sleeps can look. Knows blocks, no sequences, and nothing of what decides where links are.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from hyperflexis.adapters.native.pages import populate
from hyperflexis.engine.kv import KvPool, ranges
from hyperflexis.transfer.descriptor import Descriptor, read_descriptor
from hyperflexis.transfer.errors import RefusedError, TransferError, Unreachable
from hyperflexis.transfer.handle import Transfer
from hyperflexis.transfer.memory import SharedMemory
from hyperflexis.transfer.receiver import Receiver
from hyperflexis.transfer.region import Region
from hyperflexis.transfer.source import Source

log = logging.getLogger(__name__)

LEASE_S = 30.0
"""What a peer may still read of an instance that has stopped renewing. Renewed three times as often."""
PULL_S = 30.0
"""The most that a pull may take before it counts as lost."""
_TRIALS = 2
_TYPICAL_BLOCKS = 32
"""What is asked for to say what a block costs: the set-up is shared by so many."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A link is ready for pulls, or will not be (`why`)."""

    peer: int
    version: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Pulled:
    """A pull has ended; without `why`, its bytes are there."""

    sequence_id: int
    why: str = ""
    bytes: int = 0
    seconds: float = 0.0
    medium: str = ""


class _Lent(NamedTuple):
    region: Region
    version: int


class _Link(NamedTuple):
    version: int
    descriptor: Descriptor


class Peers:
    """All calls but those of threads of its own are from one thread, and none of them waits. Ends with `close`."""

    def __init__(
        self,
        pool: KvPool,
        memory: SharedMemory | None,
        *,
        host: str | None = None,
        source: Source | None = None,
        receiver: Receiver | None = None,
        has_checksums: bool = False,
        lease_s: float = LEASE_S,
    ) -> None:
        """`memory` is what the pool lies in, where that is shared; else it is lent as it is. `host` is this host's
        address for peers on others; None: there are none. Nothing runs until a link is wanted: an instance that stays
        alone pays for none.
        """
        self._block_bytes = pool.bytes_per_block
        # What has no buffer of its own is a tensor on a device.
        self._buffer: Any = pool.data if memory is None else memory
        self._host = host
        self._has_checksums = has_checksums
        self._lease_s = lease_s
        self._source = source
        self._receiver = receiver
        self._weights: Region | None = None
        self._lent: dict[int, _Lent] = {}
        self._links: dict[int, _Link] = {}
        self._wanted: dict[int, int] = {}
        """Peer → the version of the link that is being made."""
        self._pulls: dict[int, tuple[int, Transfer]] = {}
        """Sequence → peer and handle, of pulls that have not ended."""
        self._lock = threading.Lock()
        self._ended: deque[Callable[[], Joined | Pulled | None]] = deque()
        self._is_closed = threading.Event()
        self._renewing: threading.Thread | None = None
        self._is_touched = False
        """Whether somebody sees to it that the pool's pages are there."""
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable while `finished` has something to say."""

    # -- lending

    def lend(self, peer: int, version: int) -> bytes:
        """Return the descriptor with which a peer may pull from here. One that it had before is worth nothing now."""
        if self._source is None:
            self._source = Source(tcp_host=self._host)
        if self._renewing is None:
            self._renewing = threading.Thread(target=self._renew, name="kv-leases", daemon=True)
            self._renewing.start()
        with self._lock:
            lent = self._lent.get(peer)
            if lent is None:
                region = self._source.expose(self._buffer, self._lease_s, f"KV for i{peer}")
            else:
                region = lent.region
                self._source.recycle(region, self._lease_s)
            self._lent[peer] = _Lent(region, version)
        return self._source.describe(region).to_bytes()

    def lend_weights(self, flat: Any) -> bytes:
        """Return the descriptor with which siblings may copy these from this device, as long as it has them."""
        if self._source is None:
            self._source = Source(tcp_host=None)
        self._weights = self._source.expose(flat, math.inf, "weights")
        return self._source.describe(self._weights).to_bytes()

    def withdraw_weights(self) -> None:
        """They are about to be dropped."""
        if self._weights is not None:
            assert self._source is not None
            self._source.revoke(self._weights)
            self._weights = None

    def reclaim(self, peer: int, version: int) -> None:
        """Take back what was lent under this version, or an older one. Pulls that are on their way will notice."""
        with self._lock:
            lent = self._lent.get(peer)
            if lent is None or lent.version > version:
                return
            del self._lent[peer]
        assert self._source is not None
        self._source.revoke(lent.region)

    def _renew(self) -> None:
        """In a thread of its own: steps may take longer than a lease lasts."""
        while not self._is_closed.wait(self._lease_s / 3):
            with self._lock:
                lent = [each.region for each in self._lent.values()]
            for region in lent:
                # Its end came first: the process was stopped for that long. Peers will be refused, and ask for a link.
                with contextlib.suppress(RefusedError):
                    assert self._source is not None
                    self._source.renew(region, self._lease_s)

    # -- links

    def link(self, peer: int, version: int, descriptor: bytes) -> None:
        """Begin to make ready for pulls, so that the first one need not; `finished` tells of the end as `Joined`."""
        if self._known_version(peer) >= version:
            self._tell(partial(Joined, peer, version, "a link as new is there already"))
            return
        self._wanted[peer] = version
        if self._receiver is None:
            self._receiver = Receiver()
        if isinstance(self._buffer, SharedMemory) and not self._is_touched:
            self._is_touched = True
            threading.Thread(target=populate, args=(self._buffer.view,), name="kv-pages", daemon=True).start()
        connect = threading.Thread(target=self._connect, args=(peer, version, descriptor), daemon=True)
        connect.start()

    def unlink(self, peer: int, version: int) -> None:
        """Drop the link of this version, or of an older one, and give up what is being pulled by it."""
        if self._wanted.get(peer, version + 1) <= version:
            del self._wanted[peer]
        if (link := self._links.get(peer)) and link.version <= version:
            del self._links[peer]
            for of_peer, transfer in list(self._pulls.values()):
                if of_peer == peer:
                    transfer.cancel()

    @property
    def lent_to(self) -> list[int]:
        """The peers that may take KV from here."""
        with self._lock:
            return sorted(self._lent)

    def refusal(self, peer: int, version: int) -> str:
        """Why nothing can be pulled from there by the link of this version; empty if it can."""
        link = self._links.get(peer)
        if link is None:
            return f"there is no link with i{peer}"
        return "" if link.version == version else f"the link with i{peer} is of version {link.version}, not {version}"

    def _known_version(self, peer: int) -> int:
        link = self._links.get(peer)
        return max(self._wanted.get(peer, -1), link.version if link else -1)

    def _connect(self, peer: int, version: int, data: bytes) -> None:
        """In a thread of its own, as it waits for the peer: connect, map, and pull a block for trial."""
        assert self._receiver is not None
        try:
            descriptor = read_descriptor(data)
            with contextlib.suppress(Unreachable):  # It lies in no shared memory: trials connect.
                self._receiver.attach(descriptor, timeout_s=PULL_S)
            scratch = bytearray(min(self._block_bytes, descriptor.size_bytes))
            for _ in range(_TRIALS):
                self._receiver.pull(descriptor, [(0, 0, len(scratch))], scratch, timeout_s=PULL_S).result()
        except TransferError as error:
            self._tell(partial(self._joined, peer, version, None, str(error)))
        else:
            self._tell(partial(self._joined, peer, version, descriptor))

    def _joined(self, peer: int, version: int, descriptor: Descriptor | None, why: str = "") -> Joined | None:
        if self._wanted.get(peer) != version:
            return None  # Unlinked meanwhile, or replaced: nobody waits for it.
        del self._wanted[peer]
        if descriptor is not None:
            self._links[peer] = _Link(version, descriptor)
        return Joined(peer, version, why)

    # -- pulling

    def pull(self, sequence_id: int, peer: int, theirs: Sequence[int], ours: Sequence[int]) -> None:
        """Begin to copy blocks of a peer's into blocks of this instance's, one copy for a sequence at a time.

        `ours` must be nobody else's until `finished` has told of its end.
        """
        link, wanted = self._links.get(peer), ranges(theirs, ours, self._block_bytes)
        try:
            if link is None or self._receiver is None:
                raise Unreachable(f"there is no link with i{peer} any more")
            transfer = self._receiver.pull(
                link.descriptor, wanted, self._buffer, has_checksums=self._has_checksums, timeout_s=PULL_S
            )
        except TransferError as error:
            self._tell(partial(Pulled, sequence_id, str(error)))
            return
        self._pulls[sequence_id] = peer, transfer
        transfer.add_done_callback(lambda done: self._tell(partial(self._pulled, sequence_id, link, done)))

    def stop_pull(self, sequence_id: int) -> None:
        """Give a pull up; `finished` still tells of its end, and only then may its blocks be another's."""
        if sequence_id in self._pulls:
            self._pulls[sequence_id][1].cancel()

    def block_s(self, peer: int) -> float:
        """What pulling one block of many will take, by what was seen; 0 without a link."""
        link = self._links.get(peer)
        if link is None or self._receiver is None:
            return 0.0
        return self._receiver.predict_s(link.descriptor, _TYPICAL_BLOCKS * self._block_bytes) / _TYPICAL_BLOCKS

    def _pulled(self, sequence_id: int, link: _Link, transfer: Transfer) -> Pulled:
        peer, _ = self._pulls.pop(sequence_id)
        try:
            medium, size_bytes, seconds = transfer.result()
        except TransferError as error:
            if isinstance(error, RefusedError) and self._links.get(peer) is link:
                del self._links[peer]
                self._tell(partial(Joined, peer, link.version, str(error)))
            return Pulled(sequence_id, str(error))
        return Pulled(sequence_id, "", size_bytes, seconds, medium)

    # -- what has ended

    @property
    def has_ended(self) -> bool:
        """Whether `finished` has something to say."""
        return bool(self._ended)

    def finished(self) -> list[Joined | Pulled]:
        """What has ended since it was asked last."""
        if not self._ended:
            return []
        with self._lock:
            os.eventfd_read(self.fd)
            ended = list(self._ended)
            self._ended.clear()
        return [each for end in ended if (each := end()) is not None]

    def _tell(self, end: Callable[[], Joined | Pulled | None]) -> None:
        """From any thread. What it does to this object is done when the owner asks."""
        with self._lock:
            if self._is_closed.is_set():  # The descriptor may be another's by now.
                return
            self._ended.append(end)
            os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        """Lend and pull no more; when this returns, nothing is copied to here any more."""
        with self._lock:
            self._is_closed.set()
        if self._renewing is not None:
            self._renewing.join()
        if self._receiver is not None:
            self._receiver.close()
        if self._source is not None:
            self._source.close()
        os.close(self.fd)
