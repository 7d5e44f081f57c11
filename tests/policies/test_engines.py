"""What runs inside the instances, by name."""

from __future__ import annotations

import pytest

from helpers.builders import scheduler, sequence, slo
from hyperflexis.policies import create, engines


@pytest.mark.parametrize(
    ("engine", "expected"), [("first_come", ("arrival", "fixed")), ("priority", ("priority", "fixed"))]
)
def test_engines_of_rivals_have_fixed_chunks(engine: str, expected: tuple[str, str]) -> None:
    rules = create(f"llumnix_v0:engine={engine},chunk=512", 2048).rules
    assert (rules.order, rules.sizing) == expected
    assert rules.prefill_tokens_max == 512


def test_any_dispatcher_runs_on_our_engine_too() -> None:
    for name in ("round_robin", "least_tokens", "power_of_two", "prefix_affinity", "llumnix_v0", "llumnix_v1", "llm_d"):
        assert create(f"{name}:engine=ours", 2048).rules == create("hyperflexis", 2048).rules


def test_chunk_is_the_deployment_s_unless_said() -> None:
    assert engines.rules("first_come", 2048, 0).prefill_tokens_max == 2048
    assert engines.rules("first_come", 2048, 64).prefill_tokens_max == 64


@pytest.mark.parametrize(("order", "expected"), [("arrival", [1, 2, 3]), ("priority", [3, 1, 2])])
def test_order_of_arrival_and_of_priority(order: str, expected: list[int]) -> None:
    engine = scheduler(order=order, sizing="fixed", prefill_tokens_max=100)
    for number, (arrived_s, priority) in {2: (0.2, 0), 1: (0.1, 0), 3: (0.3, 1)}.items():
        engine.add(sequence(number, 10, slo=slo(1.0 / number), arrived_s=arrived_s, priority=priority))
    assert [chunk.sequence.id for chunk in engine.plan(0.5).prefills] == expected
    engine.check()
