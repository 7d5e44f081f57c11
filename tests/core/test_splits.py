"""Which instances the strict paces may use: what is chosen, for whom it holds, what outlives a change of the fleet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.builders import A100_14B, cluster, decode, place, request, slo
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.instance import Instance
from hyperflexis.core.request import Request
from hyperflexis.core.shadow import Split
from hyperflexis.core.splits import EFFICIENCY, LOOK_S, TOLERANCE, Splits, TokenFlow, best

WHOLE = Split(math.inf, 8)
SHARES = st.dictionaries(
    st.builds(Split, st.sampled_from([0.05, 0.1]), st.integers(1, 7)),
    st.sampled_from([0.0, 0.005, 0.01, 0.02, 0.05, 0.5]),
    max_size=8,
).map(lambda shares: {**shares, WHOLE: 0.03})


def chat(number: int = 0, at_s: float = 0.0) -> Request:
    return request(number, 300, slo=slo(1.0, 0.05), arrived_s=at_s, service_class="chat")


def code(number: int = 0, at_s: float = 0.0) -> Request:
    return request(number, 4000, slo=slo(1.0, 0.15), arrived_s=at_s, service_class="code")


def busy(instances: int) -> Cluster:
    """All instances decode for both."""
    made = cluster(instances, A100_14B)
    for each in made.ready:
        decode(chat(100 + each.id), each)
        decode(code(200 + each.id), each)
    return made


def play(splits: Splits, fleet: Cluster, seconds: int, from_s: float = 0.0) -> Sequence[Instance]:
    """So many seconds of both, code in bursts; returns where chat may go in the end."""
    for second in range(seconds):
        now = from_s + second
        for each in fleet.ready:
            each.advance(40)
        bursts = 10 * len(fleet.ready) if now % 10 == 0 else 0
        for one in [chat(at_s=now)] * len(fleet.ready) + [code(at_s=now)] * bursts:
            splits.allowed(one, fleet.ready, fleet.ready, now)
    return splits.allowed(chat(at_s=from_s + seconds), fleet.ready, fleet.ready, from_s + seconds)


# Which is best.


@given(SHARES, st.sampled_from([0.001, 0.01, 0.1]))
def test_best_is_good_and_holds_until_another_is_clearly_better(shares: dict[Split, float], tolerance: float) -> None:
    least = min(shares.values())
    for present in (*shares, Split(0.07, 3)):
        chosen = best(shares, present, tolerance)
        assert shares[chosen] <= least + 2 * tolerance
        assert best(shares, chosen, tolerance) in {chosen, best(shares, best(shares, chosen, tolerance), tolerance)}
        if chosen != present:
            was_bad = shares.get(present, math.inf) > least + 2 * tolerance
            assert was_bad or (chosen.strict > present.strict and shares[chosen] <= least + tolerance / 4)


def test_of_equally_good_ones_the_widest_is_taken() -> None:
    shares = {Split(0.05, 2): 0.02, Split(0.05, 3): 0.02 + TOLERANCE, Split(0.05, 4): 0.2, WHOLE: 0.3}
    assert best(shares, WHOLE) == Split(0.05, 3)
    assert best(shares, Split(0.05, 2)) == Split(0.05, 2), "not clearly as good"
    assert best({**shares, WHOLE: 0.02}, Split(0.05, 2)) == WHOLE


# Who may go where.


def test_bursts_of_long_prompts_keep_strict_work_on_some_instances() -> None:
    splits, fleet = Splits(), busy(8)
    allowed = play(splits, fleet, 60)
    assert 1 <= len(allowed) == splits.chosen.strict < 8
    assert set(allowed) < set(fleet.ready)
    assert splits.allowed(code(at_s=60.0), fleet.ready, fleet.ready, 60.0) is fleet.ready, "loose work may go anywhere"
    assert splits.allowed(chat(at_s=60.0), fleet.ready, fleet.ready, 60.0) is allowed, "the same, so that it is known"


def test_who_fits_on_few_instances_only_is_not_left_without_any() -> None:
    splits, fleet = Splits(), busy(4)
    allowed = play(splits, fleet, 60)
    outside = [each for each in fleet.ready if each not in allowed]
    assert splits.allowed(chat(at_s=60.0), outside, fleet.ready, 60.0) == outside
    some = [outside[0], allowed[0]]
    assert splits.allowed(chat(at_s=60.0), some, fleet.ready, 60.0) == [allowed[0]]


def test_one_pace_needs_no_split() -> None:
    splits, fleet = Splits(), busy(4)
    for second in range(60):
        assert splits.allowed(chat(at_s=second), fleet.ready, fleet.ready, float(second)) is fleet.ready
    assert splits.chosen == Split(math.inf, 4)


def test_light_traffic_is_not_split() -> None:
    splits, fleet = Splits(), busy(4)
    for second in range(60):
        for one in (chat(at_s=second), code(at_s=second)):
            assert splits.allowed(one, fleet.ready, fleet.ready, float(second)) is fleet.ready


def test_a_request_that_is_dispatched_again_is_not_counted_twice() -> None:
    once, twice, fleet = Splits(), Splits(), busy(2)
    for splits in (once, twice):
        for one in (chat(), code()):
            splits.allowed(one, fleet.ready, fleet.ready, 0.0)
    late = request(9, 4000, slo=slo(0.46, 0.15), service_class="code")
    for _ in range(20):
        once.allowed(replace(late, dispatches=1), fleet.ready, fleet.ready, 1.0)
        twice.allowed(late, fleet.ready, fleet.ready, 1.0)
    assert once._shadow.late_shares().max() == 0.0
    assert twice._shadow.late_shares().max() > 0.9


def test_a_class_that_nothing_could_serve_in_time_does_not_hide_the_others() -> None:
    splits, fleet = Splits(), busy(8)
    for second in range(60):
        hopeless = request(9, 4000, slo=slo(0.01, 0.2), arrived_s=float(second), service_class="hopeless")
        splits.allowed(hopeless, fleet.ready, fleet.ready, float(second))
        allowed = play(splits, fleet, 1, float(second))
    assert splits._shadow.late_shares().min() < 1.0
    assert len(allowed) == splits.chosen.strict < 8


# What outlives what.


def test_members_stay_as_far_as_they_can() -> None:
    splits, fleet = Splits(), busy(8)
    before = set(play(splits, fleet, 60))
    for strict in (5, 2, 7, 1):
        splits.chosen = Split(splits.chosen.below_s, strict)
        splits._strict = splits._members()
        after = set(splits._strict)
        assert len(after) == strict
        assert before <= after or after <= before
        before = after


def test_the_first_members_are_those_that_are_bound_for_longest() -> None:
    splits, fleet = Splits(), busy(4)
    place(request(1, 300, 4000, slo=slo(1.0, 0.05)), fleet.ready[2])
    play(splits, fleet, 1)
    splits.chosen = Split(0.06, 1)
    assert splits._members() == (fleet.ready[2],)


@pytest.mark.parametrize("instances", [4, 16])
def test_another_fleet_keeps_the_share_of_strict_instances(instances: int) -> None:
    splits = Splits()
    play(splits, busy(8), 60)
    before = splits.chosen
    fleet = busy(instances)
    splits.allowed(chat(at_s=60.0), fleet.ready, fleet.ready, 60.0)
    assert splits.chosen.below_s == before.below_s
    assert abs(splits.chosen.strict / instances - before.strict / 8) <= 1 / 8
    assert set(splits._strict) <= set(fleet.ready)


def test_an_instance_that_is_replaced_leaves_the_group() -> None:
    splits, fleet = Splits(), busy(8)
    gone = play(splits, fleet, 60)[0]
    fleet.ready = [*(each for each in fleet.ready if each is not gone), *cluster(10, A100_14B).ready[9:]]
    allowed = splits.allowed(chat(at_s=61.0), fleet.ready, fleet.ready, 61.0)
    assert gone not in allowed
    assert len(allowed) == splits.chosen.strict


@given(
    st.lists(st.sampled_from([0.011, 0.02, 0.05, 0.0884, 0.125, 0.3, None]), min_size=1, max_size=30),
    st.integers(1, 12),
)
def test_whatever_paces_there_are_everyone_may_go_somewhere(paces: list[float | None], instances: int) -> None:
    splits, fleet = Splits(), cluster(instances, A100_14B)
    for number, pace_s in enumerate(paces):
        now = LOOK_S / 2 * number
        one = request(number, 2000, slo=slo(0.5, pace_s), arrived_s=now)
        allowed = splits.allowed(one, fleet.ready, fleet.ready, now)
        assert 0 < len(allowed) <= instances
        place(one, allowed[0])
        assert 1 <= splits.chosen.strict <= instances
    sizes = {split.strict for split in splits._shadow.splits}
    assert max(sizes) == instances
    assert min(sizes) >= 1


def test_made_up_paces_ask_for_no_more_splits_than_real_ones() -> None:
    splits, fleet = Splits(), cluster(8, A100_14B)
    for power in range(0, 300, 3):
        one = request(power, 2000, slo=slo(0.5, 10.0**-power))
        splits.allowed(one, fleet.ready, fleet.ready, 0.0)
    octaves = math.log2(0.2 / A100_14B.decode_base_s)
    assert len(splits._shadow.splits) <= 4 * (octaves + 1) * 7 + 1


# What decodes leave.


def test_speed_is_what_fixed_parts_and_tokens_leave() -> None:
    fleet, flow = busy(2), TokenFlow()
    assert flow.speed(A100_14B, 0.0, math.inf, 2) == EFFICIENCY, "nothing is known yet"
    flow.measure(fleet.ready, 0.0)
    for each in fleet.ready:
        each.advance(200)
    flow.measure(fleet.ready, 10.0)
    contexts = sum(each.context_tokens for each in fleet.ready)
    per_s = 20 * (2 * 2 * A100_14B.decode_seq_s + contexts * A100_14B.context_token_s)
    assert flow.speed(A100_14B, 0.0, math.inf, 2) == pytest.approx(
        EFFICIENCY - A100_14B.decode_base_s / (0.97 * 0.05) - per_s / 2
    )
    half = EFFICIENCY - A100_14B.decode_base_s / (0.97 * 0.15) - per_s / 2 / 2
    assert flow.speed(A100_14B, 0.06, math.inf, 2) == pytest.approx(half), "half of the tokens are of the loose pace"
    assert flow.speed(A100_14B, 0.2, math.inf, 2) == EFFICIENCY


def test_a_pace_that_has_gone_is_forgotten() -> None:
    fleet, flow = busy(1), TokenFlow()
    for second in range(200):
        flow.measure(fleet.ready, 5.0 * second)
        if not second:
            fleet.ready[0].advance(100)
    assert flow.speed(A100_14B, 0.0, math.inf, 1) == EFFICIENCY
