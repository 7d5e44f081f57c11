"""HFX (HyperFlexis, arXiv 2508.15919) as its abstract lets one read it. THE RULES BELOW ARE OUR READING.

From the abstract: budgets are estimated, and requests prioritised by them, proactively, for new and running requests;
instances serve several classes at once. No formula of it is published in a form that this project has: not the budgets,
not the order's ties, not the choice of an instance.

Our reading, the least that fits the words:

    new        TTFT budget = a + F - now - rest of the step - work ahead - prefill;  decode budget = least Q - peak step
    choice     of the instances with both budgets, the most TTFT budget (or the least ratio used); else of all
    order      priority, then least slack; with `late_last`, a budget that is spent even alone puts a request behind
    running    a step's prefill fills what the least slack of the decodes there leaves

Colocated instances only; scaling, migration, linking and changes of role belong to later parts of this project.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from hyperflexis.core import dispatch
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import Placement
from hyperflexis.core.instance import Instance
from hyperflexis.core.request import Request
from hyperflexis.core.step import OrderName, StepRules
from hyperflexis.policies import engines, forecast


class Budget(NamedTuple):
    """What one instance would leave of a request's promises, seconds."""

    ttft_s: float
    """Time to spare until the first token is due."""
    decode_s: float
    """Time to spare in each step at the peak, by the strictest there."""
    used: float
    """The larger share of either promise that is used."""


CHOICES: dict[str, Callable[[Budget], float]] = {
    "budget": lambda budget: -budget.ttft_s,
    "ratio": lambda budget: budget.used,
}


class MostBudget:
    """Budgets on every instance, then the choice."""

    def __init__(self, chunk: int, choice: Callable[[Budget], float]) -> None:
        self._chunk = chunk
        self._choice = choice

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        expected = cluster.expected_tokens(request)
        budgets = {each.id: self.budget(request, each, expected, now) for each in instances}
        with_budget = [
            each for each in instances if min(budgets[each.id][:2]) >= 0 and forecast.has_room(request, each, expected)
        ]
        chosen = min(
            with_budget or instances, key=lambda each: (self._choice(budgets[each.id]), each.dispatches, each.id)
        )
        ttft_s, decode_s, _ = budgets[chosen.id]
        why = Why.FEASIBLE if with_budget else Why.LEAST_HARM
        return Placement(chosen, Reason(why, (("ttft_budget_s", ttft_s), ("decode_budget_s", decode_s))))

    def budget(self, request: Request, instance: Instance, expected_tokens: int, now: float) -> Budget:
        predicted = dispatch.estimate(request, instance, expected_tokens, now)
        own_s = instance.prefill_work_s(request, instance.cached_tokens(request))
        work_s = forecast.stretch(instance, self._chunk) * (self._ahead_s(request, own_s, instance) + own_s)
        at_s = now + instance.residual_s(now) + instance.latency.model.prefill_base_s + work_s
        ttft_s = at_s - request.arrived_s
        used = max(ttft_s / forecast.ttft_slo_s(request), predicted.peak_step_s / predicted.strictest_pace_s)
        return Budget(request.first_deadline_s - at_s, predicted.strictest_pace_s - predicted.peak_step_s, used)

    def _ahead_s(self, request: Request, own_s: float, instance: Instance) -> float:
        key = (-request.priority, request.first_deadline_s - own_s, request.id)
        ahead_s = 0.0
        for other in instance.waiting.values():
            work_s = instance.prefill_work_s(other, other.cached_tokens)
            if (-other.priority, other.first_deadline_s - work_s, other.id) < key:
                ahead_s += work_s
        return max(0.0, ahead_s - instance.latency.model.prefill_token_s * instance.progress_tokens)


def policy(
    prefill_tokens_max: int,
    *,
    choice: str = "budget",
    late_last: bool = False,
    credit_spend_max: float = 0.0,
    chunk: int = 0,
) -> Policy:
    tokens = engines.chunk_tokens(prefill_tokens_max, chunk)
    order: OrderName = "timely_slack" if late_last else "slack"
    rules = StepRules(order, "slack", prefill_tokens_max=tokens, credit_spend_max=credit_spend_max)
    return Policy("hfx_faithful", MostBudget(tokens, engines.named("choice", choice, CHOICES)), rules)
