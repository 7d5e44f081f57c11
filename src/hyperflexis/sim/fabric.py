"""The network between modelled instances: what a copy takes, and whom it keeps waiting.

Every instance has one way out and one way in, of the same bandwidth, and each carries one copy after the other. A copy
begins when both its ways are free and is there a latency after its last byte was sent.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FabricSpec:
    """All ways are alike, but for those that are said to be slow."""

    bytes_s: float = 40e9
    latency_s: float = 0.005
    message_s: float = 0.0005
    """What a word between two instances takes."""
    link_s: float = 0.01
    """What making a link takes."""
    slow: tuple[int, ...] = ()
    """Instances whose ways are `slowdown` times slower."""
    slowdown: float = 10.0


class Fabric:
    """Keeps which way is busy until when."""

    def __init__(self, spec: FabricSpec) -> None:
        self.spec = spec
        self._free_s: dict[tuple[str, int], float] = {}

    def copy(self, source_id: int, target_id: int, kv_bytes: float, now: float) -> tuple[float, float]:
        """Begin a copy as soon as its ways are free; returns when it is there, and how long it takes alone."""
        spec, out, into = self.spec, ("out", source_id), ("in", target_id)
        bytes_s = spec.bytes_s / (spec.slowdown if {source_id, target_id} & set(spec.slow) else 1.0)
        begin_s = max(now, self._free_s.get(out, now), self._free_s.get(into, now))
        sent_s = begin_s + kv_bytes / bytes_s
        self._free_s[out] = self._free_s[into] = sent_s
        return sent_s + spec.latency_s, sent_s - begin_s + spec.latency_s
