"""TokenScale (arXiv 2512.03416): tokens per second of each stage, and decoders that prefill in bursts.

From the paper, a token velocity for each stage, of one instance:

    V_P    prompt tokens/s it computes          V_N    prompt tokens/s that its network carries as KV
    V_D    tokens/s of requests of one bucket (short, middle, long prompt x answer) that it can end, and so free

    prefill instances needed = prompt tokens/s / min(V_P, V_N)
    decode instances needed = sum over buckets of their tokens/s / V_D

Some decode instances are convertible: when prompts come faster than the prefill instances compute them, they take
some, in restricted chunks beside their decodes and in a slice of their memory that is kept free for that.

Ours: velocities from the latency model and not from a profile; an instance's largest batch is what the promised TPOT
and its memory allow; rates are means that decay over `window_s`, for bursts over a second; answers are as long as is
believed when they are dispatched; order, chunks within their limit, and the choice of an instance.

Simplified: the fleet is fixed, so the needs set the ratio of roles and not the number of instances; one instance
changes at a time, after `dwell_s` without changes, and ends what it has. A burst's prompt decodes where it was
prefilled.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from hyperflexis.core import budget, dispatch
from hyperflexis.core.binding import used_share, wait_share
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import Placement
from hyperflexis.core.instance import Instance, Role
from hyperflexis.core.request import Request
from hyperflexis.core.roles import RoleChange
from hyperflexis.core.step import StepRules
from hyperflexis.policies import forecast, pools

BURST_S = 1.0
"""Over which the rate is taken that is compared with what the prefill instances compute."""
PROMPT_EDGES = (256, 1024)
ANSWER_EDGES = (100, 350)
"""Between the buckets, tokens."""
MARGIN = 0.75
"""Instances by which the ratio has to be wrong for one to change."""


class Rate:
    """Of something per second, decaying."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._sum = 0.0
        self._at_s = 0.0

    def add(self, amount: float, now: float) -> None:
        self._sum = self._sum * math.exp(min(0.0, self._at_s - now) / self._window_s) + amount
        self._at_s = max(self._at_s, now)

    def per_s(self, now: float) -> float:
        return self._sum * math.exp(min(0.0, self._at_s - now) / self._window_s) / self._window_s


@dataclass(slots=True)
class Bucket:
    """Requests of about one size, as they come."""

    requests: Rate
    prompt_tokens: Rate
    answer_tokens: Rate
    tpot_s: float = math.inf
    """Promised to the last of them."""


@dataclass(slots=True)
class Demand:
    """What has come."""

    window_s: float
    burst: Rate = field(default_factory=lambda: Rate(BURST_S))
    buckets: dict[tuple[int, int], Bucket] = field(default_factory=dict)

    def add(self, request: Request, answer_tokens: int, now: float) -> None:
        self.burst.add(request.context_tokens, now)
        key = (bisect_left(PROMPT_EDGES, request.prompt_tokens), bisect_left(ANSWER_EDGES, answer_tokens))
        if key not in self.buckets:
            self.buckets[key] = Bucket(Rate(self.window_s), Rate(self.window_s), Rate(self.window_s))
        bucket = self.buckets[key]
        bucket.requests.add(1, now)
        bucket.prompt_tokens.add(request.prompt_tokens, now)
        bucket.answer_tokens.add(answer_tokens, now)
        bucket.tpot_s = forecast.tpot_slo_s(request)


def prefill_velocity(instance: Instance, prompt_tokens: float) -> float:
    """Prompt tokens per second, of prompts this long, one in each step."""
    tokens = max(1, round(prompt_tokens))
    model = instance.latency.model
    return tokens / max(1e-9, model.prefill_base_s + model.chunk_s(tokens, 0))


def decode_velocity(instance: Instance, prompt_tokens: float, answer_tokens: float, tpot_s: float) -> float:
    """Tokens per second of requests, prompts and answers, that it ends with the largest batch it can bear."""
    model, capacity = instance.latency.model, instance.capacity
    tokens, context = prompt_tokens + answer_tokens, prompt_tokens + answer_tokens / 2
    batch = min(capacity.seqs_max, capacity.blocks * capacity.block_tokens / tokens)
    seq_s = model.decode_seq_s + model.context_token_s * context
    if tpot_s < math.inf and seq_s > 0:
        batch = min(batch, (budget.AIM * tpot_s - model.decode_base_s) / seq_s)
    batch = max(1.0, batch)
    return tokens * batch / max(1e-9, answer_tokens * (model.decode_base_s + seq_s * batch))


def convertible(ready: Sequence[Instance], count: int) -> list[Instance]:
    """The decode instances that help, the same ones as long as these stay."""
    return pools.of(Role.DECODE, ready)[:count]


class Bursts:
    """The least predicted TTFT among prefill instances, and in bursts among convertible ones too."""

    def __init__(self, demand: Demand, count: int, slice_tokens: int) -> None:
        self._demand = demand
        self._count = count
        self._slice_tokens = slice_tokens

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        expected = cluster.expected_tokens(request)
        self._demand.add(request, expected, now)
        among = [*instances, *self._helpers(request, instances, cluster, now)]
        ttft_s, _, _, chosen = min(
            (dispatch.estimate(request, each, expected, now).ttft_s, each.dispatches, each.id, each) for each in among
        )
        return Placement(chosen, Reason(Why.LEAST_LOADED, (("ttft_s", ttft_s),)), ttft_s)

    def _helpers(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> list[Instance]:
        velocity = sum(prefill_velocity(each, request.context_tokens) for each in pools.of(Role.PREFILL, instances))
        if not velocity or self._demand.burst.per_s(now) <= velocity:
            return []
        helpers = convertible(pools.large_enough(request, cluster.ready), self._count)
        tokens = self._slice_tokens - request.context_tokens
        free = [each for each in helpers if not each.waiting or forecast.waiting_tokens(each) <= tokens]
        return pools.with_room(request, free, cluster)


class KeepsSlice:
    """The least share of the pace used, of those with room for it beside the slice that they keep."""

    def __init__(self, count: int, slice_tokens: int) -> None:
        self._count = count
        self._slice_tokens = slice_tokens

    def choose(
        self, request: Request, source: Instance, targets: Sequence[Instance], cluster: Cluster, now: float
    ) -> Placement | None:
        expected = cluster.expected_tokens(request)
        keepers = {each.id for each in convertible(cluster.ready, self._count)}
        able = pools.with_room(request, targets, cluster)
        free = [each for each in able if each.id not in keepers or self._leaves_slice(request, each, expected)]
        if not free:
            return None
        share, _, chosen = min(
            (used_share(request, each, expected) + wait_share(request, source, each, cluster, now), each.id, each)
            for each in free
        )
        return Placement(chosen, Reason(Why.PREFILLED, (("pace_used", share),)))

    def _leaves_slice(self, request: Request, instance: Instance, expected_tokens: int) -> bool:
        if pools.is_idle(instance):
            return True
        capacity = instance.capacity
        kept = max(0, self._slice_tokens - forecast.waiting_tokens(instance))
        needed = request.prompt_tokens + expected_tokens + kept
        return instance.planned_blocks + capacity.blocks_for(needed) <= capacity.blocks


class Velocities:
    """Prefill and decode instances in the ratio in which they are needed."""

    def __init__(self, demand: Demand, dwell_s: float) -> None:
        self._demand = demand
        self._dwell_s = dwell_s
        self._changed_s = 0.0

    def plan(self, cluster: Cluster, now: float) -> list[RoleChange]:
        prefill, decode = pools.of(Role.PREFILL, cluster.ready), pools.of(Role.DECODE, cluster.ready)
        if not prefill or not decode or now - self._changed_s < self._dwell_s:
            return []
        need_prefill, need_decode = self.needs(prefill[0], cluster, now)
        if need_prefill + need_decode <= 0:
            return []
        instances = len(prefill) + len(decode)
        wanted = min(instances - 1.0, max(1.0, instances * need_prefill / (need_prefill + need_decode)))
        reason = Reason(Why.BALANCES, (("need_prefill", need_prefill), ("need_decode", need_decode)))
        if wanted - len(prefill) > MARGIN:
            change = RoleChange(min(decode, key=lambda each: (each.requests, -each.id)), Role.PREFILL, reason)
        elif len(prefill) - wanted > MARGIN:
            change = RoleChange(pools.least_waiting(prefill), Role.DECODE, reason)
        else:
            return []
        self._changed_s = now
        return [change]

    def needs(self, instance: Instance, cluster: Cluster, now: float) -> tuple[float, float]:
        """Instances like this one that prefill and decode what comes; not whole numbers."""
        prompt_tokens = requests = need_decode = 0.0
        for bucket in self._demand.buckets.values():
            rates = [rate.per_s(now) for rate in (bucket.requests, bucket.prompt_tokens, bucket.answer_tokens)]
            if rates[0] < 1e-6:  # Forgotten.
                continue
            requests, prompt_tokens = requests + rates[0], prompt_tokens + rates[1]
            velocity = decode_velocity(instance, rates[1] / rates[0], rates[2] / rates[0], bucket.tpot_s)
            need_decode += (rates[1] + rates[2]) / velocity
        if not requests:
            return 0.0, 0.0
        velocity = prefill_velocity(instance, prompt_tokens / requests)
        if instance.capacity.kv_token_bytes:
            velocity = min(velocity, cluster.network.bytes_s / instance.capacity.kv_token_bytes)
        return prompt_tokens / velocity, need_decode


def policy(
    prefill_tokens_max: int,
    *,
    convertibles: int = 1,
    chunk: int = 512,
    slice_tokens: int = 16384,
    plans: bool = True,
    window_s: float = 20.0,
    dwell_s: float = 10.0,
) -> Policy:
    """So many `convertibles` take chunks of up to `chunk` tokens in bursts; roles stay unless it `plans`."""
    for name, value in (("convertibles", convertibles), ("slice_tokens", slice_tokens), ("dwell_s", dwell_s)):
        if value < 0:
            raise ValueError(f"{name} must be at least 0, not {value}")
    for name, value in (("chunk", chunk), ("window_s", window_s)):
        if value <= 0:
            raise ValueError(f"{name} must be above 0, not {value}")
    demand, rules = Demand(window_s), StepRules(prefill_tokens_max=prefill_tokens_max)
    restricted = {Role.DECODE: StepRules(prefill_tokens_max=min(chunk, prefill_tokens_max))}
    dispatcher, binder = Bursts(demand, convertibles, slice_tokens), KeepsSlice(convertibles, slice_tokens)
    planner = Velocities(demand, dwell_s) if plans else None
    return Policy("tokenscale", dispatcher, rules, restricted, binder=binder, planner=planner)
