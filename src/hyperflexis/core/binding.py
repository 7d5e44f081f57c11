"""Which instance decodes what another one has prefilled, decided as late as its prefill allows.

Of the instances that could hold it, the one whose steps would stay furthest below the strictest pace there when all
that it has, and all that is on its way to it, has its expected length; the copies that are queued before it count as
the share of the answer's time that they take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from hyperflexis.core import loads
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.dispatch import Placement
from hyperflexis.core.instance import Instance
from hyperflexis.core.request import Request


class Binder(Protocol):
    """One of a policy's decisions."""

    def choose(
        self,
        request: Request,
        source: Instance,
        targets: Sequence[Instance],
        cluster: Cluster,
        now: float,
    ) -> Placement | None:
        """Pick one of `targets`, which are linked to `source`, or `source` itself; None to ask again later."""


class LeastPace:
    """The least share of the pace used, of those that have blocks for it; held while none has."""

    def choose(
        self, request: Request, source: Instance, targets: Sequence[Instance], cluster: Cluster, now: float
    ) -> Placement | None:
        expected = cluster.expected_tokens(request)
        shares = [
            (used_share(request, each, expected) + wait_share(request, source, each, cluster, now), each.id, each)
            for each in targets
            if has_room(request, each, expected)
        ]
        if not shares:
            return None
        share, _, target = min(shares)
        return Placement(target, Reason(Why.PREFILLED, (("pace_used", share),)))


def has_room(request: Request, target: Instance, expected_tokens: int) -> bool:
    """Whether it could hold the request in the end, beside all that it is believed to have to hold."""
    blocks = target.planned_blocks + target.capacity.blocks_for(request.prompt_tokens + expected_tokens)
    return blocks <= target.capacity.blocks and target.requests < target.capacity.seqs_max


def used_share(request: Request, target: Instance, expected_tokens: int) -> float:
    """A step there with the request, when all have their expected length, as a share of the strictest pace."""
    planned = target.planned_tokens + request.prompt_tokens + expected_tokens
    step_s = target.latency.decode_step_s(target.requests + 1, planned)
    own_s = request.slo.tpot_s if request.slo.tpot_s is not None else math.inf
    return step_s / min(loads.pace_cap_s(target), target.strictest_pace_s(), own_s)


def wait_share(request: Request, source: Instance, target: Instance, cluster: Cluster, now: float) -> float:
    """What it waits for its KV, as a share of the time that its answer may take."""
    kv_bytes = request.context_tokens * target.capacity.kv_token_bytes
    wait_s = cluster.network.arrival_s(source.id, target.id, kv_bytes, now) - now
    pace_s = min(loads.pace_cap_s(target), request.slo.tpot_s or math.inf)
    return wait_s / (pace_s * max(1, cluster.expected_tokens(request)))
