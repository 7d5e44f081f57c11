"""Which instance may take from which: links are made before they are needed, and each has a version.

A link leads from who has KV to who takes it. It is up when the target has said that it can reach the source's memory,
and down again when either end is gone or the target says so. Where an end says nothing, the link counts as failed after
a while, until it does. Whoever orders a move names the version of the link that it goes over, so that what was meant
for an older one is refused. (LinkCluster of DeepServe, a published system, is alike.)

Knows no memory and no descriptors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hyperflexis.core.commands import Link, Reason, Unlink, Why
from hyperflexis.core.instance import Instance

PENDING_MAX_S = 5.0
"""A link of which nothing was heard for so long is waited for no more. A step that an end is in takes less."""
RETRY_S = 1.0
"""Pause before a link that has failed is tried again."""
TRIES_MAX = 5
"""A link that failed so often in a row is tried no more."""


@dataclass(slots=True)
class _Link:
    version: int
    until_s: float
    """How long to wait for word of it."""
    is_up: bool = False
    retry_s: float | None = None
    """When to try again; None unless it has failed."""
    failures: int = 0


class Links:
    """All links of a cluster, by (source, target)."""

    def __init__(self) -> None:
        self._links: dict[tuple[int, int], _Link] = {}
        self._version = 0

    def connect(self, instance: Instance, others: Iterable[Instance], now: float) -> list[Link]:
        """Link a new instance with each of the others, both ways."""
        pairs = [pair for other in others for pair in ((other.id, instance.id), (instance.id, other.id))]
        return [self._make(pair, 0, now) for pair in pairs if pair[0] != pair[1] and pair not in self._links]

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

    def expire(self, now: float) -> set[int]:
        """Let those fail that have been silent for too long; returns whom they lead from or to.

        Should one of them come up after all, it is up.
        """
        silent = [
            (pair, link.version) for pair, link in self._links.items() if _is_silent(link) and now >= link.until_s
        ]
        for pair, version in silent:
            self.down(*pair, version, now)
        return {end for pair, _ in silent for end in pair}

    def retry(self, now: float) -> list[Link]:
        """Try those again whose time has come."""
        due = [
            (pair, link.failures)
            for pair, link in self._links.items()
            if link.retry_s is not None and now >= link.retry_s
        ]
        return [self._make(pair, failures, now) for pair, failures in due]

    def disconnect(self, instance_id: int) -> list[Unlink]:
        """Forget all links of an instance that is gone; who took from it is to know, and who has lent to it."""
        gone = [pair for pair in self._links if instance_id in pair]
        versions = {pair: self._links.pop(pair).version for pair in gone}
        reason = Reason(Why.MEMBERSHIP)
        return [Unlink(*pair, version, reason) for pair, version in versions.items()]

    def version(self, source_id: int, target_id: int) -> int | None:
        """Of the link that is up; None where there is none."""
        link = self._links.get((source_id, target_id))
        return link.version if link is not None and link.is_up else None

    def is_pending(self, instance_id: int) -> bool:
        """Whether an instance still waits for a link of its that has not failed."""
        return any(instance_id in pair and not link.is_up and not link.failures for pair, link in self._links.items())

    def next_due_s(self) -> float | None:
        """When a link is to be tried again, or waited for no more."""
        retries_s = [link.retry_s for link in self._links.values() if link.retry_s is not None]
        return min([*retries_s, *(link.until_s for link in self._links.values() if _is_silent(link))], default=None)

    def _make(self, pair: tuple[int, int], failures: int, now: float) -> Link:
        self._version += 1
        self._links[pair] = _Link(self._version, now + PENDING_MAX_S, failures=failures)
        return Link(*pair, self._version, Reason(Why.MEMBERSHIP))


def _is_silent(link: _Link) -> bool:
    """Whether nothing has been heard of this version yet."""
    return not link.is_up and link.retry_s is None and link.failures < TRIES_MAX
