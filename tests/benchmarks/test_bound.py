"""The clairvoyant bound: no schedule exceeds it, row by row, and where the best is known by hand it is exactly that."""

from __future__ import annotations

import importlib
import itertools
import math

import numpy as np
import pytest

from helpers.builders import H100_8B
from hyperflexis.core.instance import Capacity
from hyperflexis.core.latency import LatencyModel
from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.policies import create
from hyperflexis.sim.job import Job
from hyperflexis.sim.outcome import Outcome
from hyperflexis.sim.simulation import FleetSpec, simulate

pytest.importorskip("scipy")
bound = importlib.import_module("bound")

SLOW = LatencyModel(14e-3, 14e-3, 5e-5, 4e-10, 3.5e-5, 3.3e-8)
"""Like a 70B model: its fixed part is a large share of a strict pace."""
CAPACITY = Capacity(blocks=25_600, block_tokens=16, seqs_max=512)
CLASSES = {
    "code": ServiceClass("code", Slo(ttft_s=0.5, tpot_s=0.1)),
    "chat": ServiceClass("chat", Slo(ttft_s=2.0, tpot_s=0.05)),
}
POLICIES = ("hyperflexis", "round_robin", "polyserve", "proserve", "llumnix_v1")


def traffic(seed: int, rate: float, seconds: float = 6.0) -> list[Job]:
    """Short answers in bursts beside long ones."""
    rng = np.random.default_rng(seed)
    found = []
    for name, prompt_tokens, answer_tokens in (("code", 1500, 12), ("chat", 800, 60)):
        at_s = 0.0
        while (at_s := at_s + float(rng.exponential(2 / rate))) < seconds:
            for _ in range(1 + int(rng.geometric(0.3)) if name == "code" and rng.random() < 0.2 else 1):
                prompt, answer = rng.lognormal(sigma=0.7, size=2)
                tokens = math.ceil(answer_tokens * answer)
                found.append(Job(at_s, math.ceil(prompt_tokens * prompt), tokens, name))
    return sorted(found, key=lambda job: job.at_s)


def run(jobs: list[Job], policy: str, instances: int, latency: LatencyModel = SLOW) -> Outcome:
    return simulate(jobs, CLASSES, create(policy, 2048), FleetSpec(instances, CAPACITY, latency))


def least(outcome: Outcome) -> float:
    """Attainment of the class that fares worst."""
    return min(float(outcome.attained[outcome.service_class == each].mean()) for each in set(outcome.service_class))


@pytest.mark.parametrize(("seed", "rate", "instances"), [(1, 20.0, 1), (2, 30.0, 2), (3, 50.0, 2), (4, 70.0, 3)])
def test_no_policy_exceeds_it(seed: int, rate: float, instances: int) -> None:
    jobs = traffic(seed, rate)
    limit = bound.attainment_bound(jobs, CLASSES, SLOW, instances)
    anywhere = bound.attainment_bound(jobs, CLASSES, SLOW, instances, moves=True)
    assert limit.least < 1, "a bound that forbids nothing shows nothing"
    assert limit.least <= anywhere.least + 1e-3
    for policy in POLICIES:
        outcome = run(jobs, policy, instances)
        assert least(outcome) <= limit.least + 1e-6
        assert outcome.attained.mean() <= limit.overall + 1e-6


@pytest.mark.parametrize("latency", [SLOW, H100_8B], ids=["slow", "fast"])
@pytest.mark.parametrize("seed", range(3))
def test_every_row_holds_for_what_was_attained(seed: int, latency: LatencyModel) -> None:
    jobs = traffic(seed, 15.0 if latency is SLOW else 60.0, seconds=5.0)
    rows = bound.all_rows(bound.demands(jobs, CLASSES, latency), instances=0)
    for policy in POLICIES:
        attained = run(jobs, policy, 1, latency).attained
        assert attained.any()
        assert (rows @ attained.astype(float)).max() <= 1 + 1e-6


def test_rows_hold_for_what_is_attained_when_hopeless_work_is_left_out() -> None:
    """Nearer to the best: only those are served that were served in time, again and again."""
    jobs = traffic(7, 40.0)
    rows = bound.all_rows(bound.demands(jobs, CLASSES, SLOW), instances=0)
    chosen = np.arange(len(jobs))
    highest = 0.0
    for _ in range(5):
        attained = run([jobs[index] for index in chosen], "hyperflexis", 2).attained
        chosen = chosen[attained]
        accepted = np.zeros(len(jobs))
        accepted[chosen] = 1
        highest = max(highest, float((rows @ accepted).max()))
    assert highest <= 2 + 1e-6


def burst(count: int, prompt_tokens: int, answer_tokens: int, name: str = "code") -> list[Job]:
    return [Job(1.0, prompt_tokens, answer_tokens, name)] * count


@pytest.mark.parametrize("instances", [1, 2, 5])
@pytest.mark.parametrize("prompt_tokens", [900, 2000, 3100, 5000])
def test_a_burst_is_packed_whole(instances: int, prompt_tokens: int) -> None:
    """At one instant: each instance takes as many whole prompts as fit between two fixed parts."""
    fit = int((0.5 - SLOW.prefill_base_s) / SLOW.chunk_s(prompt_tokens, 0))
    limit = bound.attainment_bound(burst(60, prompt_tokens, 1), CLASSES, SLOW, instances)
    assert limit.least * 60 == pytest.approx(instances * fit, abs=0.1)
    assert limit.overall == pytest.approx(limit.least, abs=1e-3)


def test_a_burst_is_not_packed_where_work_may_move() -> None:
    limit = bound.attainment_bound(burst(60, 2000, 1), CLASSES, SLOW, 2, moves=True)
    assert limit.least * 60 == pytest.approx(2 * (0.5 - SLOW.prefill_base_s) / SLOW.chunk_s(2000, 0), abs=0.1)


def test_decodes_pay_for_their_steps() -> None:
    """A burst of long answers: what fits is what computes within F + (o - 1) Q less o fixed parts; by hand, exactly."""
    answer_tokens, count = 100, 2000
    asked = bound.demands(burst(count, 16, answer_tokens, "chat"), CLASSES, SLOW)
    each_s = float(asked.prefill_s[0] + asked.decode_work_s(asked.steps, np.arange(count))[0])
    room_s = 2.0 + 99 * 0.05 - answer_tokens * SLOW.decode_base_s
    limit = bound.attainment_bound(burst(count, 16, answer_tokens, "chat"), CLASSES, SLOW, 1)
    assert limit.least * count <= room_s / each_s + 1e-6
    moved = bound.attainment_bound(burst(count, 16, answer_tokens, "chat"), CLASSES, SLOW, 1, moves=True)
    assert moved.least > limit.least + 0.1


def best_of_burst(works_s: list[float], room_s: float, instances: int) -> int:
    """Most of them that fit, found by trying every assignment; place `instances` is left out."""
    most = 0
    for places in itertools.product(range(instances + 1), repeat=len(works_s)):
        filled = [sum(w for w, at in zip(works_s, places, strict=True) if at == one) for one in range(instances)]
        if max(filled) <= room_s:
            most = max(most, sum(at < instances for at in places))
    return most


@pytest.mark.parametrize("seed", range(6))
def test_never_below_the_best_of_all_assignments(seed: int) -> None:
    rng = np.random.default_rng(seed)
    jobs = [Job(0.5, int(tokens), 1, "code") for tokens in rng.integers(500, 7000, size=8)]
    works_s = [SLOW.chunk_s(job.prompt_tokens, 0) for job in jobs]
    best = best_of_burst(works_s, 0.5 - SLOW.prefill_base_s, 2)
    limit = bound.attainment_bound(jobs, CLASSES, SLOW, 2)
    assert best <= 8 * limit.overall + 1e-6
    assert 8 * limit.overall < best + 1, "loose by less than one request"


@pytest.mark.parametrize("k", range(1, 11))
def test_packing_weighs_no_full_instance_above_one(k: int) -> None:
    rng = np.random.default_rng(k)
    for _ in range(300):
        shares = rng.dirichlet(np.full(int(rng.integers(1, 12)), 0.7))
        row = bound.sparse.csr_array(shares[None, :])
        assert bound.packed(row, k).sum() <= 1 + 1e-9
    assert bound.packed(bound.sparse.csr_array(np.full((1, k + 1), 1 / (k + 0.9))), k).sum() == pytest.approx(
        (k + 1) / k
    )


def test_known_prefixes_are_taken_off_at_best() -> None:
    hashes = (b"a", b"b")
    first, again = (Job(at_s, 40, 2, "chat", hashes) for at_s in (0.0, 1.0))
    whole = Job(2.0, 32, 2, "chat", hashes)
    asked = bound.demands([first, again, whole], CLASSES, SLOW)
    expected = [SLOW.chunk_s(40, 0), SLOW.chunk_s(8, 32), SLOW.chunk_s(1, 31)]
    assert asked.prefill_s.tolist() == pytest.approx(expected)


def test_what_misses_on_an_idle_instance_is_not_counted() -> None:
    jobs = [Job(0.0, 20_000, 5, "code"), Job(50.0, 100, 5, "code")]
    assert bound.attainment_bound(jobs, CLASSES, SLOW, 9).least == 0.5


def test_sessions_are_refused() -> None:
    job = Job(0.0, 10, 5, "chat", (), lambda ended_s: None)
    with pytest.raises(ValueError, match="sessions"):
        bound.demands([job], CLASSES, SLOW)


def test_classes_without_promises_are_kept_for_free() -> None:
    classes = {"free": ServiceClass("free"), "code": CLASSES["code"]}
    jobs = [*burst(60, 2000, 1), *[Job(1.0, 4000, 50, "free")] * 40]
    limit = bound.attainment_bound(jobs, classes, SLOW, 2)
    assert limit.least * 60 == pytest.approx(8, abs=0.1)
    assert limit.overall * 100 == pytest.approx(48, abs=0.1)


def test_the_capacity_of_a_metronome() -> None:
    """Prompts at even gaps, answers of one token: an instance without pauses, and one base for all of them at best."""

    def jobs_at(rate: float) -> list[Job]:
        return [Job(number / rate, 2000, 1, "code") for number in range(400)]

    most = bound.capacity_bound(jobs_at, CLASSES, SLOW, 2, share=1.0, within=(5.0, 50.0))
    ideal = 2 / SLOW.chunk_s(2000, 0)
    assert ideal <= most <= 1.06 * ideal
