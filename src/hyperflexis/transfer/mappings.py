"""What a receiver keeps of sources on its host: whatever it mapped, while the socket through which it came is open.

That socket carries nothing more; it ends when the source does, and so what is kept of the dead is dropped.
"""

from __future__ import annotations

import select
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

MAPPINGS_MAX = 64

T = TypeVar("T")
Key = tuple[str, int]
"""A source, and a number of its own for what is mapped."""


class Mappings(Generic[T]):
    """Thread-safe. What is dropped stays valid for whoever still uses it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, tuple[socket.socket, T]] = OrderedDict()
        self._sockets = select.poll()

    def __contains__(self, key: Key) -> bool:
        with self._lock:
            return key in self._kept

    def get(self, key: Key, make: Callable[[], tuple[socket.socket, T]]) -> T:
        """Return what is kept, or make it; `make` may take its time and may fail."""
        with self._lock:
            self._drop_the_dead()
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][1]
        sock, made = make()
        with self._lock:
            if key in self._kept:
                sock.close()
                return self._kept[key][1]
            self._kept[key] = sock, made
            self._sockets.register(sock, select.POLLRDHUP)
            if len(self._kept) > MAPPINGS_MAX:
                self._drop(next(iter(self._kept)))
            return made

    def close(self) -> None:
        with self._lock:
            for key in list(self._kept):
                self._drop(key)

    def _drop_the_dead(self) -> None:
        dead = {fd for fd, _ in self._sockets.poll(0)}
        for key in [key for key, (sock, _) in self._kept.items() if dead and sock.fileno() in dead]:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        sock, _ = self._kept.pop(key)
        self._sockets.unregister(sock)
        sock.close()
