"""Fleets whose requests may go from one instance to another, and the policies that can serve them.

A fleet `keeps` every request where it was put, has roles that stay (`fixed`), or roles that follow demand (`planned`).
Instances with roles need a policy that moves requests, planned roles one that changes roles. Knows nothing of where a
fleet is described.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from hyperflexis.core.control import Policy
    from hyperflexis.core.instance import Role

Roles = Literal["fixed", "planned"]
"""What an operator can choose."""
Moving = Literal["keeps", "fixed", "planned"]
"""What that comes to: a fleet of mixed instances whose roles are fixed moves nothing of its own accord."""

TUNING = "roles"
"""What policies that can do either call it."""


def moving(prefill: int | bool, decode: int | bool, roles: Roles) -> Moving:
    """What a fleet asks of its policy, by how many prefill only and decode only, or whether any do."""
    return roles if prefill or decode or roles == "planned" else "keeps"


def in_order(prefill: int, mixed: int, decode: int) -> tuple[Role, ...]:
    """The roles of instances in the order of their launch."""
    from hyperflexis.core.instance import Role  # here, so that --help loads nothing of the core

    return (Role.PREFILL,) * prefill + (Role.MIXED,) * mixed + (Role.DECODE,) * decode


def lonely(prefill: int, mixed: int, decode: int) -> str:
    """What a fleet lacks that only prefills or only decodes; empty if it lacks nothing."""
    if prefill and not decode + mixed:
        return "instances that prefill, and none that decodes: add decode or mixed ones"
    if decode and not prefill + mixed:
        return "instances that decode, and none that prefills: add prefill or mixed ones"
    return ""


def create(text: str, prefill_tokens_max: int, moving: Moving, *, is_elastic: bool = False) -> Policy:
    """A fresh policy, its tuning with its name if any, for a fleet that asks this of it.

    In a fleet whose size changes, requests move where the policy can have them move: it is what makes leaving quick.

    Raises:
        ValueError: there is no such policy, or it cannot serve such a fleet; the message names those that can.
    """
    from hyperflexis.policies import create

    made = create(spelled(text, moving, is_elastic=is_elastic), prefill_tokens_max)
    if is_elastic and not _scales(made):
        raise ValueError(f"{text} keeps the number of instances as it is; these change it: {_named(_scales)}")
    if is_elastic and moving == "fixed" and not _scales_roles(made):
        raise ValueError(f"{text} sizes instances of one role only; these size each role: {_named(_scales_roles)}")
    if moving != "keeps" and not _moves(made):
        raise ValueError(f"{text} keeps each request on one instance; these move them: {_named(_moves)}")
    if moving == "planned" and not _plans(made):
        raise ValueError(f"{text} changes no roles; these do: {_named(_plans)}")
    return made


def spelled(text: str, moving: Moving, *, is_elastic: bool = False) -> str:
    """The policy with all the tuning that such a fleet gives it, as `policies.create` takes it.

    Raises:
        ValueError: there is no such policy.
    """
    from hyperflexis.policies import parse, tunables

    name, tuning = parse(text)
    if TUNING in tunables(name) and (moving != "keeps" or is_elastic):
        tuning.setdefault(TUNING, "fixed" if moving == "keeps" else moving)
    pairs = ",".join(f"{key}={value}" for key, value in tuning.items())
    return f"{name}:{pairs}" if pairs else name


def able(moving: Moving, *, is_elastic: bool = False) -> list[str]:
    """The policies that can serve such a fleet, untuned."""
    from hyperflexis.policies import POLICIES

    return [name for name in POLICIES if _can(name, moving, is_elastic)]


def _can(name: str, moving: Moving, is_elastic: bool) -> bool:
    try:
        create(name, 1024, moving, is_elastic=is_elastic)
    except ValueError:
        return False
    return True


def _named(is_able: Callable[[Policy], bool]) -> str:
    """The policies that can, as they are made untuned; those that can do either way are asked for roles."""
    from hyperflexis.policies import POLICIES, create, tunables

    made = {name: create(name, 1024, **({TUNING: "planned"} if TUNING in tunables(name) else {})) for name in POLICIES}
    return ", ".join(sorted(name for name, policy in made.items() if is_able(policy)))


def _moves(policy: Policy) -> bool:
    return policy.binder is not None


def _plans(policy: Policy) -> bool:
    return policy.binder is not None and policy.planner is not None


def _scales(policy: Policy) -> bool:
    return policy.scaler is not None


def _scales_roles(policy: Policy) -> bool:
    from hyperflexis.core.scaling import ProactiveScaler

    return isinstance(policy.scaler, ProactiveScaler)
