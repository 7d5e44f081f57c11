"""What arriving requests ask of instances: seconds of prefill and of decodes, steps over tokens, bytes to move.

Counted by service class from arrivals, and from what has been seen of answers: work that has not begun counts at once,
and a change of demand is seen before its decodes pile up. All tokens that answers got in a time count over the answers
that ended in it, so that those which have not ended yet are not taken for short ones; a few answers of a usual length
are believed beforehand. How much of it an instance can do is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from hyperflexis.core import budget, loads
from hyperflexis.core.instance import Instance
from hyperflexis.core.request import Request

BELIEVED_ANSWERS = 4.0
BELIEVED_TOKENS, BELIEVED_SQUARES = 200.0, 80_000.0
"""Answers of chat: their mean, and the mean of squares."""


class Demand(NamedTuple):
    """What arrives per second."""

    prefill_s: float = 0.0
    """Seconds of prefill on an instance."""
    decode_s: float = 0.0
    """Seconds of decodes, without fixed parts of steps."""
    context_steps: float = 0.0
    """Tokens in blocks, once for each step for which they stay there."""
    prompt_tokens: float = 0.0
    """What is to be moved, if it is prefilled elsewhere."""
    fixed_s: float = 0.0
    """Of all these seconds, each times the share that fixed parts have of steps at its promised pace."""

    def plus(self, other: Demand) -> Demand:
        return Demand(*(one + two for one, two in zip(self, other, strict=True)))


class Asked(NamedTuple):
    """Sums over the requests of a class so far."""

    requests: float = 0.0
    prefill_s: float = 0.0
    prefill_squares: float = 0.0
    prompt_tokens: float = 0.0
    pace_s: float = 0.0
    ended: float = 0.0
    answer_tokens: float = 0.0
    answer_squares: float = 0.0

    def plus(self, other: Asked) -> Asked:
        return Asked(*(one + two for one, two in zip(self, other, strict=True)))

    def since(self, before: Asked) -> Asked:
        """Without what was so before. What has left unfinished is gone from answers, which are not below zero."""
        return Asked(*(max(0.0, one - two) for one, two in zip(self, before, strict=True)))


Ledger = Mapping[str, Asked]
"""By class."""


def arrived(request: Request, instance: Instance) -> Asked:
    """What one request adds when it comes, on instances like this one."""
    tokens, prefill_s = request.prompt_tokens, instance.latency.model.chunk_s(request.prompt_tokens, 0)
    promised_s = math.inf if request.slo.tpot_s is None else request.slo.tpot_s
    return Asked(1.0, prefill_s, prefill_s**2, tokens, min(promised_s, loads.pace_cap_s(instance)))


def answered(request: Request) -> Asked:
    """What it adds when it has ended."""
    tokens = request.emitted_tokens
    return Asked(ended=1.0, answer_tokens=tokens, answer_squares=tokens**2)


def with_running(ledger: Ledger, running: Iterable[Request]) -> dict[str, Asked]:
    """Count the answers of those that have not ended as long as they are."""
    sums: dict[str, tuple[int, int]] = {}
    for request in running:
        if tokens := request.emitted_tokens:
            total, squares = sums.get(request.service_class, (0, 0))
            sums[request.service_class] = total + tokens, squares + tokens**2
    counted = dict(ledger)
    for name, (total, squares) in sums.items():
        counted[name] = counted.get(name, Asked()).plus(Asked(answer_tokens=total, answer_squares=squares))
    return counted


def alike(now: Ledger, before: Ledger) -> float:
    """As how many requests of one size those that came in between count: a few large ones say little of the mean."""
    parts = [asked.since(before.get(name, Asked())) for name, asked in now.items()]
    squares = sum(part.prefill_squares for part in parts)
    return sum(part.prefill_s for part in parts) ** 2 / squares if squares else 0.0


def per_second(now: Ledger, before: Ledger, oldest: Ledger, elapsed_s: float, instance: Instance) -> Demand:
    """Of what came in between, with answers as they were since the oldest."""
    found = Demand()
    for name, asked in now.items():
        arrivals, answers = asked.since(before.get(name, Asked())), asked.since(oldest.get(name, Asked()))
        if arrivals.requests:
            found = found.plus(_of_class(arrivals, _moments(answers), instance))
    return Demand(*(term / elapsed_s for term in found))


def _moments(answers: Asked) -> tuple[float, float]:
    """The mean of lengths, and of their squares."""
    count = answers.ended + BELIEVED_ANSWERS
    tokens = answers.answer_tokens + BELIEVED_ANSWERS * BELIEVED_TOKENS
    squares = answers.answer_squares + BELIEVED_ANSWERS * BELIEVED_SQUARES
    return tokens / count, squares / count


def _of_class(arrivals: Asked, answer_moments: tuple[float, float], instance: Instance) -> Demand:
    """In all. A decode of o tokens after p is o steps on contexts of p + o / 2 on average: the squares count, as few
    long answers hold most of the blocks.
    """
    model, (tokens, squares) = instance.latency.model, answer_moments
    context_steps = arrivals.prompt_tokens * tokens + arrivals.requests * squares / 2
    decode_s = model.decode_seq_s * tokens * arrivals.requests + model.context_token_s * context_steps
    fixed_share = min(1.0, model.decode_base_s * arrivals.requests / (budget.AIM * arrivals.pace_s))
    fixed_s = (arrivals.prefill_s + decode_s) * fixed_share
    return Demand(arrivals.prefill_s, decode_s, context_steps, arrivals.prompt_tokens, fixed_s)
