"""Dynamo's conditional disaggregation: the decode instance first, and another one to prefill only where that pays.

From its published documentation and source: a request goes to a decode instance, in turn or by a cost, the least of
`blocks to prefill + blocks in use`; it is prefilled there if what its cache lacks is at most a threshold (1000
tokens), or if the queue for remote prefill, which all prefill instances share, is longer than another (2 requests, in
its examples with one prefill instance); and by a prefill instance otherwise. Its KV then goes to the decode instance
chosen before.

Ours: prompts wait at prefill instances, which get them at once, and not in one queue, whose length is therefore what
waits and has not begun there; the threshold on it is for each prefill instance; the one with the least prefill work
gets the next; order and chunks. The cost counts requests that are bound but not there yet.

Simplified: a decode instance sets no blocks aside until the prefill begins; one that has none free then is waited for,
one that has died is replaced. Where no instance only decodes, all prompts are prefilled where they decode.
"""

from __future__ import annotations

from collections.abc import Sequence

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import Placement
from hyperflexis.core.instance import Instance, Role
from hyperflexis.core.request import Request, RequestState
from hyperflexis.core.step import StepRules
from hyperflexis.policies import engines, pools

FORGET_FROM = 256
"""From so many requests remembered for an instance on, those that have ended are forgotten."""
WORKERS = {"cost": True, "turn": False}


class Bound:
    """For each request that is prefilled elsewhere, the decode instance that it was bound to at its arrival."""

    def __init__(self, by_cost: bool) -> None:
        self._by_cost = by_cost
        self._bound: dict[int, tuple[int, int]] = {}
        """Request → (instance, blocks)."""
        self._last_id = -1

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster) -> Instance:
        """The next in turn, or the least cost."""
        if not self._by_cost:
            chosen = min(instances, key=lambda each: (each.id <= self._last_id, each.id))
            self._last_id = chosen.id
            return chosen
        coming = self._coming_blocks(cluster)
        return min(
            instances,
            key=lambda each: (cost(request, each) + coming.get(each.id, 0), each.requests, each.dispatches, each.id),
        )

    def bind(self, request: Request, instance: Instance, cluster: Cluster) -> None:
        if len(self._bound) >= FORGET_FROM:
            self._bound = {number: bound for number, bound in self._bound.items() if number in cluster.requests}
        self._bound[request.id] = (instance.id, instance.capacity.blocks_for(request.context_tokens))

    def of(self, request: Request) -> int | None:
        """The instance's id."""
        found = self._bound.get(request.id)
        return None if found is None else found[0]

    def _coming_blocks(self, cluster: Cluster) -> dict[int, int]:
        """Blocks by instance of what is bound to it and neither there nor on its way."""
        blocks: dict[int, int] = {}
        for number, (instance_id, count) in self._bound.items():
            request, instance = cluster.requests.get(number), cluster.instances.get(instance_id)
            if request is None or instance is None or request.instance_id == instance_id:
                continue
            if number not in instance.arriving:
                blocks[instance_id] = blocks.get(instance_id, 0) + count
        return blocks


def cost(request: Request, instance: Instance) -> float:
    """Blocks to prefill there, and blocks in use there with it."""
    fresh = request.context_tokens - instance.cached_tokens(request)
    return instance.capacity.blocks_for(fresh) + used_blocks(request, instance)


def used_blocks(request: Request, instance: Instance) -> int:
    """Blocks in use there now, with all that waits there or is on its way, and it."""
    coming = [*instance.waiting.values(), *(other for other, _ in instance.arriving.values())]
    context = instance.context_tokens + sum(other.context_tokens for other in coming) + request.context_tokens
    return instance.capacity.blocks_for(context)


class Conditional:
    """A decode instance, and then where the prompt is prefilled."""

    def __init__(self, bound: Bound, local_tokens: int, queue_max: int) -> None:
        self._bound = bound
        self._local_tokens = local_tokens
        self._queue_max = queue_max

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        able = pools.large_enough(request, cluster.ready)
        prefill, decode = pools.of(Role.PREFILL, able), pools.of(Role.DECODE, able)
        worker = self._bound.choose(request, decode or instances, cluster)
        fresh = request.context_tokens - worker.cached_tokens(request)
        queued = sum(_has_not_begun(other) for each in prefill for other in each.waiting.values())
        numbers = (("fresh_tokens", float(fresh)), ("queued", float(queued)))
        if not prefill or not decode or fresh <= self._local_tokens or queued > self._queue_max * len(prefill):
            return Placement(worker, Reason(Why.LEAST_LOADED, numbers))
        self._bound.bind(request, worker, cluster)
        return Placement(pools.least_waiting(prefill), Reason(Why.LEAST_LOADED, numbers))


def _has_not_begun(request: Request) -> bool:
    return request.state is RequestState.WAITING


class AsBound:
    """The instance chosen at the arrival, as soon as it has room."""

    def __init__(self, bound: Bound) -> None:
        self._bound = bound

    def choose(
        self, request: Request, source: Instance, targets: Sequence[Instance], cluster: Cluster, now: float
    ) -> Placement | None:
        if not targets:
            return None
        worker = next((each for each in targets if each.id == self._bound.of(request)), None)
        if worker is None:  # It has died, or cannot be reached.
            worker = self._bound.choose(request, targets, cluster)
            self._bound.bind(request, worker, cluster)
        capacity = worker.capacity
        if used_blocks(request, worker) > capacity.blocks or worker.requests >= capacity.seqs_max:
            return None
        return Placement(worker, Reason(Why.PREFILLED))


def policy(prefill_tokens_max: int, *, local_tokens: int = 1000, queue_max: int = 2, worker: str = "cost") -> Policy:
    """`local_tokens` are prefilled where they decode, and all while over `queue_max` wait per prefill instance."""
    for name, value in (("local_tokens", local_tokens), ("queue_max", queue_max)):
        if value < 0:
            raise ValueError(f"{name} must be at least 0, not {value}")
    bound, rules = Bound(engines.named("worker", worker, WORKERS)), StepRules(prefill_tokens_max=prefill_tokens_max)
    return Policy("dynamo_pd", Conditional(bound, local_tokens, queue_max), rules, binder=AsBound(bound))
