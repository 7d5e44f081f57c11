"""One pull, from the call to its outcome: what the caller holds, and what the thread that does the work is told.

Knows what is wanted and whether to go on, not how bytes move.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NamedTuple

from hyperflexis.transfer.descriptor import Descriptor
from hyperflexis.transfer.errors import Cancelled, TransferError
from hyperflexis.transfer.ranges import Range, total_bytes


class Pulled(NamedTuple):
    """What a finished pull has to say."""

    medium: str
    bytes: int
    duration_s: float
    """From when the work began, without the wait for the source's turn."""


class Transfer:
    """The handle of a pull. All methods may be called from any thread.

    Once it is done, whatever the outcome, nothing writes to the target any more.
    """

    def __init__(self, descriptor: Descriptor, ranges: list[Range], target: Any, has_checksums: bool) -> None:
        self.descriptor = descriptor
        self.ranges = ranges
        self.bytes = total_bytes(ranges)
        self.target = target
        """A flat, writable view of bytes, or a tensor on a device."""
        self.has_checksums = has_checksums
        self.waited_s = 0.0
        """For the source's turn."""
        self._began_s = time.monotonic()
        self._lock = threading.Lock()
        self._stop: TransferError | None = None
        self._interrupt: Callable[[], None] | None = None
        self._on_stop: Callable[[], None] | None = None
        self._outcome: Future[Pulled] = Future()

    def __repr__(self) -> str:
        state = "running"
        if self._outcome.done():
            state = repr(self._outcome.exception() or self._outcome.result())
        return f"<Transfer of {self.bytes} bytes from {self.descriptor}: {state}>"

    # -- for the caller

    def result(self, timeout_s: float | None = None) -> Pulled:
        """Wait for the end.

        Raises:
            TransferError: it failed; the target's bytes mean nothing.
            TimeoutError: it goes on, only this wait has ended.
        """
        return self._outcome.result(timeout_s)

    @property
    def is_done(self) -> bool:
        return self._outcome.done()

    def cancel(self) -> None:
        """Ask for the end; it comes as `Cancelled` unless something else came first."""
        self.stop(Cancelled(f"the pull from {self.descriptor} was cancelled by its caller"))

    def add_done_callback(self, call: Callable[[Transfer], None]) -> None:
        """Call when done, from whichever thread ends it; at once if it is done. It must not block."""
        self._outcome.add_done_callback(lambda _: call(self))

    # -- for the receiver

    def stop(self, reason: TransferError) -> None:
        """End it for a reason, the first of which counts."""
        with self._lock:
            if self._stop is not None or self._outcome.done():
                return
            self._stop = reason
            interrupt, on_stop = self._interrupt, self._on_stop
            # Under the lock: what is interrupted must still be this transfer's.
            if interrupt is not None:
                interrupt()
        if on_stop is not None:
            on_stop()

    def when_stopped(self, call: Callable[[], None]) -> None:
        """Call once somebody asks for the end, from that thread."""
        with self._lock:
            self._on_stop = call
            is_stopped = self._stop is not None
        if is_stopped:
            call()

    def begin(self) -> None:
        """The work starts now."""
        self._began_s = time.monotonic()
        self.check()

    def pulled(self, medium: str) -> Pulled:
        """What the outcome is if it ends well now."""
        return Pulled(medium, self.bytes, max(0.0, time.monotonic() - self._began_s - self.waited_s))

    def finish(self, pulled: Pulled) -> None:
        self._outcome.set_result(pulled)

    def fail(self, error: BaseException) -> None:
        self._outcome.set_exception(self._stop or error)

    # -- for media

    def check(self) -> None:
        """To be called between pieces.

        Raises:
            TransferError: somebody asked for the end.
        """
        if self._stop is not None:
            raise self._stop

    @contextmanager
    def interrupted_by(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Within this block a thread may wait for a peer; `interrupt` wakes it."""
        with self._lock:
            self._interrupt = interrupt
            is_stopped = self._stop is not None
        try:
            if is_stopped:
                self.check()
            yield
        finally:
            with self._lock:
                self._interrupt = None
