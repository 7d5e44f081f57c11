"""ProServe (arXiv 2512.12928): tokens on time are gained, by weight of priority; routing and batches go for the gain.

From the paper: token i is due at F + (i - 1) Q after arrival, and a token on time gains its request's weight. Inside,
urgent requests go by density of gain and the others by deadline, with a boundary between that slides with the load, and
a step takes .8 to 1 of the time there is. Between instances (GoRouting), among those with nearly the best gain: all
light, the idlest; all heavy, the least loaded; else the heaviest acceptable, which keeps idle ones for long or urgent
prompts.

Our reading: `core.order.most_gain` is the inside. The expected gain on an instance follows from the predicted first
token and peak step, token by token, in closed form, and leaves out what others there lose. Load is the prefill time
that waits there; light is below `light_s`, heavy above `heavy_s`: the thresholds of the paper are not known to us.
Weights double per level of priority. `credit_spend_max` 0 anchors paces at the real first token and `routing`
least_tokens replaces GoRouting; neither is published.
"""

from __future__ import annotations

from collections.abc import Sequence

from hyperflexis.core import dispatch
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import Dispatcher, Estimate, Placement
from hyperflexis.core.instance import Instance
from hyperflexis.core.request import Request
from hyperflexis.core.step import StepRules
from hyperflexis.policies import engines, forecast
from hyperflexis.policies.least_tokens import LeastLoaded, outstanding

NEAR = 0.95
"""Gains from this share of the best one on count as the best."""
ROUTINGS = ("gain", "least_tokens")


def on_time(request: Request, predicted: Estimate, tokens: int) -> float:
    """Share of an answer's tokens that would be on time, given its first one and a step."""
    early_s = forecast.ttft_slo_s(request) - predicted.ttft_s
    gained_s = forecast.tpot_slo_s(request) - predicted.peak_step_s
    if early_s >= 0:
        return 1.0 if gained_s >= 0 else min(1.0, (early_s / -gained_s + 1) / tokens)
    return max(0.0, 1.0 - -early_s / gained_s / tokens) if gained_s > 0 else 0.0


class GoRouting:
    """Near-best gain first, then light before heavy."""

    def __init__(self, chunk: int, light_s: float, heavy_s: float) -> None:
        self._chunk = chunk
        self._light_s = light_s
        self._heavy_s = heavy_s

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        expected = cluster.expected_tokens(request)
        predicted = {each.id: dispatch.estimate(request, each, expected, now) for each in instances}
        gains = {each.id: on_time(request, predicted[each.id], expected) for each in instances}
        best = max(gains.values())
        near = [each for each in instances if gains[each.id] >= NEAR * best]
        loads_s = {each.id: forecast.stretch(each, self._chunk) * each.waiting_s() for each in near}
        chosen = self._choose(near, loads_s)
        why = Why.FEASIBLE if gains[chosen.id] >= 1.0 else Why.LEAST_HARM
        reason = Reason(why, (("gain", gains[chosen.id]), ("queued_s", loads_s[chosen.id])))
        return Placement(chosen, reason, predicted[chosen.id].ttft_s, predicted[chosen.id].step_s)

    def _choose(self, near: Sequence[Instance], loads_s: dict[int, float]) -> Instance:
        if all(load_s < self._light_s for load_s in loads_s.values()):
            return min(near, key=lambda each: (outstanding(each), each.dispatches, each.id))
        acceptable = [each for each in near if loads_s[each.id] <= self._heavy_s]
        if not acceptable:
            return min(near, key=lambda each: (loads_s[each.id], each.dispatches, each.id))
        return max(acceptable, key=lambda each: (loads_s[each.id], outstanding(each), -each.id))


def policy(
    prefill_tokens_max: int,
    *,
    credit_spend_max: float = 1.0,
    routing: str = "gain",
    light_s: float = 0.1,
    heavy_s: float = 0.3,
    slack_share: float = 0.9,
    chunk: int = 0,
) -> Policy:
    if routing not in ROUTINGS:
        raise ValueError(f"routing must be one of {', '.join(ROUTINGS)}, not {routing!r}")
    if not 0 <= light_s <= heavy_s:
        raise ValueError(f"light_s must be between 0 and heavy_s, not {light_s} with heavy_s {heavy_s}")
    tokens = engines.chunk_tokens(prefill_tokens_max, chunk)
    rules = StepRules(
        "gain", "slack", prefill_tokens_max=tokens, credit_spend_max=credit_spend_max, slack_share=slack_share
    )
    dispatcher: Dispatcher = GoRouting(tokens, light_s, heavy_s)
    if routing == "least_tokens":
        dispatcher = LeastLoaded(outstanding)
    return Policy("proserve", dispatcher, rules)
