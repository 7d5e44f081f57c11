"""What can go wrong with a transfer, and whose fault it is. After any of these the target holds nothing to rely on.

TransferError
├── CallerError        whoever called, or whoever carried the descriptor: repeating it will not help
│   ├── BadDescriptor      the descriptor cannot be read, was forged, or promises what its owner does not have
│   ├── BadRanges          ranges leave the region or the target, overlap in the target, or are too many
│   └── Cancelled          this side asked for it
├── RefusedError       the owner no longer lends these bytes; a new descriptor is needed
│   ├── LeaseExpired       the lease ended before the last byte had arrived
│   ├── Revoked            the owner took the region back
│   ├── Recycled           the memory holds something else by now
│   ├── Unsettled          the bytes are not there yet, and may never be
│   └── Declined           it has other weights than those that are wanted, or lends them to others
└── WorldError         processes and networks; the same pull may succeed later
    ├── Unreachable        no medium leads there, or nobody answers
    ├── PeerLost           the owner went away or fell silent in the middle
    ├── TimedOut           the time that the caller allowed is over
    ├── Exhausted          a limit of this side is reached
    └── Corrupt            bytes arrived that the owner had not sent
"""

from __future__ import annotations


class TransferError(Exception):
    """One line that names the region, the peer and who is to act."""


class CallerError(TransferError):
    """The call cannot succeed as it is."""


class RefusedError(TransferError):
    """The owner's right: bytes are lent, not given."""


class WorldError(TransferError):
    """Nobody's mistake in this code."""


class BadDescriptor(CallerError):  # noqa: N818 named, like all leaves, for what is the case
    """No descriptor of a region that its owner knows."""


class BadRanges(CallerError):  # noqa: N818
    """The list of ranges does not fit."""


class Cancelled(CallerError):  # noqa: N818
    """The handle was cancelled, or its receiver closed."""


class LeaseExpired(RefusedError):  # noqa: N818
    """Too late."""


class Revoked(RefusedError):  # noqa: N818
    """Taken back."""


class Recycled(RefusedError):  # noqa: N818
    """Another generation lies there."""


class Unsettled(RefusedError):  # noqa: N818
    """Whoever fills the region has given up, or takes too long."""


class Declined(RefusedError):  # noqa: N818
    """A donor's no."""


class Unreachable(WorldError):  # noqa: N818
    """There is no way to the owner."""


class PeerLost(WorldError):  # noqa: N818
    """The way ended in the middle."""


class TimedOut(WorldError):  # noqa: N818
    """Not done in time."""


class Exhausted(WorldError):  # noqa: N818
    """No room for one more."""


class Corrupt(WorldError):  # noqa: N818
    """Checksums differ."""


BY_NAME: dict[str, type[TransferError]] = {
    each.__name__: each for each in (BadDescriptor, BadRanges, LeaseExpired, Revoked, Recycled, Unsettled)
}
"""What an owner may answer a peer, by the word that crosses the socket."""
