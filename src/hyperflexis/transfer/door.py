"""A source's listening sockets and connections: one thread that reads requests and gives short answers at once.

Peers are strangers until their request is read: it must come whole within seconds and within a size, and what is no
request ends the connection. Idle and slow peers cost a socket, never a thread. Knows requests only as values to pass
on; a connection whose request takes work is lent to whoever does it, and comes back by `take_back`.
"""

from __future__ import annotations

import logging
import os
import select
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from hyperflexis.transfer.protocol import LENGTH, REQUEST_BYTES_MAX, ProtocolError, Request, read_request

log = logging.getLogger(__name__)

_PAUSE_S = 0.2
"""Before the next try to accept when the process has no descriptor left."""
_BACKLOG = 128
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """What strangers may take."""

    connections_max: int = 256
    """Further ones wait in the kernel's queue."""
    request_s: float = 5.0
    """From a request's first byte (for the first request: from the connection's start) to its last."""
    idle_s: float = 300.0
    """Between two requests; a peer that is closed out connects again."""
    silence_s: float = 10.0
    """The most that one write waits for a peer that does not read."""


class Reply(NamedTuple):
    """An answer that can be given at once."""

    data: bytes
    fds: tuple[int, ...] = ()
    is_last: bool = False
    """The connection ends with it."""


class Connection:
    """A peer's socket and what has been read of its next request."""

    def __init__(self, sock: socket.socket, until_s: float) -> None:
        self.sock = sock
        self.inbox = bytearray()
        self.until_s = until_s
        self.is_lent = False

    def has_left(self) -> bool:
        """The peer has closed it: nobody reads what would be sent."""
        poll = select.poll()
        poll.register(self.sock, select.POLLRDHUP)
        return bool(poll.poll(0))


class Door:
    """`answer` is called in the door's thread: it must not block. None: it has taken the connection as a loan."""

    def __init__(
        self,
        listeners: list[socket.socket],
        answer: Callable[[Connection, Request], Reply | None],
        limits: DoorLimits,
        name: str,
    ) -> None:
        self._listeners = listeners
        self._answer = answer
        self._limits = limits
        self._selector = selectors.DefaultSelector()
        self._connections: set[Connection] = set()
        self._returned: deque[tuple[Connection, bool]] = deque()
        self._accepts_from_s = 0.0
        self._is_listening = False
        self._is_closed = False
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake_fd, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def take_back(self, connection: Connection, is_usable: bool) -> None:
        """The loan is over. From any thread."""
        self._returned.append((connection, is_usable))
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Stop listening, and end all conversations: whoever has a connection on loan finds it shut down."""
        self._is_closed = True
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join()
        for connection in self._connections:
            shut_down(connection.sock)

    def release(self) -> None:
        """After `close`, when nothing is on loan any more."""
        for connection in self._connections:
            connection.sock.close()
        self._connections.clear()
        self._selector.close()
        os.close(self._wake_fd)

    # -- in the door's thread

    def _run(self) -> None:
        while not self._is_closed:
            self._listen_if_there_is_room()
            for key, _ in self._selector.select(self._wait_s()):
                if key.fileobj is self._wake_fd:
                    os.eventfd_read(self._wake_fd)
                elif key.data is None:
                    self._accept(key.fileobj)  # type: ignore[arg-type]  # registered without data are listeners only
                else:
                    self._read(key.data)
            while self._returned:
                self._welcome(*self._returned.popleft())
            self._drop_the_late()
        for listener in self._listeners:
            listener.close()

    def _wait_s(self) -> float | None:
        now = time.monotonic()
        instants = [each.until_s for each in self._connections if not each.is_lent]
        if self._accepts_from_s > now:
            instants.append(self._accepts_from_s)
        return max(0.0, min(instants) - now) if instants else None

    def _listen_if_there_is_room(self) -> None:
        has_room = len(self._connections) < self._limits.connections_max
        should = has_room and time.monotonic() >= self._accepts_from_s
        if should == self._is_listening:
            return
        for listener in self._listeners:
            if should:
                self._selector.register(listener, selectors.EVENT_READ)
            else:
                self._selector.unregister(listener)
        self._is_listening = should

    def _accept(self, listener: socket.socket) -> None:
        if len(self._connections) >= self._limits.connections_max:
            return
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            log.warning("no connection can be accepted: %s", error)
            self._accepts_from_s = time.monotonic() + _PAUSE_S
            return
        set_timeout(sock, socket.SO_SNDTIMEO, self._limits.silence_s)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        connection = Connection(sock, time.monotonic() + self._limits.request_s)
        self._connections.add(connection)
        self._selector.register(sock, selectors.EVENT_READ, connection)

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        if not connection.inbox:
            connection.until_s = time.monotonic() + self._limits.request_s
        connection.inbox += data
        try:
            self._serve(connection)
        except ProtocolError as error:
            log.warning("a peer was dropped: %s", error)
            self._drop(connection)

    def _serve(self, connection: Connection) -> None:
        inbox = connection.inbox
        if len(inbox) < LENGTH.size:
            return
        end = LENGTH.size + LENGTH.unpack_from(inbox)[0]
        if end > REQUEST_BYTES_MAX:
            raise ProtocolError(f"a request of {end} bytes was announced (at most {REQUEST_BYTES_MAX})")
        if len(inbox) < end:
            return
        if len(inbox) > end:
            raise ProtocolError("a second request came before the answer to the first")
        request = read_request(bytes(inbox[LENGTH.size :]))
        connection.inbox = bytearray()
        self._selector.unregister(connection.sock)
        connection.is_lent = True
        connection.sock.setblocking(True)
        try:
            reply = self._answer(connection, request)
        except Exception:
            # A bug in answering one peer must not keep out all.
            log.exception("a request could not be answered")
            self._close(connection)
            return
        if reply is not None:
            connection.sock.setblocking(False)
            self._welcome(connection, _send(connection.sock, reply))

    def _welcome(self, connection: Connection, is_usable: bool) -> None:
        if not is_usable:
            self._close(connection)
            return
        connection.is_lent = False
        connection.until_s = time.monotonic() + self._limits.idle_s
        connection.sock.setblocking(False)
        self._selector.register(connection.sock, selectors.EVENT_READ, connection)

    def _drop_the_late(self) -> None:
        now = time.monotonic()
        for connection in [each for each in self._connections if not each.is_lent and each.until_s <= now]:
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self._selector.unregister(connection.sock)
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        self._connections.remove(connection)
        connection.sock.close()


def _send(sock: socket.socket, reply: Reply) -> bool:
    """Without blocking: a peer that has just asked has room for a short answer, or is not worth waiting for."""
    try:
        sent = socket.send_fds(sock, [reply.data], reply.fds) if reply.fds else sock.send(reply.data)
    except OSError:
        return False
    return sent == len(reply.data) and not reply.is_last


def listen_unix(name: str) -> socket.socket:
    """Listen on an abstract name: it leaves no file behind."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    return _listening(sock, "\0" + name)


def listen_tcp(host: str, port: int = 0) -> socket.socket:
    """Listen on this port; 0: on one that the kernel chooses.

    Raises:
        OSError: the host's name or address is none of this machine's, or the port is taken.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    # A port that was named is wanted again by whoever follows, whatever connections of the last one linger.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1 if port else 0)
    return _listening(sock, address)


def _listening(sock: socket.socket, address: object) -> socket.socket:
    try:
        sock.bind(address)  # type: ignore[arg-type]  # of the family that the socket was made for
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def set_timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """Bound blocking calls in the kernel (0: not at all). Python's own time-outs would poll before each call."""
    whole = int(seconds)
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", whole, int((seconds - whole) * 1e6)))


def shut_down(sock: socket.socket) -> None:
    """Wake every thread that waits for this socket; closing would not."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        log.debug("a socket was closed already")
