"""What the gateway's process and the one that speaks to Ray for it say to each other, on a socket that only they have.

Launches have numbers, so that what comes late is of the launch that it belongs to. Knows nothing of Ray.
"""

from __future__ import annotations

import msgspec

from hyperflexis.adapters.native.messages import Fork, Load, Loaded
from hyperflexis.runtime.launchers.seating import Strategy

TOKEN_BYTES = 32
"""Whoever connects to a node proves with so many random bytes what it comes for."""


class Door(msgspec.Struct, frozen=True):
    """Where a node's steward listens, and the token with which it can be watched."""

    host: str
    port: int
    token: bytes


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """Connect to a cluster and read the model on one of its nodes. Answered by `Begun` or `CannotBegin`."""

    address: str
    """Of the cluster; empty: of the one that this machine belongs to."""
    load: Load
    """Its directory is the same on all nodes; empty: that of the demo model, wherever it is installed there."""
    hub_id: str
    """Where a node that lacks the directory finds the model; may be empty."""
    cpus: float
    """Of a node, for each instance."""
    gpus: float | None
    """None: one, if the cluster has any."""
    strategy: Strategy


class Launch(msgspec.Struct, frozen=True, tag="launch"):
    """Start an instance. Answered by `Seated`, then `Admitted`; `Ended` is the last that is said of it."""

    number: int
    role: str
    fork: Fork
    token: bytes
    """What the gateway will bring when it connects."""


class Kill(msgspec.Struct, frozen=True, tag="kill"):
    """Nobody wants it any more: end it, whatever it is doing."""

    number: int


class NodeLost(msgspec.Struct, frozen=True, tag="node_lost"):
    """The gateway cannot reach what is behind this door any more; Ray may take a while to see it."""

    door: Door


class Begun(msgspec.Struct, frozen=True, tag="begun"):
    loaded: Loaded


class CannotBegin(msgspec.Struct, frozen=True, tag="cannot_begin"):
    reason: str
    hint: str = ""


class Seated(msgspec.Struct, frozen=True, tag="seated"):
    """A node has set aside what the instance needs."""

    number: int
    address: str


class Admitted(msgspec.Struct, frozen=True, tag="admitted"):
    """The node waits for the gateway to connect; it starts the instance then."""

    number: int
    door: Door
    origin: str
    """How the weights came to that node: from its disk, or by which medium from another."""


class Closed(msgspec.Struct, frozen=True, tag="closed"):
    """Ray has lost what is behind this door, even if it should still answer."""

    door: Door


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The instance is gone, or will never be."""

    number: int
    why: str


class HeadLost(msgspec.Struct, frozen=True, tag="head_lost"):
    """Ray's head does not answer."""


class HeadBack(msgspec.Struct, frozen=True, tag="head_back"):
    """It answers again."""


ToBroker = Begin | Launch | Kill | NodeLost
FromBroker = Begun | CannotBegin | Seated | Admitted | Closed | Ended | HeadLost | HeadBack
