"""Requests, instances and the queue in their places; output lengths against a sorted list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.builders import SIMPLE, capacity, cluster, place, request, slo
from hyperflexis.core.cluster import Cluster, OutputLengths
from hyperflexis.core.instance import InstanceStep, Role
from hyperflexis.core.request import RequestState, RequestStep


@given(st.lists(st.integers(1, 1000), max_size=600), st.integers(1, 1000))
def test_expected_length_is_the_upper_quantile_of_the_latest(lengths: list[int], max_tokens: int) -> None:
    known = OutputLengths()
    for length in lengths:
        known.observe(length)
    latest = sorted(lengths[-256:])
    expected = latest[int(0.8 * (len(latest) - 1))] if latest else max_tokens
    assert known.expected(max_tokens) == min(max_tokens, expected)


@given(st.lists(st.integers(1, 60), max_size=300), st.integers(1, 80), st.integers(0, 70))
def test_answer_that_is_longer_already_is_measured_by_those_that_were(
    lengths: list[int], max_tokens: int, emitted: int
) -> None:
    known = OutputLengths()
    for length in lengths:
        known.observe(length)
    longer = sorted(length for length in lengths[-256:] if length > emitted)
    expected = longer[int(0.8 * (len(longer) - 1))] if longer else max_tokens
    assert known.expected(max_tokens, emitted) == min(max_tokens, expected)
    assert known.expected(max_tokens, emitted) > emitted or emitted >= max_tokens


def test_old_lengths_are_forgotten() -> None:
    known = OutputLengths()
    for length in [*range(1000, 1300), *range(1, 257)]:
        known.observe(length)
    assert known.expected(5000) == 205


def test_expected_tokens_are_learnt_per_class() -> None:
    made = Cluster()
    for emitted in (10, 10, 10):
        made.observe_length(request(service_class="chat", tokens_before=emitted))
    assert made.expected_tokens(request(max_tokens=100, service_class="chat")) == 10
    assert made.expected_tokens(request(max_tokens=5, service_class="chat")) == 5
    assert made.expected_tokens(request(max_tokens=100, service_class="batch")) == 100


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([None, 1.0, 2.0]), st.integers(0, 3)), max_size=12))
def test_queue_is_in_order_whatever_comes_and_goes(specs: list[tuple[int, float | None, int]]) -> None:
    made, requests = Cluster(), []
    for number, (priority, ttft_s, arrived) in enumerate(specs):
        requests.append(request(number, priority=priority, slo=slo(ttft_s=ttft_s), arrived_s=float(arrived)))
        made.requests[number] = requests[-1]
        made.enqueue(requests[-1])
        made.check()
    assert made.queue == sorted(requests, key=lambda each: each.queue_key)
    for each in requests[::2]:
        made.dequeue(each)
        del made.requests[each.id]
        made.check()
    assert made.queue == sorted(requests[1::2], key=lambda each: each.queue_key)


def test_only_ready_instances_are_ready() -> None:
    made = Cluster()
    for number in range(3):
        made.launch(number, Role.MIXED)
    for number, blocks in ((1, 50), (2, 30)):
        made.instances[number].become_ready(capacity(blocks, 4), SIMPLE, 0.0)
    made.note_ready()
    assert [each.id for each in made.ready] == [1, 2]
    assert made.tokens_max == 120, "every ready instance could hold it"
    made.instances[2].step(InstanceStep.DRAIN)
    made.note_ready()
    assert [each.id for each in made.ready] == [1]
    assert made.tokens_max == 200


def test_without_a_ready_instance_nothing_fits() -> None:
    made = Cluster()
    made.launch(0, Role.MIXED)
    made.note_ready()
    assert (made.ready, made.tokens_max) == ([], 0)


def crowded() -> Cluster:
    made = cluster(2)
    queued, placed = request(1), request(2)
    placed.step(RequestStep.DISPATCH)
    place(placed, made.instances[0])
    made.requests = {1: queued, 2: placed}
    made.enqueue(queued)
    made.check()
    return made


def test_check_finds_a_ready_instance_that_is_not_listed() -> None:
    made = crowded()
    made.ready = made.ready[:1]
    with pytest.raises(AssertionError, match="ready instances"):
        made.check()


def test_check_finds_a_request_that_is_nowhere() -> None:
    made = crowded()
    made.queue.clear()
    with pytest.raises(AssertionError, match="id=1"):
        made.check()


def test_check_finds_a_request_on_two_instances() -> None:
    made = crowded()
    twin = request(2)
    place(twin, made.instances[1])
    with pytest.raises(AssertionError, match="on two instances"):
        made.check()


def test_check_finds_a_state_that_does_not_fit_its_place() -> None:
    made = crowded()
    made.requests[2].state = RequestState.QUEUED
    with pytest.raises(AssertionError, match="id=2"):
        made.check()


def test_check_finds_what_ended_and_was_kept() -> None:
    made = crowded()
    made.requests[3] = request(3)
    made.requests[3].state = RequestState.FINISHED
    with pytest.raises(AssertionError, match="nowhere"):
        made.check()
