"""What the host and the zygote say to each other: one datagram per message, on a socket that only they have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec


class WeightsSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Where weights may come from besides the disk, and whether they are lent on."""

    candidates: list[bytes] = []
    """Offers of donors, to be asked in this order; the disk comes last."""
    digest: bytes = b""
    """Root digest of the right bytes; empty: the donor's word counts."""
    attaches: bool = True
    """Whether a donor's memory on this host may be shared; else it is copied."""
    lends: bool = False
    """Whether to be a donor, from the first bytes that have come until the zygote ends."""
    host: str | None = None
    """TCP address to lend on; None: to this host only."""
    port: int = 0
    """0: any that is free."""
    secret: bytes = b""
    """What lets recipients in; empty: a random one, which only the offer has."""
    bytes_per_s: float = math.inf
    """At most so much is sent, to all recipients together."""
    join_s: float = 2.0
    """How long a candidate may take to answer."""
    chunk_s: float = 10.0
    """How long it may take to send 16 MiB."""


class Profile(msgspec.Struct, frozen=True, tag="profile"):
    """How fast an instance measured itself to be. Travels with the weights, for siblings on the same hardware."""

    hardware: str
    threads: int
    samples: Sequence[tuple[tuple[int, int, int, int], float]]


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Read a model into shared memory. Answered by `Loaded` or `LoadFailed`."""

    directory: str
    """Of the checkpoint. If it lacks a `config.json`, all but the weights is fetched into it from a donor."""
    device: str
    """A torch device, or "auto"."""
    dtype: str
    """A torch dtype's name, or "auto"."""
    block_tokens: int
    kv_bytes: int | None
    """Of KV cache per instance; None: as much as suits the device."""
    instances: int
    environment: dict[str, str] = {}
    """Variables in force while it is read: which devices may be seen."""
    weights: WeightsSpec = WeightsSpec()
    checkpoint: str = ""
    """What its files looked like to the gateway, for those that come after it."""


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    device: str
    device_count: int
    dtype: str
    arena_bytes: int
    layout_hash: str
    blocks: int
    """KV blocks that each instance will have."""
    context_tokens_max: int
    vocab_size: int
    eos_ids: list[int]
    load_s: float
    hardware: str = ""
    """What it computes on, in words that are equal where times may be compared."""
    origin: str = "disk"
    """By which way the weights came: attach, shm, unix, tcp or disk."""
    donor: str = ""
    """Who gave them, for people."""
    failures: list[str] = []
    """Why candidates did not."""
    phases_s: dict[str, float] = {}
    """Seconds by phase of the load."""
    profile: Profile | None = None
    """A sibling's, if its hardware is this."""


class Offered(msgspec.Struct, frozen=True, tag="offered"):
    """With this the weights can be had from here. Said once, before `Loaded` where they are lent while they come."""

    offer: bytes


class Digested(msgspec.Struct, frozen=True, tag="digested"):
    """The root digest of the weights that are lent is known."""

    digest: bytes


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    reason: str
    hint: str = ""


class Fork(msgspec.Struct, frozen=True, tag="fork"):
    """Start an instance that speaks on the socket that comes along. Answered by `Forked`; ended by `Exited`."""

    instance_id: int
    device: str
    threads: int
    block_tokens: int
    blocks: int
    seqs_max: int
    number: int = 0
    """Of this fork among all of this zygote; the host sets it."""
    samples: Sequence[tuple[tuple[int, int, int, int], float]] = ()
    """What a sibling measured of its steps; none: measure."""
    checks_transfers: bool = False
    """Whether KV that comes from peers is compared with theirs by checksums."""
    environment: dict[str, str] = {}
    """Variables in force for this instance: which devices it may see."""
    peers_host: str | None = None
    """The address at which peers on other hosts reach this one; None: all peers are on this host."""
    weights: bytes = b""
    """What a sibling's `Ready` said of its weights; empty: copy them from the host."""
    orphan_pid: int = 0
    """The process that is to be this instance, in place of a new one, if it still lives."""


class Forked(msgspec.Struct, frozen=True, tag="forked"):
    number: int
    pid: int


class Exited(msgspec.Struct, frozen=True, tag="exited"):
    number: int
    status: int
    """As `os.waitstatus_to_exitcode` gives it: negative is a signal."""


class Warm(msgspec.Struct, frozen=True, tag="warm"):
    """The zygote has imported what instances need."""

    import_s: float


class Greeting(msgspec.Struct, frozen=True, tag="greeting"):
    """What a zygote that has lost its gateway says to whoever connects; understood across versions."""

    words: str
    """See `words`."""
    version: str
    load: bytes
    """The `Load` that it did."""


class TakeOver(msgspec.Struct, frozen=True, tag="take_over"):
    """Whoever says this is the zygote's gateway. Answered by `Orphans`, and all that was said of the weights before.

    A descriptor comes along: where it may write what is for people.
    """

    timeout_s: float
    """How long it is to wait for the next one."""


class Orphan(msgspec.Struct, frozen=True):
    """An instance without a gateway."""

    pid: int
    device: str


class Orphans(msgspec.Struct, frozen=True, tag="orphans"):
    orphans: list[Orphan]


class Dismiss(msgspec.Struct, frozen=True, tag="dismiss"):
    """End an instance, by the number of its fork, and orphans by their process ids."""

    number: int = 0
    orphans: list[int] = []


ToZygote = Load | Fork | Profile | TakeOver | Dismiss
FromZygote = Warm | Loaded | LoadFailed | Offered | Digested | Forked | Exited | Orphans

DATAGRAM_BYTES_MAX = 1 << 16


def decode_to_zygote(data: bytes) -> ToZygote:
    return _to_zygote.decode(data)


def decode_from_zygote(data: bytes) -> FromZygote:
    return _from_zygote.decode(data)


_to_zygote: msgspec.msgpack.Decoder[ToZygote] = msgspec.msgpack.Decoder(ToZygote)
_from_zygote: msgspec.msgpack.Decoder[FromZygote] = msgspec.msgpack.Decoder(FromZygote)
encode = msgspec.msgpack.Encoder().encode
