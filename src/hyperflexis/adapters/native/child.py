"""A process that is forked to do one thing and to say what came of it, so that its parent stays clean of it."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable

from hyperflexis.adapters.native.lineage import die_with_parent, exit_in_words
from hyperflexis.adapters.native.messages import DATAGRAM_BYTES_MAX

log = logging.getLogger(__name__)


class Child:
    """It speaks in datagrams, to which one file may be added. The parent must wait for it, by `end`."""

    def __init__(self, life: Callable[[socket.socket], None]) -> None:
        """Fork. `life` is all that the child does, with its end of the socket."""
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent_pid = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self.sock.close()
            _live(life, theirs, parent_pid)
        theirs.close()

    def hear(self) -> tuple[bytes, int | None]:
        """Wait for what it says next, and the file that came with it; nothing once it has ended."""
        data, fds, _, _ = socket.recv_fds(self.sock, DATAGRAM_BYTES_MAX, 1, socket.MSG_CMSG_CLOEXEC)
        return data, fds[0] if fds else None

    def end(self) -> str:
        """Let go of it and wait; return how it ended, in words."""
        # Not only closed: processes that were forked meanwhile may have it too.
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        _, status = os.waitpid(self.pid, 0)
        return exit_in_words(os.waitstatus_to_exitcode(status))


def _live(life: Callable[[socket.socket], None], sock: socket.socket, parent_pid: int) -> None:
    """The child's whole life; it never returns into what its parent was doing."""
    status = 1
    try:
        die_with_parent(parent_pid)
        life(sock)
        status = 0
    except Exception:  # The last supervisor of this process: whatever it is, say it and end.
        log.exception("a child of the engine's process fails")
    finally:
        os._exit(status)
