"""Ours, the default. What each part does is said where it is:

    which instance       core.splits     strict paces on some instances only: on as many as kept most promises of late
                         core.dispatch   of those, where its prefill waits and takes the least; at once
    who goes first       core.order      deadlines, as far as they can all be kept; priority says who is given up
    how large a step     core.budget     what the tightest decode can bear, aiming at 97 % of its pace
    how long an answer   core.cluster    80th percentile of its class, of those that are longer than it is already
    who is refused       core.control    nobody, unless its class says so and its promises could not be kept

What was measured for and against each is in the decisions, 6 to 9, and docs/results/scheduling.md.
"""

from __future__ import annotations

from dataclasses import replace

from hyperflexis.core.binding import LeastPace
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import SloDispatcher
from hyperflexis.core.instance import Role
from hyperflexis.core.relief import Relief
from hyperflexis.core.roles import GrowthPlanner
from hyperflexis.core.scaling import ProactiveScaler, ScalerRules
from hyperflexis.core.step import StepRules

ROLES = ("none", "fixed", "planned")
PREFILL_CHUNK = 4096
"""Most tokens of a step where nothing decodes: what comes meanwhile waits for its end. (2048 cost capacity, 8192 first
tokens; measured.)"""


def policy(
    prefill_tokens_max: int, *, separation: float = 1.0, roles: str = "none", late_share: float = 0.01
) -> Policy:
    """`separation` 0 shares all work evenly: quicker on average, and fewer promises kept under bursts.

    A fleet that changes its size is large enough that `late_share` of a class may be placed where it will be late.

    `roles` says whether requests may be prefilled on one instance and decoded on another: `none`, `fixed` (as the fleet
    was started) or `planned`.
    """
    if roles not in ROLES:
        raise ValueError(f"roles must be one of {', '.join(ROLES)}, not {roles!r}")
    if not 0 < late_share < 1:
        raise ValueError(f"late_share must be between 0 and 1, not {late_share}")
    rules = StepRules(prefill_tokens_max=prefill_tokens_max)
    scaler = ProactiveScaler(ScalerRules(late_share=late_share))
    if roles == "none":
        return Policy("hyperflexis", SloDispatcher(separation), rules, scaler=scaler)
    return Policy(
        "hyperflexis",
        SloDispatcher(separation),
        rules,
        role_rules={Role.PREFILL: replace(rules, prefill_tokens_max=min(PREFILL_CHUNK, prefill_tokens_max))},
        binder=LeastPace(),
        planner=GrowthPlanner() if roles == "planned" else None,
        relief=Relief(),
        scaler=scaler,
    )
