"""Llumnix (OSDI'24), its dispatch: to the instance with the highest freeness.

    freeness = (capacity - sum of virtual usage) / batch size

From the paper: a running request's virtual usage is what it holds; queued ones count before they hold anything; of
requests with a high priority an instance keeps headroom free, by counting more than they hold. The paper counts the
queue's head alone, its published code all that is queued (`queued`: head or all). Our reading: headroom is a share of
the capacity, once per instance that has work above the lowest priority there is; it is off unless asked for, as work of
high priority that is everywhere all the time leaves nothing to tell apart. An idle instance's batch counts as one.

Not here: migration, which is most of that paper (pairs of the heaviest and the lightest instance, defragmentation,
draining) and belongs to a later part of this project; and scaling. Inside is vLLM, as in the paper, with its priority
scheduling where asked for. Promises are not looked at.
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

QUEUED = {"all": True, "head": False}


class Freeness:
    """The most free tokens per request."""

    def __init__(self, counts_all: bool, headroom_share: float) -> None:
        self._counts_all = counts_all
        self._headroom_share = headroom_share

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        freeness = {instance.id: self.freeness(instance) for instance in instances}
        chosen = min(instances, key=lambda instance: (-freeness[instance.id], instance.dispatches, instance.id))
        return Placement(chosen, Reason(Why.LEAST_LOADED, (("freeness", freeness[chosen.id]),)))

    def freeness(self, instance: Instance) -> float:
        capacity = instance.capacity.blocks * instance.capacity.block_tokens
        return (capacity - self._virtual_tokens(instance, capacity)) / max(1, instance.requests)

    def _virtual_tokens(self, instance: Instance, capacity: int) -> float:
        queued = sorted(instance.waiting.values(), key=lambda waiting: (waiting.arrived_s, waiting.id))
        counted = queued if self._counts_all else queued[:1]
        tokens = float(instance.context_tokens + sum(waiting.context_tokens for waiting in counted))
        if self._headroom_share and _has_high_priority(instance):
            tokens += self._headroom_share * capacity
        return tokens


def _has_high_priority(instance: Instance) -> bool:
    return any(each.priority > 0 for held in (instance.waiting, instance.decoding) for each in held.values())


def policy(
    prefill_tokens_max: int,
    *,
    queued: str = "all",
    headroom_share: float = 0.0,
    chunk: int = 0,
    engine: str = "first_come",
) -> Policy:
    if not 0 <= headroom_share <= 1:
        raise ValueError(f"headroom_share must be between 0 and 1, not {headroom_share}")
    dispatcher = Freeness(engines.named("queued", queued, QUEUED), headroom_share)
    return Policy("llumnix_v0", dispatcher, engines.rules(engine, prefill_tokens_max, chunk))
