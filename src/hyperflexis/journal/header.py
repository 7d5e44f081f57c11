"""What stands at the head of every part: what is needed to make a like control plane, and to read the part alone."""

from __future__ import annotations

import msgspec

from hyperflexis.core.events import InstanceReady
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Role
from hyperflexis.core.slo import ServiceClass
from hyperflexis.core.step import StepRules

FORMAT = 1
"""Of the files. It changes with what stands where in them; what entries are made of has a digest of its own."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Of one part."""

    hyperflexis: str
    """The version that wrote it."""
    schema: str
    """Digest of what entries are made of."""
    run: str
    """Tells the parts of one run from those of others."""
    part: int = 0
    """Its place among the parts of its run."""
    is_simulated: bool = False
    wall_s: float | None = None
    """What the wall clock showed, seconds since 1970, at `origin_s` of the control plane's clock; None without one."""
    origin_s: float = 0.0
    policy: str
    """Its name with all tuning, as `policies.create` takes it."""
    prefill_tokens_max: int
    rules: StepRules
    """What it has instances do, with all that the configuration changed of that."""
    role_rules: dict[Role, StepRules] = {}
    fleet: FleetBounds
    requests_max: int
    classes: list[ServiceClass] = []
    seed: int | None = None
    """Of a simulation. A live run draws no chance."""
    max_tokens: int | None = None
    """Longest answer that clients of a simulation ask for."""
    made_with: dict[str, str] = {}
    """Versions of what it ran on."""
    instances: list[tuple[float, InstanceReady]] = []
    """Those that were there when the part began, and since when."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Header)


def encode(header: Header) -> bytes:
    return _encoder.encode(header)


def decode(data: bytes) -> Header:
    """A header from bytes.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    return _decoder.decode(data)


class _Provenance(msgspec.Struct):
    """Of a header what every version has."""

    hyperflexis: str
    schema: str


def provenance(data: bytes) -> tuple[str, str]:
    """Version and schema, also of a header that cannot be read otherwise.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    found = msgspec.msgpack.decode(data, type=_Provenance)
    return found.hyperflexis, found.schema
