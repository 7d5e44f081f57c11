"""What every medium is: a way by which a receiver gets at the bytes of a region. Two sides, one name.

The owner's side is a function from an exposed buffer to what a peer needs (`Grant`); the receiver's is a `Medium`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias

from hyperflexis.transfer.connections import Address, Connections
from hyperflexis.transfer.descriptor import Descriptor
from hyperflexis.transfer.errors import BadDescriptor, PeerLost, Unreachable
from hyperflexis.transfer.handle import Transfer
from hyperflexis.transfer.memory import SharedMemory
from hyperflexis.transfer.protocol import Digest, Finished

Buffer: TypeAlias = Any
"""A `SharedMemory`, anything else with the buffer protocol that lies in one piece, or a CUDA tensor."""


class Grant(NamedTuple):
    """What an owner hands to a peer that wants to read by itself."""

    details: bytes = b""
    fds: tuple[int, ...] = ()


class Medium(Protocol):
    """The receiver's side. Called from several threads at once."""

    name: str

    def pull(self, transfer: Transfer) -> None:
        """Put every range of the transfer into its target; return only if the lease held after the last byte was read.

        Raises:
            Unreachable: nothing was written; another medium may do better.
            TransferError: anything else that ends it.
        """

    def close(self) -> None:
        """Give up what was kept for later pulls."""


def address_of(descriptor: Descriptor, is_local: bool) -> Address:
    """Where the owner can be asked.

    Raises:
        Unreachable: it listens nowhere of that kind.
    """
    if is_local and descriptor.unix:
        return descriptor.unix, 0
    if descriptor.tcp is not None:
        return descriptor.tcp
    raise Unreachable(f"{descriptor.owner} has no address for others; its operator must let it listen on TCP")


def flat_target(target: Any) -> Any:
    """Return a writable view of the target's bytes; a tensor on a device is left as it is.

    Raises:
        BadDescriptor: it cannot be written, or does not lie in one piece.
    """
    if is_on_device(target):
        return target
    try:
        view = memoryview(target.view if isinstance(target, SharedMemory) else target).cast("B")
    except TypeError as error:
        raise BadDescriptor(f"the target is no buffer in one piece ({error}); mend the caller") from error
    if view.readonly:
        raise BadDescriptor("the target cannot be written; mend the caller")
    return view


def is_on_device(buffer: object) -> bool:
    """A CUDA tensor, told without importing torch."""
    return bool(getattr(buffer, "is_cuda", False))


def ask_digest(connections: Connections, address: Address, transfer: Transfer) -> list[int]:
    """Have the owner say that the lease holds now, and the checksums if the transfer wants them.

    Raises:
        TransferError: it does not say so.
    """
    ranges = transfer.ranges if transfer.has_checksums else []
    claim = connections.claim(transfer.descriptor)
    request = Digest(claim, [each.source for each in ranges], [each.length for each in ranges])
    with connections.ask(address, request, transfer) as heard:
        if not isinstance(heard.answer, Finished):
            raise PeerLost(f"{transfer.descriptor.owner} answered something else than it was asked")
        return heard.answer.checksums
