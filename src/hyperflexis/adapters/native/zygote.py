"""A process that has imported everything an instance needs and then only forks: an instance starts in milliseconds.

Rules that keep a fork safe: one thread, no event loop, no computing with tensors, no accelerator touched; whatever
needs those happens in children. It dies with its parent, and its children with it, whatever kills the parent.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import socket
from typing import NoReturn

from hyperflexis.adapters.native import instance, loading
from hyperflexis.adapters.native.child import Child
from hyperflexis.adapters.native.lineage import die_with_parent
from hyperflexis.adapters.native.messages import (
    DATAGRAM_BYTES_MAX,
    Exited,
    Fork,
    Forked,
    FromZygote,
    Load,
    LoadFailed,
    Profile,
    decode_to_zygote,
    encode,
)

log = logging.getLogger(__name__)


class Zygote:
    """Answers `Load` and `Fork` on its control socket and tells of every instance that ends."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._model: loading.Model | None = None
        self._keeper: Child | None = None
        self._children: dict[int, tuple[int, int]] = {}
        """By the descriptor that becomes readable when it ends: (pid, number of the fork)."""
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        # What is alive now is shared with every child; a collection that wrote to it would copy its pages.
        gc.collect()
        gc.freeze()

    def say(self, message: FromZygote) -> None:
        self._control.send(encode(message))

    def serve(self) -> None:
        """Return when the parent has closed the socket."""
        with contextlib.suppress(ConnectionError):  # The parent has closed it while something was being said.
            while True:
                for descriptor, _ in self._poll.poll():
                    if descriptor in self._children:
                        self._reap(descriptor)
                    elif self._keeper is not None and descriptor == self._keeper.sock.fileno():
                        self._pass_on(self._keeper)
                    elif not self._take():
                        return

    def _take(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, DATAGRAM_BYTES_MAX, 1)
        if not data:
            return False
        message = decode_to_zygote(data)
        if isinstance(message, Load):
            self._load(message)
        elif isinstance(message, Profile):
            self._tell_keeper(data)
        else:
            self._fork(message, socket.socket(fileno=descriptors[0]))
        return True

    def _load(self, order: Load) -> None:
        outcome = loading.load(order, self.say)
        if isinstance(outcome, LoadFailed):
            self.say(outcome)
            return
        if self._keeper is not None:
            self._bury_keeper(self._keeper)
        self._model, loaded, self._keeper = outcome
        if self._keeper is not None:
            self._poll.register(self._keeper.sock, select.POLLIN)
        self.say(loaded)

    # -- the process that lends the weights; all else goes on without it

    def _pass_on(self, keeper: Child) -> None:
        data, _ = keeper.hear()
        if data:
            self._control.send(data)
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

    def _fork(self, order: Fork, sock: socket.socket) -> None:
        assert self._model is not None, "an instance was asked for before a model"
        own_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            log.warning("i%d cannot be forked: %s", order.instance_id, error)
            sock.close()
            self.say(Exited(order.number, 1))
            return
        if pid == 0:
            self._become_instance(order, sock, own_pid)
        sock.close()
        descriptor = os.pidfd_open(pid)
        self._children[descriptor] = (pid, order.number)
        self._poll.register(descriptor, select.POLLIN)
        self.say(Forked(order.number, pid))

    def _become_instance(self, order: Fork, sock: socket.socket, parent_pid: int) -> NoReturn:
        assert self._model is not None
        status = 1
        try:
            die_with_parent(parent_pid)
            self._control.close()
            if self._keeper is not None:
                self._keeper.sock.close()
            for descriptor in self._children:
                os.close(descriptor)
            status = instance.run(sock, order, self._model)
        finally:
            # Not sys.exit: what the parent registered to run at its own exit is none of the child's business.
            os._exit(status)

    def _reap(self, descriptor: int) -> None:
        pid, number = self._children.pop(descriptor)
        self._poll.unregister(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(pid, 0)
        self.say(Exited(number, os.waitstatus_to_exitcode(status)))
