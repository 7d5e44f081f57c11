"""A receiver's sockets to sources: opened when needed, kept for the next pull, thrown away when anything went wrong.

Knows how to ask and who is to blame for no answer; what is asked is the caller's.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from hyperflexis.transfer.descriptor import Descriptor
from hyperflexis.transfer.door import set_timeout, shut_down
from hyperflexis.transfer.errors import BY_NAME, PeerLost, TransferError, Unreachable
from hyperflexis.transfer.handle import Transfer
from hyperflexis.transfer.protocol import (
    LENGTH,
    Answer,
    Claim,
    Opened,
    ProtocolError,
    Refused,
    Request,
    Told,
    frame,
    receive_answer,
    send_all,
)

IDLE_MAX = 4
"""Connections kept per source."""
CONNECT_S = 5.0
SILENCE_S = 10.0
"""A source in the middle of an answer that says nothing for so long is taken for lost."""
_FDS_MAX = 4

Address = tuple[str, int]
"""Host and port, or the name of a Unix socket and 0."""


class Heard(NamedTuple):
    """A first answer."""

    sock: socket.socket
    answer: Answer
    fds: list[int]


class Connections:
    """Thread-safe. `me` names this receiver to sources, which serve their peers in turns."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._lock = threading.Lock()
        self._idle: dict[Address, list[socket.socket]] = {}
        self._is_closed = False

    def claim(self, descriptor: Descriptor) -> Claim:
        return Claim(descriptor.token, descriptor.region, descriptor.generation, self._me)

    @contextmanager
    def ask(self, address: Address, request: Request, transfer: Transfer) -> Iterator[Heard]:
        """Send a request, wait for the first answer; the rest of it is read within the block.

        Raises:
            Unreachable: nobody listens there.
            RefusedError, BadDescriptor, BadRanges: the owner says so.
            PeerLost: the connection ended, also within the block.
        """
        heard = self.open(address, request, transfer)
        try:
            with transfer.interrupted_by(lambda: shut_down(heard.sock)), blamed(transfer):
                yield heard
        except BaseException:
            heard.sock.close()
            raise
        finally:
            for fd in heard.fds:
                os.close(fd)
        self._keep(address, heard.sock)

    def open(self, address: Address, request: Request, transfer: Transfer) -> Heard:
        """The same for a socket that the caller keeps."""
        heard = self._first_answer(address, request, transfer)
        if isinstance(heard.answer, Refused):
            self._keep(address, heard.sock)
            raise refusal(heard.answer, transfer.descriptor)
        return heard

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, {}
        for socks in idle.values():
            for sock in socks:
                sock.close()

    def _first_answer(self, address: Address, request: Request, transfer: Transfer) -> Heard:
        kept = self._take_idle(address)
        if kept is not None:
            try:
                return self._hear(kept, request, transfer)
            except PeerLost:
                # It may have ended while it lay here; a new one tells.
                transfer.check()
        return self._hear(connect(address, transfer), request, transfer)

    def _hear(self, sock: socket.socket, request: Request, transfer: Transfer) -> Heard:
        try:
            with transfer.interrupted_by(lambda: shut_down(sock)), blamed(transfer):
                send_all(sock, [frame(request)])
                # Others may be served first, which the caller's own limit of time is for.
                set_timeout(sock, socket.SO_RCVTIMEO, 0)
                heard = receive_with_fds(sock)
                set_timeout(sock, socket.SO_RCVTIMEO, SILENCE_S)
                return heard
        except BaseException:
            sock.close()
            raise

    def _take_idle(self, address: Address) -> socket.socket | None:
        while True:
            with self._lock:
                idle = self._idle.get(address)
                sock = idle.pop() if idle else None
                if idle is not None and not idle:
                    del self._idle[address]
            if sock is None or _is_quiet(sock):
                return sock
            sock.close()

    def _keep(self, address: Address, sock: socket.socket) -> None:
        with self._lock:
            idle = self._idle.get(address, [])
            if sock.fileno() >= 0 and not self._is_closed and len(idle) < IDLE_MAX:
                self._idle.setdefault(address, idle).append(sock)
                return
        sock.close()


def connect(address: Address, transfer: Transfer) -> socket.socket:
    """Open a new connection.

    Raises:
        Unreachable: nobody listens there, or answers in time.
    """
    host, port = address
    try:
        if port:
            family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        else:
            family, target = socket.AF_UNIX, "\0" + host  # type: ignore[assignment]  # the family's own kind
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise Unreachable(f"{transfer.descriptor.owner} has no usable address: {error}") from error
    try:
        set_timeout(sock, socket.SO_SNDTIMEO, CONNECT_S)
        with transfer.interrupted_by(lambda: shut_down(sock)):
            sock.connect(target)
        if port:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _keep_alive(sock)
    except OSError as error:
        sock.close()
        transfer.check()
        raise Unreachable(f"{transfer.descriptor.owner} does not answer: {error}; it may have ended") from error
    except BaseException:
        sock.close()
        raise
    return sock


def _keep_alive(sock: socket.socket) -> None:
    """Notice a host that is gone also while waiting for its turn."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3)):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def refusal(answer: Refused, descriptor: Descriptor) -> TransferError:
    """The owner's word as an error of this side."""
    error = BY_NAME.get(answer.error)
    if error is None:
        return PeerLost(f"{descriptor.owner} refused {descriptor} without a known reason: {answer.reason[:200]}")
    return error(answer.reason)


@contextmanager
def blamed(transfer: Transfer) -> Iterator[None]:
    """A conversation that breaks is the peer's end, unless this side has broken it."""
    try:
        yield
    except (OSError, EOFError, ProtocolError) as error:
        transfer.check()
        reason = f"it said nothing for {SILENCE_S:.0f} s" if isinstance(error, BlockingIOError) else str(error)
        raise PeerLost(
            f"{transfer.descriptor.owner} was lost during the pull of {transfer.descriptor}: {reason}"
        ) from error


def receive_with_fds(sock: socket.socket) -> Heard:
    first, fds, _, _ = socket.recv_fds(sock, LENGTH.size, _FDS_MAX, socket.MSG_CMSG_CLOEXEC | socket.MSG_WAITALL)
    try:
        if not first:
            raise EOFError("it has closed the connection")
        answer = receive_answer(sock, first)
        if fds and not isinstance(answer, Opened | Told):
            raise ProtocolError("it sent files that nobody asked for")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return Heard(sock, answer, fds)


def _is_quiet(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLRDHUP)
    return not poll.poll(0)
