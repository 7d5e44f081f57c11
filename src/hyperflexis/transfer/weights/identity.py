"""What weights are, so that two processes can tell whether theirs are the same before a byte moves."""

from __future__ import annotations

import msgspec


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """Equal identities mean equal bytes. Whoever makes one answers for that."""

    model: str
    """Fingerprint of the checkpoint; empty, from a recipient that has none: whatever the donor calls it."""
    dtype: str
    layout: str
    """Hash of where each tensor lies."""
    size_bytes: int
    rank: int = 0
    ranks: int = 1
    """Which part of the model this is, of how many."""

    def unlike(self, wanted: Identity) -> str:
        """Say in what this is not what is wanted; empty if it is."""
        if wanted.model and self.model != wanted.model:
            return f"another model ({self.model[:12]}, not {wanted.model[:12]})"
        if self.dtype != wanted.dtype:
            return f"another dtype ({self.dtype}, not {wanted.dtype})"
        if (self.rank, self.ranks) != (wanted.rank, wanted.ranks):
            return f"another part (rank {self.rank} of {self.ranks}, not {wanted.rank} of {wanted.ranks})"
        if (self.layout, self.size_bytes) != (wanted.layout, wanted.size_bytes):
            return f"another layout ({self.layout[:12]}, not {wanted.layout[:12]})"
        return ""
