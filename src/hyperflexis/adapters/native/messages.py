"""What the host and the zygote say to each other: one datagram per message, on a socket that only they have."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Read a model into shared memory. Answered by `Loaded` or `LoadFailed`."""

    directory: str
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


ToZygote = Load | Fork
FromZygote = Warm | Loaded | LoadFailed | Forked | Exited

DATAGRAM_BYTES_MAX = 1 << 16


def decode_to_zygote(data: bytes) -> ToZygote:
    return _to_zygote.decode(data)


def decode_from_zygote(data: bytes) -> FromZygote:
    return _from_zygote.decode(data)


_to_zygote: msgspec.msgpack.Decoder[ToZygote] = msgspec.msgpack.Decoder(ToZygote)
_from_zygote: msgspec.msgpack.Decoder[FromZygote] = msgspec.msgpack.Decoder(FromZygote)
encode = msgspec.msgpack.Encoder().encode
