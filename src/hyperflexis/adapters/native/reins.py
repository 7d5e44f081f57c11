"""How a zygote gives an instance whose gateway has gone another one: an order as for a fork, and a stream with it.

Two ends of a socket that was made before the fork.
"""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

from hyperflexis.adapters.native.messages import DATAGRAM_BYTES_MAX, Fork, ToZygote, decode_to_zygote, encode

STDERR = 2


class Adoption(NamedTuple):
    """What an instance is to be from now on, and for whom."""

    order: Fork
    sock: socket.socket


def offer(reins: socket.socket, order: Fork, sock: socket.socket) -> bool:
    """Give an instance another gateway; False if it is not there any more. What it logs goes where ours does."""
    try:
        socket.send_fds(reins, [encode(order)], [sock.fileno(), STDERR])
    except OSError:
        return False
    return True


def accept(reins: socket.socket) -> Adoption | None:
    """Wait for another gateway; None if the zygote has gone."""
    data, fds, _, _ = socket.recv_fds(reins, DATAGRAM_BYTES_MAX, 2, socket.MSG_CMSG_CLOEXEC)
    if not data:
        return None
    order: ToZygote = decode_to_zygote(data)
    assert isinstance(order, Fork), f"an instance is told {order}"
    stream, stderr = fds
    log_to(stderr)
    return Adoption(order, socket.socket(fileno=stream))


def log_to(stderr: int) -> None:
    """Let what this process says to people go there; the descriptor is used up."""
    os.dup2(stderr, STDERR)
    os.close(stderr)
