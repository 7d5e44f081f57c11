"""What leads to a donor: where it listens, and the secret that lets one in. A few hundred bytes that anybody may carry.

Who has an offer may take the weights. As bytes it is msgpack.
"""

from __future__ import annotations

import msgspec

from hyperflexis.transfer.errors import BadDescriptor
from hyperflexis.transfer.place import Place

VERSION = 1
OFFER_BYTES_MAX = 2048


class Offer(msgspec.Struct, frozen=True, array_like=True):
    """Of one donor, for as long as it lives."""

    version: int
    owner: str
    """For people."""
    secret: bytes
    place: Place
    unix: str = ""
    tcp: tuple[str, int] | None = None

    def __str__(self) -> str:
        return self.owner

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode(self)


def offer_at(host: str, port: int, secret: bytes) -> Offer:
    """Return what leads to a donor that was told to listen there, with a secret that both sides were given."""
    return Offer(VERSION, f"{host}:{port}", secret, Place(""), tcp=(host, port))


_decoder = msgspec.msgpack.Decoder(Offer)


def read_offer(data: bytes) -> Offer:
    """Read what `to_bytes` wrote.

    Raises:
        BadDescriptor: it is something else, or of another version of this program.
    """
    try:
        offer = _decoder.decode(data) if len(data) <= OFFER_BYTES_MAX else None
    except (ValueError, RecursionError) as error:
        raise BadDescriptor(f"these bytes are no offer ({error}); mend who carried them") from error
    if offer is None:
        raise BadDescriptor(f"{len(data)} bytes are no offer (at most {OFFER_BYTES_MAX}); mend who carried them")
    if offer.version != VERSION:
        raise BadDescriptor(f"the offer is of version {offer.version}, not {VERSION}; update the older side")
    return offer
