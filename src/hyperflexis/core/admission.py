"""Who is let in where no more requests may be unfinished: those more important than one that has not begun.

That one is refused in their place, as it would have been had it come a moment later. So a flood of work that can wait
does not keep out what cannot. Equally important ones keep their places, as does whatever has a token, moves between
instances, or is a part of an answer whose other parts may have begun.
"""

from __future__ import annotations

import math
from itertools import chain

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.migration import Migrations
from hyperflexis.core.request import Request, RequestState

REMEMBERED_S = 0.1
"""How long it is good for that nobody less important was found: in a flood everybody who is refused asks."""
_NOT_BEGUN = frozenset({RequestState.QUEUED, RequestState.WAITING})


class Admission:
    """Of one fleet."""

    def __init__(self, cluster: Cluster, migrations: Migrations, requests_max: int) -> None:
        self.requests_max = requests_max
        self._cluster = cluster
        self._migrations = migrations
        self._looked_s = -math.inf
        self._least_priority = 0
        """Nobody below it was found then."""

    @property
    def is_full(self) -> bool:
        return len(self._cluster.requests) >= self.requests_max

    def displaced_by(self, request: Request, now: float) -> Request | None:
        """The one to give up for this one: of the least important the latest. None where all are as important."""
        if request.priority <= self._least_priority and now < self._looked_s + REMEMBERED_S:
            return None
        waiting = chain.from_iterable(each.waiting.values() for each in self._cluster.instances.values())
        candidates = [
            each
            for each in chain(self._cluster.queue, waiting)
            if each.priority < request.priority and self.may_displace(each)
        ]
        if not candidates:
            self._looked_s, self._least_priority = now, request.priority
            return None
        return min(candidates, key=lambda each: (each.priority, -each.arrived_s, -each.id))

    def may_displace(self, request: Request) -> bool:
        """Whether its client has seen nothing of an answer, and nothing else hangs on it."""
        has_begun = request.first_token_s is not None or request.state not in _NOT_BEGUN
        return not (has_begun or request.is_part or request.id in self._migrations)
