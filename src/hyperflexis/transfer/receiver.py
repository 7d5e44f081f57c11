"""The receiver's side: pulls what others have exposed, each pull by the best medium that leads there.

A few threads do the work; pulls wait their turn source by source, and so many bytes are on their way at once at most.
Knows no regions of its own, and nothing of what the bytes are.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hyperflexis.transfer import cuda_ipc, nixl
from hyperflexis.transfer.alarm import Alarm
from hyperflexis.transfer.bandwidth import Bandwidth
from hyperflexis.transfer.choice import ways
from hyperflexis.transfer.connections import Connections
from hyperflexis.transfer.descriptor import Descriptor
from hyperflexis.transfer.errors import Cancelled, TimedOut, TransferError, Unreachable
from hyperflexis.transfer.handle import Transfer
from hyperflexis.transfer.lease import Clock, monotonic_ns
from hyperflexis.transfer.medium import Medium, flat_target
from hyperflexis.transfer.place import here
from hyperflexis.transfer.ranges import coalesce
from hyperflexis.transfer.shm import Mapped, SharedMemoryMedium, check_lease
from hyperflexis.transfer.tcp import StreamMedium
from hyperflexis.transfer.turns import Turns

log = logging.getLogger(__name__)

AT_ONCE_BYTES = 4 << 20
"""A copy of so much takes about a millisecond; another thread to do it could take as long to begin."""


@dataclass(frozen=True, slots=True)
class ReceiverLimits:
    """How much a receiver does at once."""

    transfers_max: int = 4
    bytes_max: int = 1 << 30
    """On their way at once; a larger pull goes alone."""


class Attachment:
    """A region's bytes where they lie: mapped for reading, not copied. For what its owner never overwrites."""

    def __init__(self, mapped: Mapped, transfer: Transfer) -> None:
        self.view = mapped.view
        """Valid memory as long as it is referred to; whether it is still the region's, `check` says."""
        self._leases = mapped.leases
        self._transfer = transfer

    def check(self) -> float:
        """Return the seconds left of the lease.

        Raises:
            RefusedError: what was read since the last check may have been something else.
        """
        return check_lease(self._leases, self._transfer)


class Receiver:
    """Thread-safe. Ends with `close`, or as a context manager."""

    def __init__(
        self,
        media: Iterable[str] | None = None,
        limits: ReceiverLimits | None = None,
        nixl_agent: nixl.NixlAgent | None = None,
        clock: Clock = monotonic_ns,
    ) -> None:
        """Start the threads.

        Args:
            media: the only ones to be used, by name; None: all that work here.
            nixl_agent: without it, NIXL is not used. It stays the caller's.
        """
        limits = limits or ReceiverLimits()
        self.id = secrets.token_hex(8)
        self.bandwidth = Bandwidth()
        self._here = here()
        self._connections = Connections(self.id)
        self._shared_memory = SharedMemoryMedium(self._connections, clock)
        self._media = self._made(media, nixl_agent, clock)
        self._alarm = Alarm(f"transfer-alarm-{self.id}")
        self._turns: Turns[Transfer] = Turns(limits.bytes_max)
        self._lock = threading.Lock()
        self._running: set[Transfer] = set()
        self._is_closed = False
        self._workers = [
            threading.Thread(target=self._work, name=f"transfer-receiver-{self.id}-{index}", daemon=True)
            for index in range(limits.transfers_max)
        ]
        for worker in self._workers:
            worker.start()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pull(
        self,
        descriptor: Descriptor,
        ranges: Iterable[tuple[int, int, int]],
        target: Any,
        *,
        has_checksums: bool = False,
        timeout_s: float | None = 30.0,
    ) -> Transfer:
        """Begin to copy ranges (source offset, target offset, bytes) of a region into a target.

        The target must stay as it is until the handle is done; resident memory is several times faster than fresh. A
        small pull out of memory that is mapped already is done before this returns.

        Raises:
            BadRanges, BadDescriptor: the ranges do not fit, or the target cannot be filled.
            Everything else is told by the handle.
        """
        view = flat_target(target)
        wanted = coalesce(ranges, descriptor.size_bytes, view.nbytes)
        transfer = Transfer(descriptor, wanted, view, has_checksums)
        is_small = transfer.bytes <= AT_ONCE_BYTES and not has_checksums
        if is_small and not self._is_closed and self._is_at_hand(descriptor):
            self._run(transfer)
            return transfer
        if timeout_s is not None:
            self._limit(transfer, timeout_s)
        if not self._turns.put(descriptor.source, transfer, transfer.bytes):
            transfer.fail(Cancelled("this receiver is closed"))
        transfer.when_stopped(lambda: self._withdraw(transfer))
        return transfer

    def attach(self, descriptor: Descriptor, *, timeout_s: float = 30.0) -> Attachment:
        """Map a whole region for reading, without copying; blocks for the millisecond or so that the owner takes.

        Raises:
            Unreachable: it lies in no shared memory, or on another host.
            TransferError: the owner refuses, is lost, or takes too long.
        """
        if "shm" not in self._ways(descriptor):
            raise Unreachable(f"{descriptor} cannot be mapped from here; pull it")
        transfer = Transfer(descriptor, [], None, False)
        self._limit(transfer, timeout_s)
        try:
            attachment = Attachment(self._shared_memory.map(transfer), transfer)
            attachment.check()
        except TransferError as error:
            transfer.fail(error)
            raise
        transfer.finish(transfer.pulled("shm"))
        return attachment

    def predict_s(self, descriptor: Descriptor, size_bytes: int) -> float:
        """Estimate the seconds that a pull of so many bytes would take from when it begins.

        Raises:
            Unreachable: no medium leads there.
        """
        names = self._ways(descriptor)
        if not names:
            raise _nowhere(descriptor)
        return self.bandwidth.predict_s(descriptor.source, names[0], size_bytes)

    def close(self) -> None:
        """Cancel all pulls, wait for their ends, and let go of everything that was kept."""
        waiting = self._turns.close()
        with self._lock:
            self._is_closed = True
            running = list(self._running)
        for transfer in waiting:
            transfer.fail(Cancelled("this receiver was closed while the pull waited for its turn"))
        for transfer in running:
            transfer.cancel()
        for worker in self._workers:
            worker.join()
        self._alarm.close()
        for medium in self._media.values():
            medium.close()
        self._shared_memory.close()
        self._connections.close()

    def _made(self, names: Iterable[str] | None, agent: nixl.NixlAgent | None, clock: Clock) -> Mapping[str, Medium]:
        made: list[Medium] = [
            self._shared_memory,
            StreamMedium("unix", self._connections),
            StreamMedium("tcp", self._connections),
        ]
        if cuda_ipc.is_available():
            made.append(cuda_ipc.CudaIpcMedium(self._connections, clock))
        if agent is not None:
            made.append(nixl.NixlMedium(self._connections, agent))
        wanted = None if names is None else set(names)
        return {each.name: each for each in made if wanted is None or each.name in wanted}

    def _is_at_hand(self, descriptor: Descriptor) -> bool:
        return self._ways(descriptor)[:1] == ["shm"] and self._shared_memory.has(descriptor)

    def _limit(self, transfer: Transfer, timeout_s: float) -> None:
        reason = TimedOut(
            f"the pull from {transfer.descriptor} was not done within the {timeout_s} s its caller allows"
        )
        number = self._alarm.at(time.monotonic() + timeout_s, lambda: transfer.stop(reason))
        transfer.add_done_callback(lambda _: self._alarm.forget(number))

    def _withdraw(self, transfer: Transfer) -> None:
        if self._turns.remove(transfer.descriptor.source, transfer):
            transfer.fail(Cancelled("withdrawn"))

    # -- in the workers' threads

    def _work(self) -> None:
        while (taken := self._turns.take()) is not None:
            transfer, cost = taken
            with self._lock:
                self._running.add(transfer)
                is_closed = self._is_closed
            if is_closed:
                transfer.cancel()
            self._run(transfer)
            with self._lock:
                self._running.remove(transfer)
            self._turns.done(cost)

    def _run(self, transfer: Transfer) -> None:
        """From the beginning to the outcome."""
        try:
            medium = self._pull(transfer)
        except TransferError as error:
            transfer.fail(error)
        except Exception as error:
            # A bug must not leave the caller waiting, nor end the thread.
            log.exception("%r failed", transfer)
            transfer.fail(error)
        else:
            pulled = transfer.pulled(medium)
            # Before anybody hears of the end: who then asks for a prediction finds it learnt.
            self.bandwidth.observe(transfer.descriptor.source, medium, pulled.bytes, pulled.duration_s)
            transfer.finish(pulled)

    def _pull(self, transfer: Transfer) -> str:
        """Return the medium that did it."""
        failure = _nowhere(transfer.descriptor)
        for name in self._ways(transfer.descriptor):
            transfer.begin()
            try:
                self._media[name].pull(transfer)
            except Unreachable as error:
                failure = error
            else:
                return name
        raise failure

    def _ways(self, descriptor: Descriptor) -> list[str]:
        names = ways(descriptor, self._here, self._media)
        if not names:
            offered = ", ".join(descriptor.media)
            raise Unreachable(
                f"no medium leads from here to {descriptor} (offered: {offered}); its operator can add one"
            )
        return names


def _nowhere(descriptor: Descriptor) -> Unreachable:
    offered = ", ".join(descriptor.media)
    return Unreachable(f"no medium leads from here to {descriptor} (offered: {offered}); its operator can add one")
