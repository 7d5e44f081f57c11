"""What a plain load balancer in front of stock engines does: next in turn, and first come first served inside.

Steps take decodes first and then prefill chunks in order of arrival up to a fixed number of tokens, as vLLM's defaults
do. Promises and priorities are not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import Placement
from hyperflexis.core.instance import Instance
from hyperflexis.core.request import Request
from hyperflexis.policies import engines


class InTurn:
    """The first instance whose id is above the last one's, else the first of all."""

    def __init__(self) -> None:
        self._last_id = -1

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        following = [instance for instance in instances if instance.id > self._last_id]
        instance = min(following or instances, key=lambda candidate: candidate.id)
        self._last_id = instance.id
        return Placement(instance, Reason(Why.IN_TURN))


def policy(prefill_tokens_max: int, *, chunk: int = 0, engine: str = "first_come") -> Policy:
    return Policy("round_robin", InTurn(), engines.rules(engine, prefill_tokens_max, chunk))
