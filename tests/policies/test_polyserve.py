"""PolyServe: tiers, packing, promotion, credit."""

from __future__ import annotations

from helpers.builders import cluster, decode, place, request, scheduler, sequence, slo
from hyperflexis.core.commands import Why
from hyperflexis.core.request import Request
from hyperflexis.policies import create
from hyperflexis.policies.polyserve import TierLoads, Tiers, sizes
from policies.choosing import chosen, placement

STRICT, LOOSE = slo(5.0, 0.05), slo(5.0, 0.2)


def strict(number: int, **fields: int) -> Request:
    return request(number, slo=STRICT, **fields)


def loose(number: int, **fields: int) -> Request:
    return request(number, slo=LOOSE, **fields)


def test_tiers_get_instances_in_proportion_to_their_work() -> None:
    assert sizes({0.05: 0.25, 0.2: 0.75}, 4) == {0.05: 1, 0.2: 3}
    assert sizes({0.05: 0.01, 0.2: 0.99}, 4) == {0.05: 1, 0.2: 3}
    assert sizes({0.05: 0.5, 0.2: 0.5}, 8) == {0.05: 4, 0.2: 4}
    assert sizes({0.05: 0.2, 0.1: 0.5, 0.2: 0.3}, 2) == {0.1: 1, 0.2: 1}


def test_work_of_a_tier_is_forgotten() -> None:
    loads = TierLoads()
    loads.add(0.05, 3.0, 0.0)
    loads.add(0.2, 1.0, 0.0)
    assert loads.shares() == {0.05: 0.75, 0.2: 0.25}
    loads.add(0.2, 1.0, 1000.0)
    assert loads.shares() == {0.2: 1.0}


def test_tiers_do_not_share_instances() -> None:
    dispatcher, fleet = Tiers("equal", packs=True, promotes=False), cluster(4)
    where: dict[float | None, set[int]] = {0.05: set(), 0.2: set()}
    for number in range(40):
        newcomer = (strict if number % 2 else loose)(number)
        instance = dispatcher.choose(newcomer, fleet.ready, fleet, number * 1.0).instance
        place(newcomer, instance)
        if number >= 10:
            where[newcomer.slo.tpot_s].add(instance.id)
    assert where[0.05]
    assert where[0.2]
    assert not where[0.05] & where[0.2]


def test_fullest_that_can_takes_it() -> None:
    fleet = cluster(3)
    decode(strict(1), fleet.ready[1])
    for number in range(10, 60):
        decode(strict(number), fleet.ready[2])  # A step with one more takes 61 ms.
    assert chosen("polyserve", strict(90), fleet) == 1
    assert chosen("polyserve:packs=off", strict(90), fleet) == 0


def test_first_and_second_token_have_to_be_in_time() -> None:
    fleet = cluster(2)
    place(strict(1, prompt_tokens=4990), fleet.ready[0])
    assert chosen("polyserve", strict(90, prompt_tokens=100), fleet) == 1


def test_looser_request_is_promoted_where_its_own_tier_is_full() -> None:
    for promotes, expected in ((True, Why.FEASIBLE), (False, Why.LEAST_HARM)):
        dispatcher, fleet = Tiers("equal", packs=True, promotes=promotes), cluster(2)
        one = dispatcher.choose(strict(1), fleet.ready, fleet, 0.0).instance
        other = dispatcher.choose(loose(2), fleet.ready, fleet, 0.0).instance
        assert one is not other
        place(loose(3, prompt_tokens=6000), other)
        placed = dispatcher.choose(loose(4), fleet.ready, fleet, 0.0)
        assert placed.instance is (one if promotes else other)
        assert placed.reason.why is expected


def test_strict_request_is_never_sent_to_a_looser_tier() -> None:
    dispatcher, fleet = Tiers("equal", packs=True, promotes=True), cluster(2)
    one = dispatcher.choose(strict(1), fleet.ready, fleet, 0.0).instance
    dispatcher.choose(loose(2), fleet.ready, fleet, 0.0)
    place(strict(3, prompt_tokens=6000), one)
    placed = dispatcher.choose(strict(4), fleet.ready, fleet, 0.0)
    assert placed.instance is one
    assert placed.reason.why is Why.LEAST_HARM


def test_more_tiers_than_instances_share_the_next_stricter_one() -> None:
    fleet = cluster(1)
    assert chosen("polyserve", loose(1), fleet) == 0
    dispatcher = Tiers("load", packs=True, promotes=True)
    for number, pace_s in enumerate((0.02, 0.05, 0.1)):
        assert dispatcher.choose(request(number, slo=slo(5.0, pace_s)), fleet.ready, fleet, 0.0).instance.id == 0


def test_instances_may_come_and_go() -> None:
    dispatcher, fleet = Tiers("load", packs=True, promotes=True), cluster(4)
    for number, few in enumerate((fleet.ready, fleet.ready[1:], fleet.ready[2:3], fleet.ready)):
        for newcomer in (strict(2 * number), loose(2 * number + 1)):
            assert dispatcher.choose(newcomer, few, fleet, float(number)).instance in few


def test_engine_spends_credit_as_published() -> None:
    rules = create("polyserve", 2048).rules
    assert (rules.order, rules.sizing, rules.credit_spend_max) == ("deadline", "slack", 1.0)
    assert create("polyserve:late_last=on", 2048).rules.order == "timely_deadline"
    assert placement("polyserve", strict(1), cluster(1)).reason.why is Why.FEASIBLE


def test_engine_can_put_late_work_last() -> None:
    for order, expected in (("deadline", [3, 1, 2]), ("timely_deadline", [1, 2, 3])):
        engine = scheduler(order=order, sizing="fixed", prefill_tokens_max=100)
        engine.add(sequence(2, 10, slo=slo(0.6)))
        engine.add(sequence(1, 20, slo=slo(0.5)))
        engine.add(sequence(3, 50, slo=slo(0.03)))  # Cannot be in time even alone.
        assert [chunk.sequence.id for chunk in engine.plan(0.0).prefills] == expected
        engine.check()
