"""What policies with roles ask of instances: who is in which pool, and what one more request would do to it.

Decode steps are predicted from contexts as they are, with all that waits there or is on its way counted in, because
the published systems that pack or fill decode instances predict so. `core.binding` predicts with expected lengths
instead, and says who has room.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hyperflexis.core.binding import has_room
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.instance import Instance, Role
from hyperflexis.core.request import Request
from hyperflexis.policies import forecast


def of(role: Role, instances: Iterable[Instance]) -> list[Instance]:
    """Those with a role."""
    return [instance for instance in instances if instance.role is role]


def large_enough(request: Request, instances: Iterable[Instance]) -> list[Instance]:
    """Those that could hold it; a dispatcher that looks beyond what it is offered sees to that itself."""
    tokens = request.prompt_tokens + request.max_tokens
    return [each for each in instances if each.capacity.blocks_for(tokens) <= each.capacity.blocks]


def with_room(request: Request, instances: Iterable[Instance], cluster: Cluster) -> list[Instance]:
    """Those that have blocks and a seat for it to the end; elsewhere a move would fail."""
    expected = cluster.expected_tokens(request)
    return [each for each in instances if has_room(request, each, expected)]


def decode_s(request: Request, instance: Instance) -> float:
    """A step of decodes with it there, once all that waits there, or is on its way, decodes too."""
    coming = [*instance.waiting.values(), *(other for other, _ in instance.arriving.values())]
    context = instance.context_tokens + sum(other.context_tokens for other in coming) + request.context_tokens
    return instance.latency.decode_step_s(instance.requests + 1, context)


def pace_s(request: Request, instance: Instance) -> float:
    """The strictest that would be promised there; infinite where none is."""
    return min(instance.strictest_pace_s(), forecast.tpot_slo_s(request))


def is_idle(instance: Instance) -> bool:
    """Whether it has nothing, and nothing is on its way."""
    return not instance.requests and not instance.standing


def least_waiting(instances: Sequence[Instance]) -> Instance:
    """The one with the least prefill work, and between equals the one that was sent the fewest so far."""
    return min(instances, key=lambda each: (each.waiting_s(), each.dispatches, each.id))
