"""A fleet that is told the future: how much will be needed when, by a comparison that knows all arrivals and answers.

No rival but a yardstick. Knows no policy by name, for it cannot be made without a schedule.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.control import Policy
from hyperflexis.core.sizing import Sizing, Wanted
from hyperflexis.policies import elastic


class Schedule:
    def __init__(self, needs: Sequence[tuple[float, int]], spare_s: float = 2.0) -> None:
        """`needs` are (from when, instances), in order; help is to be there so long before."""
        self._instants = [instant_s for instant_s, _ in needs]
        self._counts = [count for _, count in needs]
        self._spare_s = spare_s

    def plan(self, cluster: Cluster, sizing: Sizing, now: float) -> Wanted | None:
        """The most that is needed from now until a start that is begun now could be waited for."""
        until_s = now + sizing.start_s() + self._spare_s
        begin = max(0, bisect_left(self._instants, now) - 1)
        counts = self._counts[begin : bisect_left(self._instants, until_s)]
        return elastic.wanted(sizing, max(counts, default=0))


def policy(prefill_tokens_max: int, needs: Sequence[tuple[float, int]], spare_s: float = 2.0) -> Policy:
    return elastic.policy("clairvoyant", prefill_tokens_max, Schedule(needs, spare_s))
