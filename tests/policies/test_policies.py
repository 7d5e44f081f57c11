"""Policies by name, and what each of them is made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.builders import instance, request
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Why
from hyperflexis.core.dispatch import SloDispatcher
from hyperflexis.core.instance import Instance
from hyperflexis.policies import POLICIES, create
from hyperflexis.policies.round_robin import InTurn


def turn(policy: InTurn, *instances: Instance) -> int:
    placement = policy.choose(request(), instances, Cluster(), 0.0)
    assert placement.reason.why is Why.IN_TURN
    return placement.instance.id


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_policy_is_created_fresh_under_its_own_name(name: str) -> None:
    one, other = create(name, 512), create(name, 512)
    assert one.name == name
    assert one.rules.prefill_tokens_max == 512
    assert one.dispatcher is not other.dispatcher


def test_unknown_policy_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=f"unknown policy 'magic'; there are: {', '.join(sorted(POLICIES))}"):
        create("magic", 512)


def test_ours_is_slack_throughout() -> None:
    made = create("hyperflexis", 512)
    assert isinstance(made.dispatcher, SloDispatcher)
    assert (made.rules.order, made.rules.sizing) == ("fewest_late", "slack")


def test_round_robin_looks_at_no_promise() -> None:
    made = create("round_robin", 512)
    assert isinstance(made.dispatcher, InTurn)
    assert (made.rules.order, made.rules.sizing) == ("arrival", "fixed")


def test_instances_take_turns() -> None:
    policy, fleet = InTurn(), [instance(number) for number in range(3)]
    assert [turn(policy, *fleet) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_turns_go_on_when_instances_come_and_go() -> None:
    policy, (a, b, c, d) = InTurn(), (instance(number) for number in range(4))
    assert turn(policy, a, b, c) == 0
    assert turn(policy, b, c) == 1
    assert turn(policy, a, c) == 2
    assert turn(policy, a, c, d) == 3
    assert turn(policy, c, d) == 2
    assert turn(policy, c) == 2


@given(st.integers(1, 5), st.integers(0, 30))
def test_shares_differ_by_one_at_most(instances: int, requests: int) -> None:
    policy, fleet = InTurn(), [instance(number) for number in range(instances)]
    taken = [turn(policy, *fleet) for _ in range(requests)]
    counts = [taken.count(number) for number in range(instances)]
    assert max(counts) - min(counts) <= 1
