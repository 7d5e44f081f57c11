"""A recipient that a donor has accepted: what it may pull, and the memory itself where it was handed over."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from typing import NamedTuple

from hyperflexis.transfer.connections import Address, receive_with_fds
from hyperflexis.transfer.door import set_timeout
from hyperflexis.transfer.errors import BadDescriptor, Corrupt, Declined, PeerLost, TransferError, Unreachable
from hyperflexis.transfer.place import here
from hyperflexis.transfer.protocol import Ask, ProtocolError, Refused, Told, frame, send_all
from hyperflexis.transfer.receiver import Receiver
from hyperflexis.transfer.weights.identity import Identity
from hyperflexis.transfer.weights.joining import MANIFEST, Accept, Decline, Join, Unproved, check, fresh_nonce, prove
from hyperflexis.transfer.weights.manifest import Manifest
from hyperflexis.transfer.weights.offer import Offer

PART_BYTES_MAX = 1 << 28
"""Of what goes along with weights: manifests of terabytes and every known tokenizer are smaller."""
_SEALED = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Patience(NamedTuple):
    """How long a donor may be silent before the next one is asked."""

    join_s: float = 2.0
    chunk_s: float = 10.0


class Joined:
    """Owns the memory that it was handed, until that is taken. Ends with `close`."""

    def __init__(self, accept: Accept, fd: int | None) -> None:
        self.accept = accept
        self._fd = fd

    def take_memory(self) -> int | None:
        """The descriptor of the donor's memory, from now on the caller's.

        Raises:
            Corrupt: somebody could still write to it, or it has another size.
        """
        fd, self._fd = self._fd, None
        if fd is None:
            return None
        try:
            size_bytes = os.fstat(fd).st_size
            if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALED != _SEALED or size_bytes != self.accept.identity.size_bytes:
                raise Corrupt(
                    f"{self.accept.owner} gave memory of {size_bytes} bytes that is not sealed as it should be"
                )
        except OSError as error:
            os.close(fd)
            raise Corrupt(f"{self.accept.owner} gave something else than memory ({error})") from error
        except Corrupt:
            os.close(fd)
            raise
        return fd

    def part(self, name: str, receiver: Receiver, patience: Patience) -> bytes | None:
        """Pull what goes along under this name; None if there is nothing.

        Raises:
            TransferError: it cannot be had, or is too large.
        """
        descriptor = self.accept.parts.get(name)
        if descriptor is None:
            return None
        if descriptor.size_bytes > PART_BYTES_MAX:
            raise BadDescriptor(f"{descriptor} has {descriptor.size_bytes} bytes, more than anything that goes along")
        data = bytearray(descriptor.size_bytes)
        whole = [(0, 0, len(data))]
        receiver.pull(descriptor, whole, data, has_checksums=True, timeout_s=patience.chunk_s).result()
        return bytes(data)

    def manifest(self, receiver: Receiver, patience: Patience) -> Manifest | None:
        """What the donor says of its chunks; None if it does not know them (yet).

        Raises:
            TransferError: it cannot be had, or speaks of other weights.
        """
        digests = self.part(MANIFEST, receiver, patience)
        if digests is None:
            return None
        manifest = Manifest(digests)
        if not manifest.fits(self.accept.identity.size_bytes):
            raise Corrupt(f"{self.accept.owner} has digests of something else than its weights")
        return manifest

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def join(offer: Offer, identity: Identity | None, *, wants_memory: bool, patience: Patience) -> Joined:
    """Ask a donor for weights.

    Raises:
        Declined: it has others, or lets only those in who have its secret.
        WorldError: it cannot be reached, or is silent.
    """
    failure: TransferError = Unreachable(f"{offer} has no address that leads there from here; let it listen on TCP")
    for address in _addresses(offer):
        try:
            joined = _ask(address, offer, identity, wants_memory, patience)
        except Unreachable as error:
            failure = error
            continue
        if not wants_memory or not address[1] or not here().shares_memory_with(joined.accept.place):
            return joined
        # Found through the network, and yet a neighbour: ask again where memory can be handed over.
        joined.close()
        return _ask((joined.accept.unix, 0), offer, identity, wants_memory, patience)
    raise failure


def _addresses(offer: Offer) -> Iterator[Address]:
    if offer.unix and here().shares_memory_with(offer.place):
        yield offer.unix, 0
    if offer.tcp is not None:
        yield offer.tcp


def _ask(address: Address, offer: Offer, identity: Identity | None, wants_memory: bool, patience: Patience) -> Joined:
    nonce = fresh_nonce()
    question = frame(Ask(prove(Join(nonce, identity, wants_memory), offer.secret)))
    with _connected(address, offer, patience.join_s) as sock:
        try:
            send_all(sock, [question])
            _, answer, fds = receive_with_fds(sock)
        except BlockingIOError as error:
            raise PeerLost(f"{offer} gave no answer within {patience.join_s:g} s") from error
        except (OSError, EOFError, ProtocolError) as error:
            raise PeerLost(f"{offer} was lost while it was asked: {error}") from error
    try:
        return _accepted(answer, offer, identity, nonce, fds)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _accepted(answer: object, offer: Offer, identity: Identity | None, nonce: bytes, fds: list[int]) -> Joined:
    if isinstance(answer, Refused):
        raise Declined(f"{offer} is no donor: {answer.reason[:200]}")
    if not isinstance(answer, Told) or len(fds) > 1:
        raise PeerLost(f"{offer} answered something else than it was asked")
    try:
        said = check(answer.payload, offer.secret, nonce)
    except Unproved as error:
        raise Declined(f"{offer} cannot be believed: {error}") from error
    if not isinstance(said, Accept):
        raise Declined(said.reason if isinstance(said, Decline) else f"{offer} answered with a question")
    unlike = said.identity.unlike(identity) if identity is not None else ""
    if unlike:
        raise Declined(f"{offer} accepted, and yet has {unlike}")
    return Joined(said, fds[0] if fds else None)


def _connected(address: Address, offer: Offer, wait_s: float) -> socket.socket:
    host, port = address
    try:
        if port:
            family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        else:
            family, target = socket.AF_UNIX, "\0" + host  # type: ignore[assignment]  # the family's own kind
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise Unreachable(f"{offer} has no usable address: {error}") from error
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
        set_timeout(sock, option, wait_s)
    try:
        sock.connect(target)
    except OSError as error:
        sock.close()
        raise Unreachable(f"{offer} does not answer: {error}; it may have ended") from error
    return sock
