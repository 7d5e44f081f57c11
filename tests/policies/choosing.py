"""What a policy, made fresh, would choose among a hand-made cluster's instances."""

from __future__ import annotations

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.dispatch import Placement
from hyperflexis.core.request import Request
from hyperflexis.policies import create


def placement(name: str, request: Request, cluster: Cluster, now: float = 0.0) -> Placement:
    """A name may carry tuning."""
    return create(name, 512).dispatcher.choose(request, cluster.ready, cluster, now)


def chosen(name: str, request: Request, cluster: Cluster, now: float = 0.0) -> int:
    """The instance's id."""
    return placement(name, request, cluster, now).instance.id
