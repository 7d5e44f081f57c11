"""A process that has imported everything an instance needs and then only forks: an instance starts in milliseconds.

Rules that keep a fork safe: one thread, no event loop, no computing with tensors, no accelerator touched; whatever
needs those happens in children. It dies with its parent, and its children with it, whatever kills the parent; unless it
was given a socket to listen on. Then it outlives its gateway for a while, and so do its instances, for another one to
take them over.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import select
import signal
import socket
import time
from dataclasses import dataclass
from typing import NoReturn

from hyperflexis import __version__
from hyperflexis.adapters.native import instance, loading, reins
from hyperflexis.adapters.native.child import Child
from hyperflexis.adapters.native.keep import peer_of
from hyperflexis.adapters.native.lineage import die_with_parent
from hyperflexis.adapters.native.messages import (
    DATAGRAM_BYTES_MAX,
    Dismiss,
    Exited,
    Fork,
    Forked,
    FromZygote,
    Greeting,
    Load,
    LoadFailed,
    Orphan,
    Orphans,
    Profile,
    TakeOver,
    decode_to_zygote,
    encode,
)
from hyperflexis.adapters.native.words import words

log = logging.getLogger(__name__)


ORPHAN = 0
"""In place of a fork's number: no gateway knows of it."""


@dataclass(slots=True)
class _Forked:
    """A living instance."""

    pid: int
    number: int
    device: str
    reins: socket.socket | None
    """By which it can be given another gateway."""


class Zygote:
    """Answers `Load` and `Fork` on its control socket and tells of every instance that ends."""

    def __init__(self, control: socket.socket, listener: socket.socket | None = None, timeout_s: float = 0.0) -> None:
        """With a `listener`, which is bound, it waits there for another gateway when it has lost one, for so long."""
        self._control: socket.socket | None = control
        self._listener = listener
        self._timeout_s = timeout_s
        self._has_gateway = True
        """Else whoever is connected has only come to look."""
        self._ends_s = math.inf
        """When it has waited long enough."""
        self._order: Load | None = None
        self._model: loading.Model | None = None
        self._news: list[bytes] = []
        """What was said of the weights; the next gateway hears it too."""
        self._keeper: Child | None = None
        self._children: dict[int, _Forked] = {}
        """By the descriptor that becomes readable when it ends."""
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        if listener is not None:
            listener.listen()
        # What is alive now is shared with every child; a collection that wrote to it would copy its pages.
        gc.collect()
        gc.freeze()

    def say(self, message: FromZygote) -> None:
        self._tell(encode(message))

    def _tell(self, data: bytes) -> None:
        if self._control is not None and self._has_gateway:
            with contextlib.suppress(ConnectionError):  # The gateway has gone, of which it will be heard.
                self._control.send(data)

    def _say_of_weights(self, message: FromZygote) -> None:
        self._tell_of_weights(encode(message))

    def _tell_of_weights(self, data: bytes) -> None:
        self._news.append(data)
        self._tell(data)

    def serve(self) -> None:
        """Return when the gateway has closed the socket, and none is to come."""
        while (patience_s := self._ends_s - time.monotonic()) > 0 and self.turn(patience_s):
            pass

    def turn(self, patience_s: float) -> bool:
        """Wait up to so long for something to happen, and see to it; returns whether to go on."""
        for descriptor, _ in self._poll.poll(None if math.isinf(patience_s) else 1000 * patience_s + 1):
            if descriptor in self._children:
                self._reap(descriptor)
            elif self._keeper is not None and descriptor == self._keeper.sock.fileno():
                self._pass_on(self._keeper)
            elif self._listener is not None and descriptor == self._listener.fileno():
                self._admit(self._listener)
            elif not self._take() and not self._lose_gateway():
                return False
        return True

    def _take(self) -> bool:
        assert self._control is not None
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, DATAGRAM_BYTES_MAX, 1)
        except ConnectionError:
            return False
        if not data:
            return False
        message = decode_to_zygote(data)
        if isinstance(message, TakeOver):
            self._be_taken_over(message, descriptors[0])
        elif not self._has_gateway:
            return False
        elif isinstance(message, Load):
            self._load(message)
        elif isinstance(message, Profile):
            self._tell_keeper(data)
        elif isinstance(message, Dismiss):
            self._dismiss(message)
        else:
            self._start(message, socket.socket(fileno=descriptors[0]))
        return True

    # -- from one gateway to the next

    def _lose_gateway(self) -> bool:
        """Whoever was connected has gone; returns whether another one may come."""
        assert self._control is not None
        self._poll.unregister(self._control)
        self._control.close()
        self._control = None
        if self._listener is None or self._model is None:
            return False
        if self._has_gateway:
            self._has_gateway = False
            for each in self._children.values():
                each.number = ORPHAN
            self._ends_s = time.monotonic() + self._timeout_s
        self._poll.register(self._listener, select.POLLIN)
        return True

    def _admit(self, listener: socket.socket) -> None:
        """Let somebody look, one at a time; that alone gives nobody more time."""
        assert self._order is not None
        sock, _ = listener.accept()
        if peer_of(sock).uid != os.geteuid():
            sock.close()
            return
        self._poll.unregister(listener)
        self._poll.register(sock, select.POLLIN)
        self._control = sock
        with contextlib.suppress(ConnectionError):  # It has gone again, of which it will be heard.
            sock.send(encode(Greeting(words(), __version__, encode(self._order))))

    def _be_taken_over(self, message: TakeOver, stderr: int) -> None:
        reins.log_to(stderr)
        self._has_gateway, self._ends_s, self._timeout_s = True, math.inf, message.timeout_s
        self.say(Orphans([Orphan(each.pid, each.device) for each in self._children.values()]))
        for data in self._news:
            self._tell(data)

    def _dismiss(self, message: Dismiss) -> None:
        for each in self._children.values():
            if each.pid in message.orphans if each.number == ORPHAN else each.number == message.number:
                os.kill(each.pid, signal.SIGKILL)

    # -- weights

    def _load(self, order: Load) -> None:
        self._news = []
        outcome = loading.load(order, self._say_of_weights)
        if isinstance(outcome, LoadFailed):
            self.say(outcome)
            return
        if self._keeper is not None:
            self._bury_keeper(self._keeper)
        self._model, loaded, self._keeper = outcome
        self._order = order
        if self._keeper is not None:
            self._poll.register(self._keeper.sock, select.POLLIN)
        self._say_of_weights(loaded)

    # -- the process that lends the weights; all else goes on without it

    def _pass_on(self, keeper: Child) -> None:
        data, _ = keeper.hear()
        if data:
            self._tell_of_weights(data)
        else:
            log.warning("weights are lent no more: the process that did it %s", self._bury_keeper(keeper))

    def _tell_keeper(self, data: bytes) -> None:
        if self._keeper is not None:
            with contextlib.suppress(OSError):  # It has just ended, of which it will be heard.
                self._keeper.sock.send(data)

    def _bury_keeper(self, keeper: Child) -> str:
        self._poll.unregister(keeper.sock)
        self._keeper = None
        return keeper.end()

    # -- instances

    def _start(self, order: Fork, sock: socket.socket) -> None:
        """From an orphan, or by a fork."""
        with sock:
            orphan = self._orphan(order.orphan_pid)
            if orphan is not None and orphan.reins is not None and reins.offer(orphan.reins, order, sock):
                orphan.number = order.number
                self.say(Forked(order.number, orphan.pid))
            else:
                self._fork(order, sock)

    def _orphan(self, pid: int) -> _Forked | None:
        found = (each for each in self._children.values() if each.pid == pid and each.number == ORPHAN)
        return next(found, None)

    def _fork(self, order: Fork, sock: socket.socket) -> None:
        assert self._model is not None, "an instance was asked for before a model"
        own_pid = os.getpid()
        ours, theirs = (None, None) if self._listener is None else _reins()
        try:
            pid = os.fork()
        except OSError as error:
            log.warning("i%d cannot be forked: %s", order.instance_id, error)
            for each in (ours, theirs):
                if each is not None:
                    each.close()
            self.say(Exited(order.number, 1))
            return
        if pid == 0:
            if ours is not None:
                ours.close()
            self._become_instance(order, sock, theirs, own_pid)
        if theirs is not None:
            theirs.close()
        descriptor = os.pidfd_open(pid)
        self._children[descriptor] = _Forked(pid, order.number, order.device, ours)
        self._poll.register(descriptor, select.POLLIN)
        self.say(Forked(order.number, pid))

    def _become_instance(
        self, order: Fork, sock: socket.socket, held: socket.socket | None, parent_pid: int
    ) -> NoReturn:
        assert self._model is not None
        status = 1
        try:
            die_with_parent(parent_pid)
            self._close_all()
            status = instance.run(sock, order, self._model, held)
        finally:
            # Not sys.exit: what the parent registered to run at its own exit is none of the child's business.
            os._exit(status)

    def _close_all(self) -> None:
        """What a child has no use for."""
        keeper = None if self._keeper is None else self._keeper.sock
        for sock in (self._control, self._listener, keeper):
            if sock is not None:
                sock.close()
        for descriptor, each in self._children.items():
            os.close(descriptor)
            if each.reins is not None:
                each.reins.close()

    def _reap(self, descriptor: int) -> None:
        child = self._children.pop(descriptor)
        self._poll.unregister(descriptor)
        os.close(descriptor)
        if child.reins is not None:
            child.reins.close()
        _, status = os.waitpid(child.pid, 0)
        if child.number != ORPHAN:
            self.say(Exited(child.number, os.waitstatus_to_exitcode(status)))


def _reins() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
