"""By how much demand could grow, by hand; and when roles change for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from helpers.builders import cluster
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Why
from hyperflexis.core.demand import Demand
from hyperflexis.core.instance import Role
from hyperflexis.core.roles import KNOWN_S, GrowthPlanner, Means, PlannerRules, growth

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED
RULES = PlannerRules(
    prefill_share=0.95, decode_share=0.92, together_share=0.7, kv_share=0.9, way_share=0.4, near=1.3, gain=1.12
)
MEANS = Means(instances=4, fixed_share=0.32, kv_tokens=1e6, kv_bytes_s=1e9, kv_token_bytes=1e5)
"""A decoding instance has .6 of its time for decodes."""


def test_apart_each_side_bounds_what_it_does() -> None:
    assert growth(Demand(0.95, 0.6), MEANS, 2, RULES) == pytest.approx(2.0)
    assert growth(Demand(0.95, 1.2), MEANS, 2, RULES) == pytest.approx(1.0), "decodes"
    assert growth(Demand(0.475, 1.2), MEANS, 2, RULES) == pytest.approx(1.0), "not more with less prefill"


def test_together_others_do_what_those_that_prefill_cannot() -> None:
    assert growth(Demand(1.9, 0.6), MEANS, 1, RULES) == pytest.approx((0.95 + 0.7 * 3 * 0.6) / 2.5)
    assert growth(Demand(1.9, 0.6), MEANS, 0, RULES) == pytest.approx(0.7 * 4 * 0.6 / 2.5)


def test_blocks_bound_it() -> None:
    """Two instances have .9 x 2 million tokens."""
    assert growth(Demand(0.95, 0.6, kv_token_s=1.8e6), MEANS, 2, RULES) == pytest.approx(1.0)
    assert growth(Demand(0.95, 0.6, kv_token_s=1e3), MEANS, 2, RULES) == pytest.approx(2.0)


def test_ways_into_the_decoding_instances_bound_what_moves() -> None:
    """.4 x 2 x 1 GB/s, of which each of 8000 tokens per second takes 100 KB."""
    assert growth(Demand(0.95, 0.6, prompt_tokens=8000), MEANS, 2, RULES) == pytest.approx(1.0)
    assert growth(Demand(0.95, 0.6, prompt_tokens=8000), MEANS, 0, RULES) == pytest.approx(0.7 * 2.4 / 1.55), (
        "none does"
    )
    share = 0.95 / (0.884 * 1.9)
    assert growth(Demand(1.9, 0.6, prompt_tokens=80_000), MEANS, 1, RULES) == pytest.approx(1.2e9 / (share * 8e9))


def test_steps_that_are_all_fixed_part_leave_no_room() -> None:
    slow = replace(MEANS, fixed_share=1.0)
    assert growth(Demand(0.95, 0.6), slow, 2, RULES) == 0.0


@given(
    st.builds(Demand, *[st.floats(1e-3, 10.0)] * 2, st.just(0.0), st.just(0.0)),
    st.integers(0, 3),
    st.floats(1.1, 5.0),
)
def test_more_demand_leaves_less_room_in_proportion(demand: Demand, prefilling: int, factor: float) -> None:
    more = Demand(*(factor * term for term in demand))
    room = growth(demand, MEANS, prefilling, RULES)
    assert growth(more, MEANS, prefilling, RULES) == pytest.approx(room / factor)


# Over time.

QUICK = PlannerRules(near=1.3, gain=1.12, dwell_s=1.0, windows_s=(6.0, 8.0))
Change = tuple[float, int, Role]


def fleet(*roles: Role) -> Cluster:
    made = cluster(len(roles))
    for instance, role in zip(made.ready, roles, strict=True):
        instance.role = role
    made.note_ready()
    return made


def live(planner: GrowthPlanner, among: Cluster, rate: Demand, since_s: float, seconds: float) -> list[Change]:
    """Let so much arrive per second; returns what changed."""
    found: list[Change] = []
    for tick in range(round(seconds / 0.2)):
        now = since_s + 0.2 * tick
        changes = planner.plan(among, now)
        assert len(changes) <= 1
        for change in changes:
            assert change.reason.why is Why.BALANCES
            assert change.instance.role is not change.role
            change.instance.role, change.instance.role_since_s = change.role, now
            among.note_ready()
            found.append((now, change.instance.id, change.role))
        among.demand = among.demand.plus(Demand(*(0.2 * term for term in rate)))
    return found


def prefilling(among: Cluster) -> int:
    return sum(instance.role is P for instance in among.ready)


def test_roles_follow_demand() -> None:
    """Fixed parts take 5 % here: two instances prefill as long as that is most, and then one."""
    planner, made = GrowthPlanner(QUICK), fleet(M, M, M, M)
    changes = live(planner, made, Demand(3.0, 0.5), 0.0, 20.0)
    assert [role for _, _, role in changes] == [P, P]
    assert changes[0][0] >= KNOWN_S, "not before anything is known"
    changes = live(planner, made, Demand(0.5, 3.0), 20.0, 20.0)
    assert changes[-1][2] is M
    assert changes[-1][0] < 20.0 + 10.0, "once the windows have passed"
    assert prefilling(made) == 1
    assert live(planner, made, Demand(0.5, 3.0), 40.0, 20.0) == []


@pytest.mark.parametrize("rate", [Demand(), Demand(0.3, 0.3), Demand(0.9, 0.1)])
@pytest.mark.parametrize("roles", [(M, M, M, M), (P, M, M, M)])
def test_nothing_changes_without_need(rate: Demand, roles: tuple[Role, ...]) -> None:
    assert live(GrowthPlanner(QUICK), fleet(*roles), rate, 0.0, 20.0) == []


def test_nothing_changes_for_little_more_room() -> None:
    reluctant = PlannerRules(near=1.3, gain=3.0, dwell_s=1.0, windows_s=(6.0, 8.0))
    assert live(GrowthPlanner(reluctant), fleet(M, M, M, M), Demand(3.0, 0.5), 0.0, 20.0) == []


def test_single_instance_stays_mixed() -> None:
    assert live(GrowthPlanner(QUICK), fleet(M), Demand(9.0, 0.1), 0.0, 20.0) == []


def test_instances_that_only_decode_become_mixed() -> None:
    made = fleet(P, D, D)
    changes = GrowthPlanner(QUICK).plan(made, 0.0)
    assert [(change.instance.id, change.role) for change in changes] == [(1, M), (2, M)]


def test_fleet_of_which_all_prefill_is_mended() -> None:
    """Whoever decoded has died."""
    made = fleet(P, P)
    changes = live(GrowthPlanner(QUICK), made, Demand(1.0, 0.5), 0.0, 20.0)
    assert changes[0][2] is M
    assert prefilling(made) < 2


RATES = st.builds(Demand, st.floats(0, 6), st.floats(0, 6), st.floats(0, 40_000), st.floats(0, 1e5))


@settings(max_examples=40)
@given(st.lists(st.sampled_from([P, M, M]), min_size=2, max_size=5), st.lists(RATES, min_size=1, max_size=5))
def test_somebody_always_decodes_and_nobody_flaps(roles: list[Role], rates: list[Demand]) -> None:
    planner, made = GrowthPlanner(QUICK), fleet(*roles)
    began_whole = prefilling(made) == len(roles)
    changed_s: dict[int, float] = {}
    for period, rate in enumerate(rates):
        for now, number, role in live(planner, made, rate, 12.0 * period, 12.0):
            event(role.value)
            assert now - changed_s.get(number, -1e9) >= QUICK.dwell_s
            changed_s[number] = now
        assert prefilling(made) < len(roles) or (began_whole and not changed_s)
