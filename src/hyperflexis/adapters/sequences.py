"""A request as messages have it, turned into a sequence as the step scheduler has it: durations become instants."""

from __future__ import annotations

from hyperflexis.core.slo import Slo
from hyperflexis.core.step import Sequence
from hyperflexis.wire.messages import Submit


def sequence_of(submit: Submit, now: float) -> Sequence:
    """The scheduler's view of a request; `now` is the local clock."""
    age_s = submit.first_token_age_s
    return Sequence(
        id=submit.request,
        tokens=submit.prompt + submit.emitted,
        prompt_tokens=len(submit.prompt),
        max_tokens=submit.max_tokens,
        slo=Slo(submit.ttft_s, submit.tpot_s, submit.e2e_s),
        arrived_s=now - submit.waited_s,
        priority=submit.priority,
        stop_ids=frozenset(submit.sampling.stop_ids),
        first_token_s=None if age_s is None else now - age_s,
        reuses_prefix=not submit.sampling.prompt_logprobs,
        expected_tokens=submit.expected_tokens,
    )
