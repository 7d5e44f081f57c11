"""Which instance decodes what another one has prefilled, decided as late as its prefill allows.

Of the instances that could hold it, the one whose steps would stay furthest below the strictest pace there when all
that it has, and all that is on its way to it, has its expected length; the copies that are queued before it count as
the share of the answer's time that they take.

Where it was prefilled it can stay only if no prefill waits there: a single decode costs every step its fixed part, and
cuts what a prefilling instance gets done to about half. (Measured: letting it stay beside prefills loses up to 10
points.)
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

STAYS_S = 0.1
"""So little prefill may wait where a request stays."""


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
    """The least share of the pace used, of those that have blocks for it.

    Where that would break a promise, or none has blocks, it decodes where it was prefilled if that breaks none and
    `stays` allows it; held while neither can hold it.
    """

    def __init__(self, *, stays: bool = True) -> None:
        self._stays = stays

    def choose(
        self, request: Request, source: Instance, targets: Sequence[Instance], cluster: Cluster, now: float
    ) -> Placement | None:
        expected = cluster.expected_tokens(request)
        shares = [
            (used_share(request, each, expected) + wait_share(request, source, each, cluster, now), each.id, each)
            for each in targets
            if has_room(request, each, expected)
        ]
        share, _, target = min(shares, default=(math.inf, -1, source))
        if share > 1.0 and self._may_stay(request, source, expected):
            own = used_share(request, source, expected)
            if own <= 1.0 or target is source:
                return Placement(source, Reason(Why.NO_DECODE, (("pace_used", own),)))
        if target is source:
            return None
        step_s = target.latency.decode_step_s(len(target.decoding) + 1, target.context_tokens + request.context_tokens)
        return Placement(target, Reason(Why.PREFILLED, (("pace_used", share),)), tpot_s=step_s)

    def _may_stay(self, request: Request, source: Instance, expected_tokens: int) -> bool:
        return self._stays and source.waiting_s() <= STAYS_S and has_room(request, source, expected_tokens)


def has_room(request: Request, target: Instance, expected_tokens: int) -> bool:
    """Whether it could hold the request in the end, beside all that it is believed to have to hold."""
    tokens = _planned_tokens(request, target, expected_tokens)
    blocks = target.planned_blocks + target.capacity.blocks_for(tokens)
    return blocks <= target.capacity.blocks and target.requests < target.capacity.seqs_max


def used_share(request: Request, target: Instance, expected_tokens: int) -> float:
    """A step there with the request, when all have their expected length, as a share of the strictest pace."""
    planned = target.planned_tokens + _planned_tokens(request, target, expected_tokens)
    step_s = target.latency.decode_step_s(target.requests + 1, planned)
    own_s = request.slo.tpot_s if request.slo.tpot_s is not None else math.inf
    return step_s / min(loads.pace_cap_s(target), target.strictest_pace_s(), own_s)


def _planned_tokens(request: Request, target: Instance, expected_tokens: int) -> int:
    """What it adds to what an instance has to hold."""
    planned = request.prompt_tokens + expected_tokens
    return max(0, planned - request.planned_tokens) if request.instance_id == target.id else planned


def wait_share(request: Request, source: Instance, target: Instance, cluster: Cluster, now: float) -> float:
    """What it waits for its KV, as a share of the time that its answer may take."""
    kv_bytes = request.context_tokens * target.capacity.kv_token_bytes
    wait_s = cluster.network.arrival_s(source.id, target.id, kv_bytes, now) - now
    pace_s = min(loads.pace_cap_s(target), request.slo.tpot_s or math.inf)
    return wait_s / (pace_s * max(1, cluster.expected_tokens(request)))
