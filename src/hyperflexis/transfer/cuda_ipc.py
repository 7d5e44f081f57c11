"""The CUDA medium: a receiver on the same host opens the region's device memory and copies on the device.

Handles are made by torch, and cross the source's socket field by field, never pickled. Each serves one opening (torch
counts them), so one is asked for when it is needed. Leases are looked at as with shared memory, before the copy and
after the device has finished it. The owner's writes must be done before it describes a region: no stream is shared.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from hyperflexis.transfer.checksums import checksums, compare
from hyperflexis.transfer.connections import Connections
from hyperflexis.transfer.errors import BadDescriptor, PeerLost, Unreachable
from hyperflexis.transfer.handle import Transfer
from hyperflexis.transfer.lease import Clock, Leases
from hyperflexis.transfer.mappings import Mappings
from hyperflexis.transfer.medium import Grant, address_of, ask_digest, is_on_device
from hyperflexis.transfer.memory import map_for_reading
from hyperflexis.transfer.protocol import Open, Opened
from hyperflexis.transfer.ranges import Range, segments
from hyperflexis.transfer.shm import check_lease

_BATCH_BYTES = 64 << 20
_BATCH_RANGES = 1024
"""What is given to the device between two looks at whether to go on: about a millisecond."""


class Handle(msgspec.Struct, frozen=True, array_like=True):
    """What `torch.multiprocessing.reductions.rebuild_cuda_tensor` takes, for flat bytes."""

    size_bytes: int
    tensor_offset: int
    device: int
    memory: bytes
    storage_bytes: int
    storage_offset: int
    counter: bytes
    counter_offset: int
    event: bytes
    waits_for_event: bool


class Mapped(NamedTuple):
    """One region of one source."""

    tensor: Any
    leases: Leases


_decoder = msgspec.msgpack.Decoder(Handle)


def is_available() -> bool:
    """There is a torch; whether it has a device is seen when it is used."""
    return importlib.util.find_spec("torch") is not None


def grant(tensor: Any, lease_page_fd: int) -> Grant:
    """The owner's side.

    Raises:
        BadDescriptor: the driver does not share this memory.
    """
    from torch.multiprocessing.reductions import reduce_tensor

    try:
        _, fields = reduce_tensor(flat(tensor))  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        reason = f"this device memory cannot be shared ({error}); allocate it without expandable segments"
        raise BadDescriptor(reason) from error
    _, size, _, tensor_offset, _, _, device, memory, storage_bytes, storage_offset, _, *rest = fields
    handle = Handle(size[0], tensor_offset, device, memory, storage_bytes, storage_offset, *rest)
    return Grant(msgspec.msgpack.encode(handle), (lease_page_fd,))


def flat(tensor: Any) -> Any:
    """Return a tensor's bytes, as a view.

    Raises:
        RuntimeError: it does not lie in one piece.
    """
    import torch

    return tensor.detach().view(-1).view(torch.uint8)


def checksums_of(tensor: Any, ranges: Sequence[Range]) -> list[int]:
    """By way of host memory: slow, and asked for only when something is being looked for."""
    data = flat(tensor)
    return checksums(memoryview(data[each.source : each.source + each.length].cpu().numpy()) for each in ranges)


class CudaIpcMedium:
    """The receiver's side; the target is a tensor on any of its devices, or a buffer."""

    name = "cuda_ipc"

    def __init__(self, connections: Connections, clock: Clock) -> None:
        self._connections = connections
        self._clock = clock
        self._mappings: Mappings[Mapped] = Mappings()

    def pull(self, transfer: Transfer) -> None:
        """See `Medium.pull`."""
        key = (transfer.descriptor.source, transfer.descriptor.region)
        mapped = self._mappings.get(key, lambda: self._open(transfer))
        target = _target_tensor(transfer.target)
        check_lease(mapped.leases, transfer)
        _copy(mapped.tensor, target, transfer)
        check_lease(mapped.leases, transfer)
        if transfer.has_checksums:
            sent = ask_digest(self._connections, address_of(transfer.descriptor, is_local=True), transfer)
            at_target = [Range(each.target, 0, each.length) for each in transfer.ranges]
            compare(transfer.descriptor, transfer.ranges, sent, checksums_of(target, at_target))

    def close(self) -> None:
        """See `Medium.close`."""
        self._mappings.close()

    def _open(self, transfer: Transfer) -> tuple[socket.socket, Mapped]:
        descriptor = transfer.descriptor
        request = Open(self._connections.claim(descriptor), self.name)
        heard = self._connections.open(address_of(descriptor, is_local=True), request, transfer)
        try:
            if not isinstance(heard.answer, Opened) or len(heard.fds) != 1:
                raise PeerLost(f"{descriptor.owner} sent no memory for {descriptor}; it is of no use")
            leases = Leases(map_for_reading(heard.fds[0]), self._clock)
            return heard.sock, Mapped(_rebuilt(heard.answer.details, transfer), leases)
        except RuntimeError as error:
            heard.sock.close()
            raise Unreachable(f"the device memory of {descriptor} cannot be opened here: {error}") from error
        except BaseException:
            heard.sock.close()
            raise
        finally:
            for fd in heard.fds:
                os.close(fd)


def _rebuilt(details: bytes, transfer: Transfer) -> Any:
    import torch
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    try:
        handle = _decoder.decode(details)
    except (ValueError, RecursionError) as error:
        raise PeerLost(f"{transfer.descriptor.owner} sent no handle ({error}); it is of no use") from error
    if handle.size_bytes != transfer.descriptor.size_bytes:
        raise BadDescriptor(f"{transfer.descriptor} is not of the size that its descriptor says; mend who carried it")
    if not torch.cuda.is_available():
        raise Unreachable("no CUDA device is to be seen here; pull on a host that has one")
    return rebuild_cuda_tensor(  # type: ignore[no-untyped-call]
        torch.Tensor,
        torch.Size([handle.size_bytes]),
        (1,),
        handle.tensor_offset,
        torch.storage.TypedStorage,
        torch.uint8,
        handle.device,
        handle.memory,
        handle.storage_bytes,
        handle.storage_offset,
        False,
        handle.counter,
        handle.counter_offset,
        handle.event,
        handle.waits_for_event,
    )


def _target_tensor(target: Any) -> Any:
    import torch

    return flat(target) if is_on_device(target) else torch.frombuffer(target, dtype=torch.uint8)


def _copy(source: Any, target: Any, transfer: Transfer) -> None:
    """On a stream of its own; returns when the device has finished, also where it is called off."""
    import torch

    stream = torch.cuda.Stream(source.device)  # type: ignore[no-untyped-call]
    try:
        with torch.cuda.stream(stream):
            for batch in segments(transfer.ranges, _BATCH_BYTES, _BATCH_RANGES):
                transfer.check()
                for each in batch:
                    into = target[each.target : each.target + each.length]
                    into.copy_(source[each.source : each.source + each.length], non_blocking=True)
                stream.synchronize()
    finally:
        stream.synchronize()
