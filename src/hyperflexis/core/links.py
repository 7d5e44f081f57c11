"""Which instance may take from which: links are made before they are needed, and each has a version.

A link leads from who has KV to who takes it. It is up when the target has said that it can reach the source's memory,
and down again when either end is gone or the target says so. Whoever orders a move names the version of the link that
it goes over, so that what was meant for an older one is refused. (LinkCluster of DeepServe, a published system, is
alike.)

Knows no memory and no descriptors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hyperflexis.core.commands import Link, Reason, Unlink, Why
from hyperflexis.core.instance import Instance

RETRY_S = 1.0
"""Pause before a link that has failed is tried again."""
TRIES_MAX = 5
"""A link that failed so often in a row is tried no more."""


@dataclass(slots=True)
class _Link:
    version: int
    is_up: bool = False
    retry_s: float | None = None
    """When to try again; None unless it has failed."""
    failures: int = 0


class Links:
    """All links of a cluster, by (source, target)."""

    def __init__(self) -> None:
        self._links: dict[tuple[int, int], _Link] = {}
        self._version = 0

    def connect(self, instance: Instance, others: Iterable[Instance]) -> list[Link]:
        """Link a new instance with each of the others, both ways."""
        pairs = [pair for other in others for pair in ((other.id, instance.id), (instance.id, other.id))]
        return [self._make(pair, 0) for pair in pairs if pair[0] != pair[1] and pair not in self._links]

    def up(self, source_id: int, target_id: int, version: int) -> bool:
        """Note that a link is up; False if it is not the one that was asked for last."""
        link = self._links.get((source_id, target_id))
        if link is None or link.version != version:
            return False
        link.is_up, link.failures, link.retry_s = True, 0, None
        return True

    def down(self, source_id: int, target_id: int, version: int, now: float) -> None:
        """Note that a link could not be made, or is lost."""
        link = self._links.get((source_id, target_id))
        if link is None or link.version != version:
            return
        link.is_up = False
        link.failures += 1
        link.retry_s = now + RETRY_S if link.failures < TRIES_MAX else None

    def retry(self, now: float) -> list[Link]:
        """Try those again whose time has come."""
        due = [
            (pair, link.failures)
            for pair, link in self._links.items()
            if link.retry_s is not None and now >= link.retry_s
        ]
        return [self._make(pair, failures) for pair, failures in due]

    def disconnect(self, instance_id: int) -> list[Unlink]:
        """Forget all links of an instance that is gone; those that took from it are to know."""
        gone = [pair for pair in self._links if instance_id in pair]
        versions = {pair: self._links.pop(pair).version for pair in gone}
        reason = Reason(Why.MEMBERSHIP)
        return [Unlink(*pair, version, reason) for pair, version in versions.items() if pair[0] == instance_id]

    def version(self, source_id: int, target_id: int) -> int | None:
        """Of the link that is up; None where there is none."""
        link = self._links.get((source_id, target_id))
        return link.version if link is not None and link.is_up else None

    def is_pending(self, instance_id: int) -> bool:
        """Whether an instance still waits for a link of its that has not failed."""
        return any(instance_id in pair and not link.is_up and not link.failures for pair, link in self._links.items())

    def next_retry_s(self) -> float | None:
        return min((link.retry_s for link in self._links.values() if link.retry_s is not None), default=None)

    def _make(self, pair: tuple[int, int], failures: int) -> Link:
        self._version += 1
        self._links[pair] = _Link(self._version, failures=failures)
        return Link(*pair, self._version, Reason(Why.MEMBERSHIP))
