"""Which medium takes a pull: what the owner offers, what this side has, where both are, on what device the bytes lie.

Knows names of media and places, no media themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from hyperflexis.transfer.descriptor import Descriptor
from hyperflexis.transfer.medium import Buffer, is_on_device
from hyperflexis.transfer.memory import SharedMemory
from hyperflexis.transfer.place import Place


def _is_anywhere(_ours: Place, _theirs: Place) -> bool:
    return True


REACHES: dict[str, Callable[[Place, Place], bool]] = {
    "shm": Place.shares_memory_with,
    "cuda_ipc": Place.shares_devices_with,
    "nixl": _is_anywhere,
    "unix": Place.shares_memory_with,
    "tcp": _is_anywhere,
}
"""Every medium, the best first, and between which places it works."""


def offered(buffer: Buffer, has_nixl: bool, has_tcp: bool, is_filling: bool = False) -> tuple[str, ...]:
    """By which media a source that has these can lend a buffer.

    One that is still being filled is lent only by what the source itself sends: it alone knows how far it has come.
    """
    if is_filling:
        return ("unix", "tcp") if has_tcp else ("unix",)
    if is_on_device(buffer):
        return ("cuda_ipc", "nixl") if has_nixl else ("cuda_ipc",)
    return (
        *(("shm",) if isinstance(buffer, SharedMemory) else ()),
        *(("nixl",) if has_nixl else ()),
        "unix",
        *(("tcp",) if has_tcp else ()),
    )


def ways(descriptor: Descriptor, ours: Place, available: Collection[str]) -> list[str]:
    """The media that can take a pull from there to here, the best first."""
    return [
        name
        for name, reaches in REACHES.items()
        if name in descriptor.media and name in available and reaches(ours, descriptor.place)
    ]
