"""Requests, instances and the queue in their places; output lengths against a sorted list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.builders import instance, place, request, slo
from hyperflexis.core.cluster import Cluster, OutputLengths
from hyperflexis.core.instance import Instance, InstanceStep
from hyperflexis.core.request import RequestState, RequestStep


@given(st.lists(st.integers(1, 1000), max_size=600), st.integers(1, 1000))
def test_expected_length_is_the_upper_quantile_of_the_latest(lengths: list[int], max_tokens: int) -> None:
    known = OutputLengths()
    for length in lengths:
        known.observe(length)
    latest = sorted(lengths[-256:])
    expected = latest[int(0.8 * (len(latest) - 1))] if latest else max_tokens
    assert known.expected(max_tokens) == min(max_tokens, expected)


def test_old_lengths_are_forgotten() -> None:
    known = OutputLengths()
    for length in [*range(1000, 1300), *range(1, 257)]:
        known.observe(length)
    assert known.expected(5000) == 205


def test_expected_tokens_are_learnt_per_class() -> None:
    cluster = Cluster()
    for emitted in (10, 10, 10):
        ended = request(service_class="chat")
        ended.emitted_tokens = emitted
        cluster.observe_length(ended)
    assert cluster.expected_tokens(request(max_tokens=100, service_class="chat")) == 10
    assert cluster.expected_tokens(request(max_tokens=5, service_class="chat")) == 5
    assert cluster.expected_tokens(request(max_tokens=100, service_class="batch")) == 100


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([None, 1.0, 2.0]), st.integers(0, 3)), max_size=12))
def test_queue_is_in_order_whatever_comes_and_goes(specs: list[tuple[int, float | None, int]]) -> None:
    cluster = Cluster()
    made = []
    for number, (priority, ttft_s, arrived) in enumerate(specs):
        made.append(request(number, priority=priority, slo=slo(ttft_s=ttft_s), arrived_s=float(arrived)))
        cluster.requests[number] = made[-1]
        cluster.enqueue(made[-1])
        cluster.check()
    assert cluster.queue == sorted(made, key=lambda each: each.queue_key)
    for each in made[::2]:
        cluster.dequeue(each)
        del cluster.requests[each.id]
        cluster.check()
    assert cluster.queue == sorted(made[1::2], key=lambda each: each.queue_key)


def test_only_ready_instances_are_ready() -> None:
    cluster = Cluster()
    draining = instance(2)
    draining.step(InstanceStep.DRAIN)
    cluster.instances = {0: Instance(0), 1: instance(1), 2: draining}
    assert [each.id for each in cluster.ready_instances()] == [1]


def crowded() -> Cluster:
    cluster = Cluster()
    cluster.instances = {0: instance(0), 1: instance(1)}
    queued, placed = request(1), request(2)
    placed.step(RequestStep.DISPATCH)
    place(placed, cluster.instances[0])
    cluster.requests = {1: queued, 2: placed}
    cluster.enqueue(queued)
    cluster.check()
    return cluster


def test_check_finds_a_request_that_is_nowhere() -> None:
    cluster = crowded()
    cluster.queue.clear()
    with pytest.raises(AssertionError, match="id=1"):
        cluster.check()


def test_check_finds_a_request_on_two_instances() -> None:
    cluster = crowded()
    twin = request(2)
    place(twin, cluster.instances[1])
    with pytest.raises(AssertionError, match="on two instances"):
        cluster.check()


def test_check_finds_a_state_that_does_not_fit_its_place() -> None:
    cluster = crowded()
    cluster.requests[2].state = RequestState.QUEUED
    with pytest.raises(AssertionError, match="id=2"):
        cluster.check()


def test_check_finds_what_ended_and_was_kept() -> None:
    cluster = crowded()
    cluster.requests[3] = request(3)
    cluster.requests[3].state = RequestState.FINISHED
    with pytest.raises(AssertionError, match="nowhere"):
        cluster.check()
