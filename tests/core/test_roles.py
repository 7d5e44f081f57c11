"""By how much demand could grow, by hand; and when roles change for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from helpers.builders import SIMPLE, cluster, decode, request, slo
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Why
from hyperflexis.core.demand import Demand
from hyperflexis.core.instance import Role
from hyperflexis.core.roles import GrowthPlanner, Means, PlannerRules, growth

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED
RULES = PlannerRules(prefill_share=0.9, together_share=0.8, decode_share=0.96, kv_share=0.9, way_share=0.4)
MEANS = Means(instances=4, fixed_s=0.018, pace_s=0.05, kv_tokens=1e6, kv_bytes_s=1e9, kv_token_bytes=1e5)
"""Fixed parts take .36 of a decoding instance's time, and leave .6 for decodes."""


def test_apart_decodes_bound_it_or_prefills_do() -> None:
    assert growth(Demand(0.1, 1.2), MEANS, 2, RULES) == pytest.approx(1.0)
    assert growth(Demand(1.8, 1e-6), MEANS, 3, RULES) == pytest.approx((2.7 + 0.8 * 0.6) / 1.8)


def test_others_prefill_in_what_decodes_leave_over() -> None:
    assert growth(Demand(1.9, 0.6), MEANS, 1, RULES) == pytest.approx((0.9 + 0.8 * 1.8) / (1.9 + 0.8 * 0.6))
    x = growth(Demand(1.9, 0.6), MEANS, 1, RULES)
    assert x * 1.9 == pytest.approx(0.9 + 0.8 * (1.8 - x * 0.6))


def test_strict_paces_have_instances_of_their_own_where_nobody_prefills_for_others() -> None:
    """Half of the work is promised twice the pace."""
    mean = Demand(1.9, 0.6, fixed_s=2.5 * 0.27)
    assert growth(mean, MEANS, 0, RULES) == pytest.approx(0.8 * 4 * 0.69 / (1.9 + 0.8 * 0.6))
    assert growth(mean, MEANS, 1, RULES) == growth(Demand(1.9, 0.6), MEANS, 1, RULES)


def test_blocks_bound_how_many_share_a_step() -> None:
    """100 million steps over tokens a second, of which .9 million fit into one of .018 s: 2 s more."""
    found = growth(Demand(0.1, 1.2, context_steps=1e8), MEANS, 2, RULES)
    assert found == pytest.approx(2 * 0.96 / (1.2 + 2.0))
    assert growth(Demand(0.1, 1.2, context_steps=1e6), MEANS, 2, RULES) == pytest.approx(1.0)


def test_what_decodes_now_has_to_find_blocks() -> None:
    """1.8 million tokens at two others."""
    assert growth(Demand(0.1, 0.6), replace(MEANS, held_tokens=1.8e6), 2, RULES) == pytest.approx(1.0)
    assert growth(Demand(0.1, 1.2), replace(MEANS, held_tokens=1e3), 2, RULES) == pytest.approx(1.0)


def test_ways_into_the_decoding_instances_bound_what_moves() -> None:
    """.4 x 2 x 1 GB/s, of which each of 8000 tokens per second takes 100 KB."""
    assert growth(Demand(0.3, 0.3, prompt_tokens=8000), MEANS, 2, RULES) == pytest.approx(1.0)
    free = growth(Demand(1.9, 0.6), MEANS, 0, RULES)
    assert growth(Demand(1.9, 0.6, prompt_tokens=8e6), MEANS, 0, RULES) == free, "nothing moves"
    share = 0.9 / (growth(Demand(1.9, 0.6), MEANS, 1, RULES) * 1.9)
    assert growth(Demand(1.9, 0.6, prompt_tokens=80_000), MEANS, 1, RULES) == pytest.approx(1.2e9 / (share * 8e9))


def test_steps_that_are_all_fixed_part_leave_no_room() -> None:
    assert growth(Demand(0.95, 0.6), replace(MEANS, fixed_s=1.0), 2, RULES) == 0.0


DEMANDS = st.builds(Demand, *[st.floats(1e-3, 10.0)] * 2, st.floats(0, 1e8), st.just(0.0), st.floats(0, 10.0))


@given(DEMANDS, st.integers(0, 3), st.floats(1.1, 5.0))
def test_more_demand_leaves_less_room_in_proportion(demand: Demand, prefilling: int, factor: float) -> None:
    more = Demand(*(factor * term for term in demand))
    room = growth(demand, MEANS, prefilling, RULES)
    assert growth(more, MEANS, prefilling, RULES) == pytest.approx(room / factor)


@given(DEMANDS, st.floats(0, 1e5), st.floats(0, 4e6), st.integers(0, 3))
def test_more_instances_never_leave_less_room(demand: Demand, tokens: float, held: float, prefilling: int) -> None:
    demand, few = demand._replace(prompt_tokens=tokens), replace(MEANS, held_tokens=held)
    more = replace(few, instances=5)
    assert growth(demand, more, prefilling, RULES) >= growth(demand, few, prefilling, RULES) * (1 - 1e-9)


# Over time.

QUICK = PlannerRules(near=1.3, gain=1.05, error=0.5, dwell_s=1.0)
Change = tuple[float, int, Role]
Load = tuple[int, int, int]
"""Requests per second, tokens of prompts, tokens of answers."""
PROMPTS, ANSWERS, LIGHT = (40, 75, 10), (40, 10, 75), (40, 8, 8)
PACE = slo(tpot_s=0.2)
SLOW = replace(SIMPLE, decode_base_s=0.08)
"""Fixed parts take .41 of a decoding instance's time."""


def fleet(*roles: Role) -> Cluster:
    made = cluster(len(roles), SLOW)
    for instance, role in zip(made.ready, roles, strict=True):
        instance.role = role
    made.note_ready()
    return made


def live(planner: GrowthPlanner, among: Cluster, load: Load, since_s: float, seconds: float) -> list[Change]:
    """Let so much arrive, and be answered at once; returns what changed."""
    found: list[Change] = []
    rate, prompt_tokens, answer_tokens = load
    for tick in range(round(seconds / 0.2)):
        now = since_s + 0.2 * tick
        for change in planner.plan(among, now):
            assert change.reason.why is Why.BALANCES
            assert change.instance.role is not change.role
            change.instance.role, change.instance.role_since_s = change.role, now
            among.note_ready()
            found.append((now, change.instance.id, change.role))
        for _ in range(round(0.2 * rate)):
            one = request(prompt_tokens=prompt_tokens, tokens_before=answer_tokens, slo=PACE)
            among.observe_arrival(one)
            among.observe_length(one)
    return found


def prefilling(among: Cluster) -> int:
    return sum(instance.role is P for instance in among.ready)


def test_roles_follow_demand() -> None:
    """Three seconds of prefill a second want instances that only prefill, and soon; as many of decodes want none."""
    planner, made = GrowthPlanner(QUICK), fleet(M, M, M, M)
    changes = live(planner, made, PROMPTS, 0.0, 20.0)
    assert {role for _, _, role in changes} == {P}
    assert 1.0 <= changes[0][0] < 5.0, "once enough is known"
    assert prefilling(made) >= 2
    changes = live(planner, made, ANSWERS, 20.0, 20.0)
    assert {role for _, _, role in changes} == {M}
    assert changes[0][0] < 20.0 + 6.0
    assert prefilling(made) <= 1
    live(planner, made, ANSWERS, 40.0, 60.0)
    assert live(planner, made, ANSWERS, 100.0, 20.0) == []


@pytest.mark.parametrize("load", [(0, 1, 1), LIGHT, (1, 500, 500)])
@pytest.mark.parametrize("roles", [(M, M, M, M), (P, M, M, M)])
def test_nothing_changes_without_need(load: Load, roles: tuple[Role, ...]) -> None:
    assert live(GrowthPlanner(QUICK), fleet(*roles), load, 0.0, 20.0) == []


@pytest.mark.parametrize("reluctant", [replace(QUICK, gain=3.0), replace(QUICK, error=30.0)])
def test_nothing_changes_for_little_more_room_or_what_is_hardly_known(reluctant: PlannerRules) -> None:
    assert live(GrowthPlanner(reluctant), fleet(M, M, M, M), PROMPTS, 0.0, 20.0) == []


def test_single_instance_stays_mixed() -> None:
    assert live(GrowthPlanner(QUICK), fleet(M), PROMPTS, 0.0, 20.0) == []


def test_instances_that_only_decode_become_mixed() -> None:
    made = fleet(P, D, D)
    changes = GrowthPlanner(QUICK).plan(made, 0.0)
    assert [(change.instance.id, change.role) for change in changes] == [(1, M), (2, M)]


def test_fleet_of_which_all_prefill_is_mended() -> None:
    """Whoever decoded has died."""
    made = fleet(P, P)
    changes = live(GrowthPlanner(QUICK), made, LIGHT, 0.0, 20.0)
    assert changes[0][2] is M
    assert prefilling(made) < 2


def test_who_has_the_fewest_decodes_prefills_and_who_has_the_most_decodes() -> None:
    made = fleet(M, M, M, M)
    for number, each in enumerate([0, 0, 0, 1, 2, 2]):
        decode(request(number), made.ready[each])
    changes = live(GrowthPlanner(QUICK), made, PROMPTS, 0.0, 20.0)
    assert [number for _, number, _ in changes][:2] == [3, 1]
    made = fleet(P, P, P, M)
    decode(request(9), made.ready[1])
    changes = live(GrowthPlanner(QUICK), made, ANSWERS, 0.0, 20.0)
    assert changes[0][1:] == (1, M)


def test_requests_that_stand_still_hold_blocks_elsewhere() -> None:
    """What has been prefilled and finds no instance to decode on counts for more of these."""
    planner, made, load = GrowthPlanner(QUICK), fleet(P, P, P, M), (40, 75, 1)
    live(planner, made, load, 0.0, 20.0)
    assert live(planner, made, load, 20.0, 5.0) == []
    who = next(each for each in made.ready if each.role is P)
    who.standing = {number: request(number, prompt_tokens=2000, max_tokens=2000, slo=PACE) for number in range(8)}
    assert live(planner, made, load, 25.0, 5.0)[0][2] is M


LOADS = st.tuples(st.sampled_from([0, 5, 40, 80]), st.integers(1, 150), st.integers(1, 150))


@settings(max_examples=40)
@given(st.lists(st.sampled_from([P, M, M]), min_size=2, max_size=5), st.lists(LOADS, min_size=1, max_size=5))
def test_somebody_always_decodes_and_nobody_flaps(roles: list[Role], loads: list[Load]) -> None:
    planner, made = GrowthPlanner(QUICK), fleet(*roles)
    began_whole = prefilling(made) == len(roles)
    changed_s: dict[int, float] = {}
    for period, load in enumerate(loads):
        for now, number, role in live(planner, made, load, 12.0 * period, 12.0):
            event(role.value)
            assert now - changed_s.get(number, -1e9) >= QUICK.dwell_s
            changed_s[number] = now
        assert prefilling(made) < len(roles) or (began_whole and not changed_s)
