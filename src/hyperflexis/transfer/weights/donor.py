"""The donor's side: lends one buffer of weights, whole or still being filled, and what was put beside it.

Answers `Join` in its source's thread. A recipient that wants other weights is declined with the reason; one on the same
host, of the same user, is handed the sealed memory itself; all others get descriptors and pull. Knows no files.
"""

from __future__ import annotations

import math
import os
import secrets
import socket
import struct
import threading

from hyperflexis.transfer.door import Connection, Reply
from hyperflexis.transfer.errors import RefusedError
from hyperflexis.transfer.medium import Buffer
from hyperflexis.transfer.memory import SharedMemory
from hyperflexis.transfer.place import here
from hyperflexis.transfer.region import Region
from hyperflexis.transfer.source import Source, SourceLimits
from hyperflexis.transfer.watermark import Watermark
from hyperflexis.transfer.weights.identity import Identity
from hyperflexis.transfer.weights.joining import MANIFEST, WEIGHTS, Accept, Decline, Join, Said, Unproved, check, prove
from hyperflexis.transfer.weights.manifest import Manifest
from hyperflexis.transfer.weights.offer import VERSION, Offer

_CREDENTIALS = struct.Struct("3i")
"""Process, user and group at the other end of a Unix socket."""


class Donor:
    """Thread-safe. Ends with `close`."""

    def __init__(
        self, *, secret: bytes = b"", tcp_host: str | None = None, tcp_port: int = 0, bytes_per_s: float = math.inf
    ) -> None:
        """Begin to listen, on this host at least.

        Args:
            secret: what lets recipients in; empty: a random one, that the offer carries.
            tcp_host: the address for other hosts; None: none.
            bytes_per_s: so much is sent at most, so that what else this machine does is hardly slowed.

        Raises:
            OSError: it cannot listen there.
        """
        self._secret = secret or secrets.token_bytes(16)
        self._place = here()
        self._lock = threading.Lock()
        self._is_closed = False
        self._identity: Identity | None = None
        self._memory: SharedMemory | None = None
        self._parts: dict[str, Region] = {}
        self._source = Source(tcp_host, SourceLimits(bytes_per_s=bytes_per_s), tcp_port=tcp_port, answer=self._answer)

    @property
    def offer(self) -> Offer:
        return Offer(VERSION, self._source.owner, self._secret, self._place, self._source.unix, self._source.tcp)

    def fill(self, identity: Identity, view: memoryview, watermark: Watermark) -> None:
        """Lend what is settled of a buffer that is being filled; what was lent before is taken back."""
        self._lend(identity, None, view, watermark)

    def lend(self, identity: Identity, memory: SharedMemory) -> None:
        """Lend a whole buffer, sealed against writing. Who pulls from it while it was being filled may go on."""
        self._lend(identity, memory, memory, None)

    def put(self, name: str, data: bytes) -> None:
        """Give this along, under a name; what had the name before is pulled no more."""
        self._expose(name, data, None)

    def publish(self, manifest: Manifest) -> None:
        """Say what the weights' digests are."""
        self.put(MANIFEST, manifest.digests)

    def withdraw(self) -> None:
        """Lend no weights, and say no digests, until `fill` or `lend`: the buffer is being overwritten."""
        with self._lock:
            self._identity = self._memory = None
            gone = [self._parts.pop(name) for name in (WEIGHTS, MANIFEST) if name in self._parts]
        for region in gone:
            self._source.revoke(region)

    def close(self) -> None:
        """End all conversations. Twice is once."""
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
        if not was_closed:
            self._source.close()

    def _lend(
        self, identity: Identity, memory: SharedMemory | None, buffer: Buffer, watermark: Watermark | None
    ) -> None:
        with self._lock:
            was_filling = self._parts[WEIGHTS] if memory is not None and WEIGHTS in self._parts else None
            if was_filling is not None:
                # The bytes are the same ones, and stay: only newcomers are led to the sealed memory.
                del self._parts[WEIGHTS]
            self._identity, self._memory = identity, memory
        self._expose(WEIGHTS, buffer, watermark)

    def _expose(self, name: str, buffer: Buffer, watermark: Watermark | None) -> None:
        region = self._source.expose(buffer, math.inf, name, watermark)
        with self._lock:
            before = self._parts.get(name)
            self._parts[name] = region
        if before is not None:
            self._source.revoke(before)

    # -- in the source's thread

    def _answer(self, connection: Connection, payload: bytes) -> Reply:
        try:
            join = check(payload, self._secret)
        except Unproved as error:
            return Reply(prove(Decline(str(error)), self._secret), is_last=True)
        if not isinstance(join, Join):
            return Reply(prove(Decline("that was no question"), self._secret), is_last=True)
        said, memory = self._decide(join)
        has_memory = memory is not None and join.wants_memory and _is_own_user(connection.sock)
        fds = (memory.fd,) if memory is not None and has_memory else ()
        return Reply(prove(said, self._secret, join.nonce), fds)

    def _decide(self, join: Join) -> tuple[Said, SharedMemory | None]:
        with self._lock:
            identity, memory, parts = self._identity, self._memory, dict(self._parts)
        if identity is None:
            return Decline(f"{self._source.owner} has no weights now"), None
        unlike = identity.unlike(join.identity) if join.identity is not None else ""
        if unlike:
            return Decline(f"{self._source.owner} has {unlike}"), None
        try:
            described = {name: self._source.describe(region) for name, region in parts.items()}
        except RefusedError as error:
            return Decline(f"{self._source.owner} has just taken its weights back: {error}"), None
        return Accept(self._source.owner, self._place, self._source.unix, identity, described), memory


def _is_own_user(sock: socket.socket) -> bool:
    """Whether the peer is on this host and of the user that this process runs as."""
    if sock.family != socket.AF_UNIX:
        return False
    _, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(user == os.geteuid())
