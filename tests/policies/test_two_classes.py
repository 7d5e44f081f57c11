"""Strict and loose traffic on one small fleet, in virtual time: ours keeps promises where a plain balancer breaks.

Two instances like an 8B model on an H100, the default 2048 prefill tokens per step for both policies. 30 % strict
requests (short prompts, TTFT 0.3 s, TPOT 40 ms) and 70 % loose ones (long prompts, TTFT 10 s, TPOT 0.4 s), all of one
priority. Arrivals are Poisson, every request counts, none is refused, and all run to their end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from helpers.builders import H100_8B
from helpers.fleet import Fleet, Job
from hyperflexis.core.commands import Conclude
from hyperflexis.core.control import ControlPlane, FixedFleet
from hyperflexis.core.instance import Capacity
from hyperflexis.core.slo import Slo
from hyperflexis.policies import create

INSTANCES = 2
CAPACITY = Capacity(blocks=25_600, block_tokens=16, seqs_max=256)
"""Some 410k tokens of KV, what 80 GB leave."""
PREFILL_TOKENS_MAX = 2048
STRICT = Slo(ttft_s=0.3, tpot_s=0.04)
LOOSE = Slo(ttft_s=10.0, tpot_s=0.4)
STRICT_SHARE = 0.3
PROMPT_TOKENS = {"strict": 150, "loose": 1000}
ANSWER_TOKENS = {"strict": 40, "loose": 60}
"""Medians of log-normal lengths (sigma 0.5)."""
DURATION_S = 20.0
RATES = (56.0, 104.0)
"""Requests per second between which round robin breaks."""


@dataclass(frozen=True)
class Attainment:
    """Share of each class's requests that kept all their promises."""

    strict: float
    loose: float

    @property
    def worst(self) -> float:
        return min(self.strict, self.loose)


def jobs(rate: float, seed: int) -> Iterator[tuple[float, Job]]:
    """(instant, request): at every rate the same requests, only nearer to each other."""
    rng = np.random.default_rng(seed)
    most = 4000
    arrivals = np.cumsum(rng.exponential(size=most))[: int(DURATION_S * rate)] / rate
    is_strict = rng.random(most) < STRICT_SHARE
    lengths = rng.lognormal(sigma=0.5, size=(most, 2))
    for number, instant_s in enumerate(arrivals):
        name, slo = ("strict", STRICT) if is_strict[number] else ("loose", LOOSE)
        prompt_tokens = math.ceil(PROMPT_TOKENS[name] * lengths[number, 0])
        max_tokens = 4 * ANSWER_TOKENS[name]
        answer_tokens = min(max_tokens, math.ceil(ANSWER_TOKENS[name] * lengths[number, 1]))
        yield (
            float(instant_s),
            Job(
                number,
                range(prompt_tokens),
                max_tokens,
                slo,
                service_class=name,
                answer_tokens=answer_tokens,
                shares_prefix=False,
            ),
        )


def attainment(policy: str, rate: float, seed: int) -> Attainment:
    """Run one policy at one rate."""
    fleet = Fleet(ControlPlane(create(policy, PREFILL_TOKENS_MAX), FixedFleet(INSTANCES)), CAPACITY, H100_8B)
    for instant_s, job in jobs(rate, seed):
        fleet.arrive_at(instant_s, job)
    fleet.run()
    kept: dict[str, list[bool]] = {"strict": [], "loose": []}
    for end in fleet.ends.values():
        assert isinstance(end, Conclude)
        assert end.verdict is not None
        kept[end.verdict.service_class].append(end.verdict.attained)
    return Attainment(**{name: sum(each) / len(each) for name, each in kept.items()})


def highest_rate(policy: str, seed: int, target: float = 0.9, rounds: int = 4) -> float:
    """The highest rate at which both classes attain the target, by bisection: within 4 %."""
    low, high = RATES
    for _ in range(rounds):
        middle = math.sqrt(low * high)
        if attainment(policy, middle, seed).worst >= target:
            low = middle
        else:
            high = middle
    return low


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_ours_keeps_strict_promises_where_round_robin_breaks_them(seed: int) -> None:
    """A fifth beyond what round robin can bear: strict work at least twice as often on time, loose work no worse."""
    rate = 1.2 * highest_rate("round_robin", seed)
    plain, ours = attainment("round_robin", rate, seed), attainment("hyperflexis", rate, seed)
    print(f"seed {seed}, {rate:.1f} requests/s: round_robin {plain}, hyperflexis {ours}")
    assert ours.strict >= 2 * plain.strict
    assert ours.loose >= plain.loose
