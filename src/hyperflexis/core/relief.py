"""Which running requests move to another instance although nobody hands them off, and why.

    evacuates    its instance is to end: everything leaves it, what waits first, then the smallest contexts
    relieves     a step there takes more than .95 of the strictest pace, in two looks in a row
    defragments  over .93 of its blocks are spoken for, and a prefill waits that does not fit into what is free

The smallest context goes, to where a step stays below .85 of the strictest pace with it and .95 of the blocks are
enough: the constants are those of Llumnix v1 (a published system) but for the blocks', which were measured. One leaves
and one comes to an instance at a time. In a balanced fleet of fixed size all this is worth next to nothing (measured);
it is what makes leaving quick.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from hyperflexis.core import binding
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.instance import Instance, InstanceState, Role
from hyperflexis.core.migration import Migrations
from hyperflexis.core.request import Request, RequestState

PRESSED = 0.95
TARGET_MAX = 0.85
FULL = 0.93
TARGET_FULL = 0.95
LOOKS = 2
MOVABLE = frozenset({RequestState.WAITING, RequestState.PREFILLING, RequestState.DECODING})


class Move(NamedTuple):
    """Have the target take the request."""

    request: Request
    target: Instance
    reason: Reason


class Relief:
    """`plan` is asked every `control.TICK_S` while there is work."""

    def __init__(self) -> None:
        self._pressed: dict[int, int] = {}
        """Looks in a row at which an instance was too slow."""

    def plan(self, cluster: Cluster, migrations: Migrations) -> list[Move]:
        """Say what should move now."""
        triggers = [(instance, self._trigger(instance)) for instance in cluster.instances.values()]
        return _moves([(instance, why) for instance, why in triggers if why is not None], cluster, migrations)

    def evacuate(self, cluster: Cluster, migrations: Migrations) -> list[Move]:
        """Say what should leave those that are to end. Asked whenever something has left."""
        ending = [i for i in cluster.instances.values() if i.state is InstanceState.DRAINING]
        return _moves([(instance, Why.EVACUATES) for instance in ending], cluster, migrations) if ending else []

    def _trigger(self, instance: Instance) -> Why | None:
        if instance.state is InstanceState.DRAINING:
            return Why.EVACUATES
        if instance.state is not InstanceState.READY or not instance.decoding:
            return None
        step_s = instance.latency.decode_step_s(len(instance.decoding), instance.context_tokens)
        is_pressed = step_s > PRESSED * instance.strictest_pace_s()
        self._pressed[instance.id] = self._pressed.get(instance.id, 0) + 1 if is_pressed else 0
        if self._pressed[instance.id] >= LOOKS:
            return Why.RELIEVES
        return Why.DEFRAGMENTS if _lacks_blocks(instance) else None


def _moves(triggers: Iterable[tuple[Instance, Why]], cluster: Cluster, migrations: Migrations) -> list[Move]:
    """One for each instance, of which one leaves and one comes at a time."""
    moving = [each for each in migrations.under_way.values() if not each.at_first_token]
    leaving = {each.source.id for each in moving}
    coming = {each.target.id for each in moving}
    found: list[Move] = []
    for instance, why in triggers:
        if instance.id in leaving:
            continue
        for request in _victims(instance, migrations):
            target = _target(request, instance, cluster, migrations, coming)
            if target is not None:
                coming.add(target.id)
                numbers = (("context_tokens", float(request.context_tokens)),)
                found.append(Move(request, target, Reason(why, numbers)))
                break
    return found


def _lacks_blocks(instance: Instance) -> bool:
    """Whether a prefill waits there for blocks that others are going to need."""
    capacity = instance.capacity
    if instance.planned_blocks <= FULL * capacity.blocks or not instance.waiting:
        return False
    held = sum(capacity.blocks_for(request.context_tokens) for request in instance.decoding.values())
    largest = max(capacity.blocks_for(request.context_tokens) for request in instance.waiting.values())
    return held + largest > capacity.blocks


def _victims(instance: Instance, migrations: Migrations) -> Iterable[Request]:
    """What could leave, in order. What waits costs nothing to move, but leaves only an instance that ends."""
    waiting = list(instance.waiting.values()) if instance.state is InstanceState.DRAINING else []
    decoding = sorted(instance.decoding.values(), key=lambda request: (request.context_tokens, request.id))
    return [each for each in [*waiting, *decoding] if each.id not in migrations and each.state in MOVABLE]


def _target(
    request: Request, source: Instance, cluster: Cluster, migrations: Migrations, coming: set[int]
) -> Instance | None:
    """The instance that would be least pressed by it; None where all would be too much."""
    expected = cluster.expected_tokens(request)
    decodes = request.first_token_s is not None
    candidates = []
    for target in cluster.ready:
        is_role = target.role is not Role.PREFILL if decodes else target.role is not Role.DECODE
        if target is source or target.id in coming or not is_role or not migrations.can(source, target):
            continue
        blocks = target.planned_blocks + target.capacity.blocks_for(request.prompt_tokens + expected)
        used = binding.used_share(request, target, expected)
        if blocks <= TARGET_FULL * target.capacity.blocks and (used <= TARGET_MAX or not decodes):
            candidates.append((used, target.id, target))
    return min(candidates)[2] if candidates else None
