"""Which instances the strict paces may use.

A decode with a strict pace cuts its instance's prefills into small steps, and pays the fixed part of a step for each.
Kept to some of the instances, strict decodes share those fixed parts, and the others stay free for long prompts; on too
few, strict work queues for itself. How many are best depends on lengths, promises and bursts, so it is not worked out:
every way of splitting the fleet is played in shadow on the requests that arrive (`shadow`), and the best one is used.

    speed of a group  =  .85  -  a / (.97 Q)  -  (seq tokens/s + token tokens/s x context) / n

is what its decodes leave an instance for prefills: a step's fixed part at the strictest pace Q there, and what the
tokens of this group's paces cost, shared by n instances. The .85 stand for what the shadow leaves out: steps under way,
uneven shares, rest of a promise too short for one more chunk.

The best: the class that fares worst is late least often. Among those that are as good within a tolerance, the one with
the most instances for strict work, since packed decodes are slower decodes.

Instances are taken to be alike. Reads loads, and changes nothing but its own mind.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from hyperflexis.core import budget, loads
from hyperflexis.core.instance import Instance
from hyperflexis.core.latency import LatencyModel
from hyperflexis.core.request import Request
from hyperflexis.core.shadow import Floats, Shadow, Split

EFFICIENCY = 0.85
TOLERANCE = 0.01
"""Shares of late requests this near to the least are as good. More is quicker on average, and keeps fewer promises."""
LOOK_S = 5.0
"""How often the choice is looked at again."""
SMOOTHING = 0.2
"""Weight of what was seen since the last look in the estimate of tokens per second."""
SIZES_MAX = 8
"""So many sizes of the strict group are tried; of large fleets not every one."""
LEAST_SPEED = 0.05
FORGOTTEN = 1e-3
"""Tokens per second below which a pace counts as gone."""
LEAST_PACE_S = 1e-3
PACES_PER_OCTAVE = 4
"""Paces between which a bound may lie."""
UNPROMISED_S = 60.0
"""Counts as the promise of who was promised nothing."""


class Splits:
    """The choice, which outlives the instances it was made for."""

    def __init__(self, tolerance: float = TOLERANCE) -> None:
        self.chosen = Split(math.inf, 0)
        self._tolerance = tolerance
        self._ready: Sequence[Instance] = ()
        self._strict: Sequence[Instance] = ()
        """Instances that the strict paces may use."""
        self._paces: set[int] = set()
        """Parts of octaves in which paces have been seen."""
        self._shadow = Shadow([self.chosen], 0)
        self._flow = TokenFlow()
        self._looked_s = -math.inf

    def allowed(
        self, request: Request, instances: Sequence[Instance], ready: Sequence[Instance], now: float
    ) -> Sequence[Instance]:
        """Those of `instances` that a request may use, all if there are none. A new arrival is counted.

        `ready` is the fleet, the same sequence as long as it is the same instances.
        """
        pace_s = _pace_s(request, ready[0])
        self._keep_up(pace_s, ready, now)
        if len(self._shadow.splits) == 1:
            return instances
        if not request.dispatches:
            self._count(request, pace_s, ready[0], now)
        if now >= self._looked_s + LOOK_S:
            self._look(now)
        if pace_s >= self.chosen.below_s or self.chosen.strict == len(ready):
            return instances
        if instances is ready:
            return self._strict
        strict = {instance.id for instance in self._strict}
        return [instance for instance in instances if instance.id in strict] or instances

    def _keep_up(self, pace_s: float, ready: Sequence[Instance], now: float) -> None:
        """Begin anew where the fleet, or what is promised, is another one."""
        part = math.floor(PACES_PER_OCTAVE * math.log2(pace_s))
        is_new = part not in self._paces
        if not is_new and ready is self._ready:
            return
        before, self._ready = len(self._ready), ready
        if is_new or len(ready) != before:
            self._paces.add(part)
            self._shadow = Shadow(_candidates(self._paces, len(ready)), len(ready))
            self._shadow.set_speed(self._speeds())
            self.chosen = _nearest(self._shadow.splits, self.chosen, self.chosen.strict / before if before else 1.0)
            self._looked_s = now
        self._strict = self._members()

    def _count(self, request: Request, pace_s: float, instance: Instance, now: float) -> None:
        work_s = instance.prefill_work_s(request, instance.cached_tokens(request))
        work_s += instance.latency.model.prefill_base_s
        promise_s = min(UNPROMISED_S, request.first_deadline_s - request.arrived_s)
        if work_s <= promise_s:  # Else it is late under every split, and would hide by that what becomes of the others.
            self._shadow.arrive(request.service_class, pace_s, promise_s, work_s, now)

    def _look(self, now: float) -> None:
        """Measure decodes, and take a better split if there is one."""
        self._looked_s = now
        self._flow.measure(self._ready, now)
        self._shadow.set_speed(self._speeds())
        late = self._shadow.late_shares().tolist()
        chosen = best(dict(zip(self._shadow.splits, late, strict=True)), self.chosen, self._tolerance)
        if chosen != self.chosen:
            self.chosen = chosen
            self._strict = self._members()

    def _speeds(self) -> Floats:
        """Of an instance of either group under every split, [2, splits]."""
        model, others = self._ready[0].latency.model, self._shadow.sizes[1].tolist()
        return np.array(
            [
                [self._flow.speed(model, 0.0, split.below_s, split.strict) for split in self._shadow.splits],
                [
                    self._flow.speed(model, split.below_s, math.inf, size)
                    for split, size in zip(self._shadow.splits, others, strict=True)
                ],
            ]
        )

    def _members(self) -> Sequence[Instance]:
        """Who belongs to the strict group: who does already, then who is bound for longest."""
        before = {instance.id for instance in self._strict}

        def key(instance: Instance) -> tuple[bool, float, int]:
            is_bound = instance.strictest_pace_s() < self.chosen.below_s
            return (instance.id not in before, -instance.bound_until_s() if is_bound else math.inf, instance.id)

        members = sorted(self._ready, key=key)[: self.chosen.strict]
        return tuple(sorted(members, key=lambda instance: instance.id))


def _pace_s(request: Request, instance: Instance) -> float:
    """Its pace among those that are told apart: none is looser than the cap, nor stricter than an empty step.

    The latter could not be kept; and without an end, made-up promises could ask for splits without an end.
    """
    promised_s = math.inf if request.slo.tpot_s is None else request.slo.tpot_s
    return min(loads.pace_cap_s(instance), max(promised_s, instance.latency.model.decode_base_s, LEAST_PACE_S))


def _candidates(paces: Collection[int], instances: int) -> list[Split]:
    """Every bound between two paces with every size, and no split at all."""
    bounds_s = [2.0 ** ((part + 1) / PACES_PER_OCTAVE) for part in sorted(paces)[:-1]]
    tried = min(SIZES_MAX, instances - 1)
    sizes = sorted({round(instances * number / (tried + 1)) for number in range(1, tried + 1)})
    return [*(Split(below_s, size) for below_s in bounds_s for size in sizes), Split(math.inf, instances)]


def _nearest(splits: Sequence[Split], wanted: Split, share: float) -> Split:
    """The split that is most like one of another fleet, of which the strict had a share."""
    alike = [split for split in splits if split.below_s == wanted.below_s] or splits[-1:]
    return min(alike, key=lambda split: (abs(split.strict - share * splits[-1].strict), split.strict))


def best(late_shares: Mapping[Split, float], present: Split, tolerance: float = TOLERANCE) -> Split:
    """The split to use: of the good ones, that with the most strict instances.

    The present one stays until it is clearly worse, or until a wider one is clearly as good.
    """
    least = min(late_shares.values())
    if late_shares.get(present, math.inf) > least + 2 * tolerance:
        return _widest(late_shares, least + tolerance)
    wider = _widest(late_shares, least + tolerance / 4)
    return wider if wider.strict > present.strict else present


def _widest(late_shares: Mapping[Split, float], most: float) -> Split:
    """Of those with at most such a share of late requests, the one that keeps strict work to itself the least."""
    good = [split for split, share in late_shares.items() if share <= most]
    return max(good, key=lambda split: (split.strict, -late_shares[split], -split.below_s))


class TokenFlow:
    """Tokens per second that decodes emit, and the contexts on which they do it, by pace."""

    def __init__(self) -> None:
        self._steps: dict[int, int] = {}
        """Instance → its decode steps at the last measurement."""
        self._measured_s = -math.inf
        self._flow: dict[float, tuple[float, float]] = {}
        """Pace → tokens per second, context tokens per second."""

    def measure(self, instances: Sequence[Instance], now: float) -> None:
        """Take in what has run since the last time. The requests of one instance are taken to be equally long."""
        elapsed_s, self._measured_s = now - self._measured_s, now
        seen: dict[float, tuple[float, float]] = {}
        for instance in instances:
            steps_s = (instance.decode_steps - self._steps.get(instance.id, instance.decode_steps)) / elapsed_s
            for pace_s, share in instance.pace_shares(loads.pace_cap_s(instance)).items():
                tokens_s, context_s = seen.get(pace_s, (0.0, 0.0))
                tokens_s += steps_s * share * len(instance.decoding)
                context_s += steps_s * share * instance.context_tokens
                seen[pace_s] = (tokens_s, context_s)
        self._steps = {instance.id: instance.decode_steps for instance in instances}
        self._flow = {pace: _smoothed(self._flow.get(pace), seen.get(pace)) for pace in self._flow.keys() | seen.keys()}
        self._flow = {pace_s: flow for pace_s, flow in self._flow.items() if flow[0] >= FORGOTTEN}

    def speed(self, model: LatencyModel, from_s: float, below_s: float, instances: float) -> float:
        """Share of an instance's time that is left for prefills, where so many share the decodes of such paces."""
        flows = {pace_s: flow for pace_s, flow in self._flow.items() if from_s <= pace_s < below_s}
        if not flows or not instances:
            return EFFICIENCY
        tokens_s = sum(flow[0] for flow in flows.values())
        context_s = sum(flow[1] for flow in flows.values())
        fixed = model.decode_base_s / (budget.AIM * min(flows))
        used = fixed + (model.decode_seq_s * tokens_s + model.context_token_s * context_s) / instances
        return max(LEAST_SPEED, EFFICIENCY - used)


def _smoothed(before: tuple[float, float] | None, seen: tuple[float, float] | None) -> tuple[float, float]:
    seen = seen or (0.0, 0.0)
    if before is None:
        return seen
    return (before[0] + SMOOTHING * (seen[0] - before[0]), before[1] + SMOOTHING * (seen[1] - before[1]))
