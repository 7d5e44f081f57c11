"""Predictions follow what was seen, for each peer and medium apart."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.transfer.bandwidth import PAIRS_MAX, TYPICAL, Bandwidth

KB, MB = 1 << 10, 1 << 20


def test_unknown_peer_is_typical() -> None:
    assert Bandwidth().speed("new", "tcp") == TYPICAL["tcp"]


@pytest.mark.parametrize("medium", TYPICAL)
def test_set_up_and_rate_are_found(medium: str) -> None:
    bandwidth = Bandwidth()
    chance = random.Random(1)
    for _ in range(40):
        size = chance.choice([64 * KB, MB, 8 * MB, 64 * MB])
        bandwidth.observe("peer", medium, size, (3e-3 + size / 5e8) * chance.uniform(0.9, 1.1))
    for size in (64 * KB, 8 * MB, 64 * MB):
        assert bandwidth.predict_s("peer", medium, size) == pytest.approx(3e-3 + size / 5e8, rel=0.25)


def test_change_is_followed() -> None:
    bandwidth = Bandwidth()
    for seconds_per_byte in (1e-9, 1e-8):
        for index in range(40):
            size = MB << (index % 5)
            bandwidth.observe("peer", "tcp", size, 1e-3 + size * seconds_per_byte)
    assert bandwidth.predict_s("peer", "tcp", 8 * MB) == pytest.approx(1e-3 + 8 * MB * 1e-8, rel=0.2)


def test_one_size_alone_predicts_itself_and_scales_like_the_medium() -> None:
    bandwidth = Bandwidth()
    for _ in range(20):
        bandwidth.observe("peer", "shm", 8 * MB, 10 * TYPICAL["shm"].predict_s(8 * MB))
    for size in (KB, 8 * MB, 64 * MB):
        assert bandwidth.predict_s("peer", "shm", size) == pytest.approx(10 * TYPICAL["shm"].predict_s(size), rel=0.1)


def test_pairs_are_apart() -> None:
    bandwidth = Bandwidth()
    bandwidth.observe("slow", "tcp", MB, 10.0)
    assert bandwidth.speed("slow", "unix") == TYPICAL["unix"]
    assert bandwidth.speed("other", "tcp") == TYPICAL["tcp"]
    assert bandwidth.predict_s("slow", "tcp", MB) == pytest.approx(10.0, rel=0.2)


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.floats(0, 1e4)), min_size=1, max_size=30))
def test_no_past_makes_a_prediction_absurd(past: list[tuple[int, float]]) -> None:
    """Never negative, never falling with size, never of no rate at all."""
    bandwidth = Bandwidth()
    for size, seconds in past:
        bandwidth.observe("peer", "tcp", size, seconds)
    speed = bandwidth.speed("peer", "tcp")
    assert speed.setup_s >= 0
    assert speed.bytes_per_s > 0
    assert 0 <= bandwidth.predict_s("peer", "tcp", 0) <= bandwidth.predict_s("peer", "tcp", MB)


def test_peers_long_unheard_are_forgotten() -> None:
    bandwidth = Bandwidth()
    for index in range(PAIRS_MAX + 1):
        bandwidth.observe(str(index), "tcp", MB, 10.0)
    assert bandwidth.speed("0", "tcp") == TYPICAL["tcp"]
    assert bandwidth.speed("1", "tcp") != TYPICAL["tcp"]
