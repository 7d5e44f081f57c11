"""A directory through which a gateway finds what the one before it has left: a lock, and a socket that a zygote has.

One gateway at a time holds the lock, as long as it lives. The directory is its owner's alone, so that nobody else can
connect, or put a socket of his own there; both ends look at each other's user besides. Knows nothing of what is said.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from pathlib import Path
from typing import NamedTuple

SOCKET_NAME = "zygote.sock"
_CREDENTIALS = struct.Struct("iII")


class KeepError(Exception):
    """The directory, or what it keeps, cannot be used; the message and the hint are for an operator."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


class InUseError(KeepError):
    """Another gateway has it."""


class Peer(NamedTuple):
    """The process at the other end of a Unix socket; of one that listens, as it was when it began to."""

    pid: int
    uid: int
    gid: int


def peer_of(sock: socket.socket) -> Peer:
    """Who the kernel says that it is."""
    return Peer(*_CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)))


class Keep:
    """Held from its making to `close`, or to the end of this process."""

    def __init__(self, directory: Path, timeout_s: float) -> None:
        """Make the directory if there is none, and hold it. `timeout_s`: how long what is left waits for a successor.

        Raises:
            InUseError: another gateway holds it.
            KeepError: it cannot be made, or others may use it.
        """
        self.directory = directory
        self.timeout_s = timeout_s
        try:
            with contextlib.suppress(FileExistsError):
                directory.mkdir(0o700)
            self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise KeepError(f"{directory} cannot be used to keep instances: {error.strerror}") from error
        try:
            self._check()
            self._lock()
        except KeepError:
            os.close(self._fd)
            raise

    def _check(self) -> None:
        known = os.fstat(self._fd)
        if known.st_uid != os.geteuid():
            raise KeepError(
                f"{self.directory} belongs to user {known.st_uid}, who could take the instances over",
                "name one of your own, or one that is not there yet",
            )
        mode = stat.S_IMODE(known.st_mode)
        if mode & 0o077:
            raise KeepError(
                f"{self.directory} is open to other users (mode {mode:o}), who could take the instances over",
                f"chmod 700 {self.directory}",
            )

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(
                f"{self.directory} is in use: the instances there have a gateway", "stop that one first"
            ) from None

    def connect(self) -> socket.socket | None:
        """Return a connection with a zygote that was left here; None if there is none.

        Raises:
            KeepError: what answers is another user's.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(self._address)
        except OSError as error:
            sock.close()
            if error.errno not in {errno.ENOENT, errno.ECONNREFUSED}:
                raise KeepError(f"{self.directory / SOCKET_NAME} cannot be used: {error.strerror}") from error
            return None
        if (uid := peer_of(sock).uid) != os.geteuid():
            sock.close()
            raise KeepError(f"{self.directory / SOCKET_NAME} is answered by another user ({uid})")
        return sock

    def bind(self) -> socket.socket:
        """Return a socket for a zygote to listen on, in place of one that nobody answers on."""
        self.empty()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        os.fchmod(sock.fileno(), 0o600)  # Of the file too, from its first moment.
        sock.bind(self._address)
        return sock

    def empty(self) -> None:
        """Nothing is kept here any more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET_NAME, dir_fd=self._fd)

    @property
    def _address(self) -> str:
        """By the descriptor: this very directory, whatever its name leads to now, and however long that is."""
        return f"/proc/self/fd/{self._fd}/{SOCKET_NAME}"

    def close(self) -> None:
        """Let others have it. What it keeps stays."""
        os.close(self._fd)
