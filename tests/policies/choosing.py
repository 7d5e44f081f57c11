"""What a policy, made fresh, would choose among a hand-made cluster's instances."""

from __future__ import annotations

from helpers.builders import cluster, decode
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import Placement
from hyperflexis.core.instance import Instance, Role
from hyperflexis.core.request import Request, RequestState
from hyperflexis.policies import create


def placement(name: str, request: Request, among: Cluster, now: float = 0.0) -> Placement:
    """A name may carry tuning."""
    return create(name, 512).dispatcher.choose(request, among.ready, among, now)


def chosen(name: str, request: Request, among: Cluster, now: float = 0.0) -> int:
    """The instance's id."""
    return placement(name, request, among, now).instance.id


def fleet(*roles: Role, **limits: int) -> Cluster:
    """A cluster of ready and empty instances with these roles, numbered from 0."""
    made = cluster(len(roles), **limits)
    for instance, role in zip(made.ready, roles, strict=True):
        instance.role = role
    made.note_ready()
    return made


def relabel(policy: Policy, among: Cluster, now: float = 0.0) -> dict[int, Role]:
    """Let the policy change roles, as the control plane does; returns those that it changed."""
    assert policy.planner is not None
    changes = policy.planner.plan(among, now)
    for change in changes:
        assert change.instance.role is not change.role
        change.instance.role = change.role
    among.note_ready()
    return {change.instance.id: change.role for change in changes}


def prefill(policy: Policy, newcomer: Request, among: Cluster, now: float = 0.0) -> int:
    """Where a prompt goes, by id."""
    return policy.dispatcher.choose(newcomer, among.fronts, among, now).instance.id


def stand(newcomer: Request, on: Instance) -> Request:
    """Let it be prefilled there, and stand still with its first token."""
    decode(newcomer, on)
    on.stand(newcomer)
    newcomer.state = RequestState.STANDING
    return newcomer


def bound(policy: Policy, newcomer: Request, source: Instance, among: Cluster, now: float = 0.0) -> int | None:
    """Where it decodes, by id; None if it has to wait."""
    assert policy.binder is not None
    targets = [each for each in among.ready if each.role is not Role.PREFILL and each is not source]
    found = policy.binder.choose(newcomer, source, targets, among, now)
    return None if found is None else found.instance.id
