"""What a region's owner hands out: enough to find the bytes and to prove the right to them. Knows not what they mean.

A descriptor is a secret as long as its lease: who has it may read. As bytes it is msgpack.
"""

from __future__ import annotations

import msgspec

from hyperflexis.transfer.errors import BadDescriptor
from hyperflexis.transfer.place import Place

VERSION = 1
DESCRIPTOR_BYTES_MAX = 4096


class Descriptor(msgspec.Struct, frozen=True, array_like=True):
    """One generation of one region."""

    version: int
    source: str
    """The owner: an id that no other source has."""
    owner: str
    """The owner for people: process and host."""
    place: Place
    region: int
    name: str
    generation: int
    slot: int
    """Where its lease stands on the owner's page."""
    size_bytes: int
    lease_s: float
    """What was left when it was described. The owner may have changed its mind; it alone knows."""
    device: str
    token: bytes
    memory: int
    """Which shared memory it lies in; 0 if in none."""
    media: tuple[str, ...]
    """By which it can be pulled, by name."""
    unix: str = ""
    """Name of the owner's abstract Unix socket."""
    tcp: tuple[str, int] | None = None
    """Host and port where the owner listens, if it does."""

    def __str__(self) -> str:
        return f"region {self.name or self.region} of {self.owner}"

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode(self)


_decoder = msgspec.msgpack.Decoder(Descriptor)


def read_descriptor(data: bytes) -> Descriptor:
    """Read what `to_bytes` wrote.

    Raises:
        BadDescriptor: it is something else, or of another version of this program.
    """
    if len(data) > DESCRIPTOR_BYTES_MAX:
        raise BadDescriptor(
            f"{len(data)} bytes are no descriptor (at most {DESCRIPTOR_BYTES_MAX}); mend who carried it"
        )
    try:
        descriptor = _decoder.decode(data)
    except (ValueError, RecursionError) as error:
        raise BadDescriptor(f"these bytes are no descriptor ({error}); mend who carried them") from error
    if descriptor.version != VERSION:
        raise BadDescriptor(f"the descriptor is of version {descriptor.version}, not {VERSION}; update the older side")
    return descriptor
