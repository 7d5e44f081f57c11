"""A buffer that its owner lends, as the owner knows it. What may be done with it is the source's to say."""

from __future__ import annotations

from dataclasses import dataclass

from hyperflexis.transfer.medium import Buffer
from hyperflexis.transfer.watermark import Watermark


@dataclass(slots=True, eq=False)
class Region:
    """Identity is the object; only its source changes it."""

    number: int
    name: str
    buffer: Buffer
    view: memoryview | None
    """Its bytes, for what the source itself reads; None for a device's."""
    size_bytes: int
    device: str
    media: tuple[str, ...]
    slot: int
    generation: int
    watermark: Watermark | None = None
    """How far it has been filled; None: it holds what it is to hold."""

    @property
    def title(self) -> str:
        return f"region {self.name or self.number}"
