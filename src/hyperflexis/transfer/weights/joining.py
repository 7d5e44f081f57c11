"""What a recipient and a donor say before bytes move: join, and accept or decline.

Both prove that they know the secret without saying it, by a keyed hash over what they say; the recipient draws a number
that the donor's proof covers too, so that an answer cannot be an old one. Nothing is encrypted.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

import msgspec

from hyperflexis.transfer.descriptor import Descriptor
from hyperflexis.transfer.place import Place
from hyperflexis.transfer.weights.identity import Identity

WEIGHTS, MANIFEST = "weights", "manifest"
"""Parts that every donor has, and that it has once it knows its digests. Others are whatever was put beside them."""


class Join(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """May I have these?"""

    nonce: bytes
    identity: Identity | None
    """None: say first what you have."""
    wants_memory: bool
    """Whether the memory itself is welcome, where both ends are on one host."""


class Accept(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The memory, where it is handed over, comes with it."""

    owner: str
    place: Place
    unix: str
    identity: Identity
    parts: dict[str, Descriptor]


class Decline(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Not these, or not you."""

    reason: str


Said = Join | Accept | Decline


class Proved(msgspec.Struct, frozen=True, array_like=True):
    """One of these, as it crosses."""

    proof: bytes
    said: bytes


class Unproved(Exception):  # noqa: N818  # named for what is the case
    """It is no such message, or its sender does not know the secret."""


_decoder: msgspec.msgpack.Decoder[Said] = msgspec.msgpack.Decoder(Said)
_proved = msgspec.msgpack.Decoder(Proved)


def fresh_nonce() -> bytes:
    return secrets.token_bytes(16)


def prove(message: Said, secret: bytes, nonce: bytes = b"") -> bytes:
    """A message as it crosses; answers are proved with the nonce of what they answer."""
    said = msgspec.msgpack.encode(message)
    return msgspec.msgpack.encode(Proved(_proof(said, secret, nonce), said))


def check(data: bytes, secret: bytes, nonce: bytes = b"") -> Said:
    """Read what `prove` wrote.

    Raises:
        Unproved: whoever wrote it has another secret, or it is something else.
    """
    try:
        proved = _proved.decode(data)
        if not hmac.compare_digest(proved.proof, _proof(proved.said, secret, nonce)):
            raise Unproved("the other side has another secret")
        return _decoder.decode(proved.said)
    except (ValueError, RecursionError) as error:
        raise Unproved(f"the other side speaks otherwise ({error})") from error


def _proof(said: bytes, secret: bytes, nonce: bytes) -> bytes:
    return hmac.digest(secret, nonce + b"\0" + said, hashlib.sha256)
