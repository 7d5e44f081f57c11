"""What the network between instances is believed to do: how long a copy of KV takes, and how much is queued for whom.

Every instance has a way in and a way out, each of which carries one copy after the other. Bandwidth and latency are
learnt from the copies that were made: the time of a copy is the latency and its bytes over the bandwidth.
"""

from __future__ import annotations

WEIGHT = 0.1
"""Of each new copy, in the mean."""
BYTES_MIN = 1 << 20
"""Smaller copies say nothing of bandwidth."""


class Network:
    """Knows no topology: a way is like all others until a copy was made on it."""

    def __init__(self, bytes_s: float = 20e9, latency_s: float = 0.005) -> None:
        self.bytes_s = bytes_s
        self.latency_s = latency_s
        self._ways_bytes_s: dict[tuple[int, int], float] = {}
        """(source, target) → what copies between these two have been seen to get."""
        self._free_s: dict[tuple[str, int], float] = {}
        """("in" or "out", instance) → when what was sent for will have passed."""

    def copy_s(self, source_id: int, target_id: int, kv_bytes: float) -> float:
        """A copy alone."""
        return self.latency_s + kv_bytes / self._ways_bytes_s.get((source_id, target_id), self.bytes_s)

    def backlog_s(self, instance_id: int, now: float) -> float:
        """How long an instance's way in is busy with what is on its way."""
        return max(0.0, self._free_s.get(("in", instance_id), now) - now)

    def arrival_s(self, source_id: int, target_id: int, kv_bytes: float, now: float) -> float:
        """When so much, sent for now, should be there."""
        ways = (("out", source_id), ("in", target_id))
        return max(now, *(self._free_s.get(way, now) for way in ways)) + self.copy_s(source_id, target_id, kv_bytes)

    def send(self, source_id: int, target_id: int, kv_bytes: float, now: float) -> None:
        """Count a copy in that has just been ordered."""
        passed_s = self.arrival_s(source_id, target_id, kv_bytes, now) - self.latency_s
        self._free_s["out", source_id] = self._free_s["in", target_id] = passed_s

    def observe(self, source_id: int, target_id: int, kv_bytes: float, seconds: float) -> None:
        """Learn from a copy that was made."""
        if kv_bytes < BYTES_MIN or seconds <= self.latency_s:
            return
        way, seen_bytes_s = (source_id, target_id), kv_bytes / (seconds - self.latency_s)
        known_bytes_s = self._ways_bytes_s.get(way, seen_bytes_s)
        self._ways_bytes_s[way] = known_bytes_s + WEIGHT * (seen_bytes_s - known_bytes_s)
        self.bytes_s += WEIGHT * (seen_bytes_s - self.bytes_s)
