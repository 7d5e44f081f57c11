"""SLOs-Serve (arXiv 2504.08784): a request is admitted where a plan keeps it and all that was admitted before in time.

From the paper: admission is a test of feasibility; what passes is planned and kept, what does not becomes best effort
and gets what is left; an instance that declines passes the request on to the next; batches are sized by the tightest
decode in them.

Our reading: the plan is the earliest deadline first with the decodes' share taken off, not the paper's dynamic program,
which also plans speculation; the value of a request is one. The router asks instances in turn, or the least loaded
first (`asks`), with the load that it models; who declines everywhere goes to the least loaded. Each instance then makes
the test itself (`core.order.admitted`) and its own word counts. Best-effort decodes keep their pace where they can.
Speculative decoding and stages with SLOs of their own, such as reasoning before an answer, are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from hyperflexis.core import dispatch
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.control import Policy
from hyperflexis.core.dispatch import Placement
from hyperflexis.core.instance import Instance
from hyperflexis.core.request import Request
from hyperflexis.core.step import StepRules
from hyperflexis.policies import engines, forecast
from hyperflexis.policies.least_tokens import least, outstanding

ASKS = ("turn", "least")
FORGET_FROM = 1024
"""From so many remembered best-effort requests on, those that have ended are forgotten."""


class Admission:
    """Instance after instance until one agrees."""

    def __init__(self, chunk: int, in_turn: bool) -> None:
        self._chunk = chunk
        self._in_turn = in_turn
        self._last_id = -1
        self._best_effort: set[int] = set()

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        expected = cluster.expected_tokens(request)
        for instance in self._asked(instances):
            predicted = dispatch.estimate(request, instance, expected, now)
            is_sustained = predicted.has_blocks and predicted.peak_step_s <= predicted.strictest_pace_s
            if is_sustained and self.is_plannable(request, instance, now):
                self._last_id = instance.id
                reason = Reason(Why.FEASIBLE, (("ttft_s", predicted.ttft_s), ("peak_step_s", predicted.peak_step_s)))
                return Placement(instance, reason, predicted.ttft_s, predicted.step_s)
        if len(self._best_effort) >= FORGET_FROM:
            self._best_effort &= cluster.requests.keys()
        self._best_effort.add(request.id)
        return Placement(least(instances, outstanding), Reason(Why.BEST_EFFORT))

    def _asked(self, instances: Sequence[Instance]) -> list[Instance]:
        if self._in_turn:
            return sorted(instances, key=lambda each: (each.id <= self._last_id, each.id))
        return sorted(instances, key=lambda each: (outstanding(each), each.dispatches, each.id))

    def is_plannable(self, request: Request, instance: Instance, now: float) -> bool:
        """Whether the newcomer's first token is in time there, and nobody planned behind it becomes late by it."""
        model, stretch = instance.latency.model, forecast.stretch(instance, self._chunk)
        own_s = stretch * instance.prefill_work_s(request, instance.cached_tokens(request))
        end_s = now + instance.residual_s(now) + model.prefill_base_s
        end_s -= stretch * model.prefill_token_s * instance.progress_tokens
        planned = [each for each in instance.waiting.values() if each.id not in self._best_effort]
        newcomer = (request.first_deadline_s, request.id)
        is_in = False
        for each in sorted(planned, key=lambda each: (each.first_deadline_s, each.id)):
            if not is_in and newcomer < (each.first_deadline_s, each.id):
                is_in = True
                end_s += own_s
                if end_s > request.first_deadline_s:
                    return False
            end_s += stretch * instance.prefill_work_s(each, each.cached_tokens)
            if is_in and end_s - own_s <= each.first_deadline_s < end_s:
                return False
        return is_in or end_s + own_s <= request.first_deadline_s


def policy(prefill_tokens_max: int, *, asks: str = "turn", credit_spend_max: float = 0.0, chunk: int = 0) -> Policy:
    if asks not in ASKS:
        raise ValueError(f"asks must be one of {', '.join(ASKS)}, not {asks!r}")
    tokens = engines.chunk_tokens(prefill_tokens_max, chunk)
    rules = StepRules("admission", "slack", prefill_tokens_max=tokens, credit_spend_max=credit_spend_max)
    return Policy("slos_serve", Admission(tokens, asks == "turn"), rules)
