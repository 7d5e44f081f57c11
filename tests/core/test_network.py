"""What copies take, what is queued before them, and what is learnt from those that were made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.core.network import BYTES_MIN, WEIGHT, Network

GB = 10**9


def network() -> Network:
    return Network(bytes_s=1e9, latency_s=0.5)


def test_copy_alone_takes_the_latency_and_its_bytes() -> None:
    made = network()
    assert made.copy_s(0, 1, 2 * GB) == pytest.approx(2.5)
    assert made.arrival_s(0, 1, 2 * GB, 10.0) == pytest.approx(12.5)
    assert made.backlog_s(1, 10.0) == 0.0


def test_copies_to_one_instance_and_from_one_wait_for_each_other_but_not_for_the_latency() -> None:
    made = network()
    made.send(0, 1, 2 * GB, 10.0)
    assert made.backlog_s(1, 10.0) == pytest.approx(2.0)
    assert made.backlog_s(1, 11.5) == pytest.approx(0.5)
    assert made.backlog_s(0, 10.0) == 0.0, "its way in is free"
    assert made.arrival_s(2, 1, GB, 10.0) == pytest.approx(13.5)
    assert made.arrival_s(0, 2, GB, 10.0) == pytest.approx(13.5)
    assert made.arrival_s(1, 0, GB, 10.0) == pytest.approx(11.5)
    made.send(2, 1, GB, 10.0)
    assert made.backlog_s(1, 10.0) == pytest.approx(3.0)


def test_what_was_sent_long_ago_keeps_nobody_waiting() -> None:
    made = network()
    made.send(0, 1, 2 * GB, 0.0)
    assert made.backlog_s(1, 100.0) == 0.0
    assert made.arrival_s(0, 1, GB, 100.0) == pytest.approx(101.5)


def test_way_is_learnt_from_its_first_copy_and_all_ways_a_little() -> None:
    made = network()
    made.observe(0, 1, 2 * GB, 1.5)
    assert made.copy_s(0, 1, 2 * GB) == pytest.approx(1.5)
    assert made.bytes_s == pytest.approx(1e9 + WEIGHT * 1e9)
    assert made.copy_s(1, 0, 1.1 * GB) == pytest.approx(1.5), "a way is like all others until a copy was made on it"
    made.observe(0, 1, 1 * GB, 1.5)
    assert made.copy_s(0, 1, 0) == 0.5
    assert made.copy_s(0, 1, 1.9 * GB) == pytest.approx(1.5), "the mean of 2 and 1, the new one counting a tenth"


@pytest.mark.parametrize(("kv_bytes", "seconds"), [(BYTES_MIN - 1, 10.0), (GB, 0.5), (GB, 0.0)])
def test_copies_that_say_nothing_of_bandwidth_teach_nothing(kv_bytes: int, seconds: float) -> None:
    made = network()
    made.observe(0, 1, kv_bytes, seconds)
    assert made.bytes_s == 1e9
    assert made.copy_s(0, 1, GB) == 1.5


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.floats(0, 5e9), st.floats(0, 3)), max_size=20))
def test_no_copy_arrives_before_it_could_alone_or_overtakes_on_its_way(
    sent: list[tuple[int, int, float, float]],
) -> None:
    made, now, last_s = network(), 0.0, dict.fromkeys(range(3), 0.0)
    for source, target, kv_bytes, pause_s in sent:
        now += pause_s
        arrival_s = made.arrival_s(source, target, kv_bytes, now)
        assert arrival_s >= now + made.copy_s(source, target, kv_bytes)
        assert arrival_s >= last_s[target]
        made.send(source, target, kv_bytes, now)
        assert now + made.backlog_s(target, now) == pytest.approx(arrival_s - made.latency_s)
        last_s[target] = arrival_s
