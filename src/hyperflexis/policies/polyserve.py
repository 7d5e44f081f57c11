"""PolyServe (arXiv 2507.17769): instances belong to tiers of equal TPOT, and work is packed onto the fullest that can.

From the paper: requests are binned by TPOT; every bin has instances of its own, as many as its load needs; the most
loaded instance that passes three checks takes the request (first token in time, second in time, a step at peak KV
within the pace), which leaves a gradient whose tail can be taken away; looser requests may be promoted to the instances
of stricter bins; token i is due at a + F + (i - 1) Q, so that an early first token is credit for later ones; inside,
chunks are sized by what the decodes can bear.

Our reading: on a fixed fleet the bins share all instances, in proportion to the work that arrived for each in the last
half minute, at least one each; with fewer instances than bins, a bin without any uses those of the next stricter one.
Where nothing passes, the least loaded of the own bin takes it, as there is nobody to scale up. The checks are
`core.dispatch`'s. Inside, the earliest deadline goes first. `credit_spend_max` 0 anchors paces at the real first token,
which the published form does not; `packs` off takes the least loaded instance that passes, `split` none has one bin,
and `late_last` puts first tokens that would be late even alone behind the others.

Not here: scaling of the bins, and the paper's handling of decode instances of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hyperflexis.core import dispatch
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import Estimate, Placement
from hyperflexis.core.instance import Instance
from hyperflexis.core.request import Request
from hyperflexis.core.step import OrderName, StepRules
from hyperflexis.policies import engines, forecast
from hyperflexis.policies.least_tokens import least, outstanding

SPLITS = ("load", "equal", "none")


class TierLoads:
    """Work that arrived for each tier, seconds of one instance: decaying sums."""

    MEMORY_S = 30.0
    FORGET_S = 1e-3
    """A tier with less work than this has none."""

    def __init__(self) -> None:
        self._work_s: dict[float, float] = {}
        self._at_s = 0.0

    def add(self, tier_s: float, work_s: float, now: float) -> None:
        decay = math.exp(min(0.0, self._at_s - now) / self.MEMORY_S)
        decayed = {tier: decay * before_s for tier, before_s in self._work_s.items()}
        self._work_s = {tier: left_s for tier, left_s in decayed.items() if left_s > self.FORGET_S}
        self._work_s[tier_s] = self._work_s.get(tier_s, 0.0) + work_s
        self._at_s = now

    def shares(self) -> dict[float, float]:
        """Of tiers, the strictest first. They sum to one."""
        total_s = sum(self._work_s.values())
        return {tier: self._work_s[tier] / total_s for tier in sorted(self._work_s)}


def sizes(shares: dict[float, float], instances: int) -> dict[float, int]:
    """How many instances each tier gets: one each as far as they go, then by largest remainder."""
    order = sorted(shares, key=lambda tier: (-shares[tier], tier))
    found = dict.fromkeys(order[:instances], 1)
    for _ in range(instances - len(found)):
        neediest = max(found, key=lambda tier: (shares[tier] * instances - found[tier], -tier))
        found[neediest] += 1
    return found


class Tiers:
    """Who belongs to which tier, and the choice within it."""

    REBALANCE_S = 5.0

    def __init__(self, split: str, packs: bool, promotes: bool) -> None:
        self._split = split
        self._packs = packs
        self._promotes = promotes
        self._loads = TierLoads()
        self._owner: dict[int, float] = {}
        """Instance → tier."""
        self._balanced_s = -math.inf

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        expected = cluster.expected_tokens(request)
        tier_s = forecast.tpot_slo_s(request) if self._split != "none" else math.inf
        self._loads.add(tier_s, _work_s(request, expected, instances[0]), now)
        self._balance(instances, now)
        owned = {tier: [i for i in instances if self._owner[i.id] == tier] for tier in set(self._owner.values())}
        reachable = [tier for tier in sorted(owned, reverse=True) if tier <= tier_s and owned[tier]]
        own = reachable[0] if reachable else min(tier for tier in owned if owned[tier])
        for tier in reachable if self._promotes else [own]:
            found = self._fullest(request, owned[tier], expected, now)
            if found is not None:
                instance, predicted = found
                reason = Reason(Why.FEASIBLE, (("tier_s", tier), ("ttft_s", predicted.ttft_s)))
                return Placement(instance, reason, predicted.ttft_s, predicted.step_s)
        instance = least(owned[own], outstanding)
        return Placement(instance, Reason(Why.LEAST_HARM, (("tier_s", own),)))

    def _fullest(
        self, request: Request, instances: Sequence[Instance], expected: int, now: float
    ) -> tuple[Instance, Estimate] | None:
        sign = -1 if self._packs else 1
        for instance in sorted(instances, key=lambda each: (sign * outstanding(each), each.dispatches, each.id)):
            predicted = dispatch.estimate(request, instance, expected, now)
            if dispatch.is_feasible(request, predicted):
                return instance, predicted
        return None

    def _balance(self, instances: Sequence[Instance], now: float) -> None:
        """Give instances to tiers: now and then, and when either is new."""
        shares = self._loads.shares()
        ids = {instance.id for instance in instances}
        served = set(self._owner.values())
        lacks_nothing = ids <= self._owner.keys() and (shares.keys() <= served or len(served) == len(ids))
        if lacks_nothing and now < self._balanced_s + self.REBALANCE_S:
            return
        self._balanced_s = now
        if self._split == "equal":
            shares = dict.fromkeys(shares, 1 / len(shares))
        wanted = sizes(shares, len(instances))
        spare: list[Instance] = []
        left = dict(wanted)
        for instance in sorted(instances, key=lambda each: (-each.requests, each.id)):  # The busiest stay.
            tier = self._owner.get(instance.id, math.nan)
            if left.get(tier, 0) > 0:
                left[tier] -= 1
            else:
                spare.append(instance)
        for tier in sorted(left):
            for _ in range(left[tier]):
                self._owner[spare.pop().id] = tier
        assert not spare, f"instances without a tier: {spare!r}"
        self._owner = {each: tier for each, tier in self._owner.items() if each in ids}


def _work_s(request: Request, expected_tokens: int, instance: Instance) -> float:
    """Instance time that a request takes: its prefill, and its share of the steps of the largest batch at its pace."""
    model = instance.latency.model
    prefill_s = model.chunk_s(request.prompt_tokens, 0)
    tpot_s = forecast.tpot_slo_s(request)
    context = request.prompt_tokens + expected_tokens / 2
    seq_s = model.decode_seq_s + model.context_token_s * context
    room_s = tpot_s - model.decode_base_s
    if room_s == math.inf:
        return prefill_s + expected_tokens * seq_s
    batch = max(1.0, room_s / seq_s) if seq_s > 0 else instance.capacity.seqs_max
    return prefill_s + expected_tokens * tpot_s / min(batch, instance.capacity.seqs_max)


def policy(
    prefill_tokens_max: int,
    *,
    credit_spend_max: float = 1.0,
    split: str = "load",
    packs: bool = True,
    promotes: bool = True,
    late_last: bool = False,
    chunk: int = 0,
) -> Policy:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    tokens = engines.chunk_tokens(prefill_tokens_max, chunk)
    order: OrderName = "timely_deadline" if late_last else "deadline"
    rules = StepRules(order, "slack", prefill_tokens_max=tokens, credit_spend_max=credit_spend_max)
    return Policy("polyserve", Tiers(split, packs, promotes), rules)
