"""TokenScale: velocities, bursts, the slice kept free, and the ratio of roles."""

from __future__ import annotations

import math

import pytest

from helpers.builders import decode, instance, place, request, slo
from hyperflexis.core.instance import Role
from hyperflexis.policies import create
from hyperflexis.policies.tokenscale import Rate, decode_velocity, prefill_velocity
from policies.choosing import bound, fleet, prefill, relabel, stand

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED


def test_rate_decays() -> None:
    rate = Rate(2.0)
    rate.add(10, 0.0)
    assert rate.per_s(0.0) == 5.0
    assert rate.per_s(2.0) == pytest.approx(5.0 / math.e)
    rate.add(10, 2.0)
    assert rate.per_s(2.0) == pytest.approx(5.0 + 5.0 / math.e)


def test_velocities_of_an_instance() -> None:
    """A prompt of 90 tokens takes 100 ms; 40 decodes, 50 ms each token; memory for 10 of 160 tokens, 20 ms."""
    assert prefill_velocity(instance(), 90) == pytest.approx(900)
    assert decode_velocity(instance(), 80, 20, 0.05 / 0.97) == pytest.approx(40 * 100 / (20 * 0.05))
    assert decode_velocity(instance(blocks=100), 140, 20, math.inf) == pytest.approx(10 * 160 / (20 * 0.02))


def test_decode_instance_helps_in_a_burst_only() -> None:
    made, among = create("tokenscale:slice_tokens=300", 512), fleet(P, D, D)
    place(request(0, 500), among.ready[0])
    assert prefill(made, request(1, 200), among) == 0
    for number in range(2, 8):
        assert prefill(made, request(number, 200), among, 0.1) == (0 if number < 5 else 1)
    place(request(8, 150), among.ready[1])
    assert prefill(made, request(9, 200), among, 0.1) == 0  # Beyond the slice.
    assert prefill(made, request(10, 100), among, 0.1) == 1
    assert prefill(made, request(11, 100), among, 5.0) == 0


def test_decodes_leave_the_slice_free_on_convertible_instances() -> None:
    for slice_tokens, expected in ((0, 1), (100, 2)):
        made, among = create(f"tokenscale:slice_tokens={slice_tokens}", 512), fleet(P, D, D, blocks=20)
        decode(request(1, 190), among.ready[1])
        for number in (2, 3):
            decode(request(number, 90), among.ready[2])
        source = among.ready[0]
        assert bound(made, stand(request(9, 20), source), source, among) == expected


def test_slice_keeps_nothing_from_an_empty_instance() -> None:
    made, among = create("tokenscale", 512), fleet(P, D, blocks=20)
    source = among.ready[0]
    assert bound(made, stand(request(9, 20), source), source, among) == 1
    decode(request(1, 20), among.ready[1])
    assert bound(made, request(10, 20), source, among) is None


def test_helpers_take_restricted_chunks() -> None:
    made = create("tokenscale:chunk=128", 512)
    assert [made.rules_of(role).prefill_tokens_max for role in (P, D, M)] == [512, 128, 512]


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "expected"), [(400, 2, {2: P}), (10, 400, {0: D}), (100, 87, {})]
)
def test_roles_follow_velocities(prompt_tokens: int, max_tokens: int, expected: dict[int, Role]) -> None:
    made, among = create("tokenscale:dwell_s=1", 512), fleet(P, P, D, D)
    decode(request(99, 10, slo=slo(1.0, 0.05)), among.ready[3])
    for number in range(30):
        prefill(made, request(number, prompt_tokens, max_tokens, slo=slo(1.0, 0.05)), among, 0.1 * number)
    assert relabel(made, among, 0.5) == {}
    assert relabel(made, among, 3.0) == expected
    assert relabel(made, among, 3.5) == {}


def test_roles_stay_where_nothing_comes_or_nothing_is_split() -> None:
    made = create("tokenscale", 512)
    assert relabel(made, fleet(P, D), 100.0) == {}
    assert relabel(made, fleet(M, M), 100.0) == {}
    assert create("tokenscale:plans=off", 512).planner is None
