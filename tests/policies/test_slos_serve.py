"""SLOs-Serve: admission by a test of feasibility, at the router and in the instance."""

from __future__ import annotations

from helpers.builders import cluster, decode, place, request, scheduler, sequence, slo
from hyperflexis.core.commands import Why
from hyperflexis.policies import create
from policies.choosing import chosen, placement


def test_a_declined_request_goes_to_the_next_instance() -> None:
    fleet = cluster(3)
    place(request(1, prompt_tokens=900, slo=slo(1.0, 1.0)), fleet.ready[0])
    placed = placement("slos_serve", request(9, prompt_tokens=300, slo=slo(1.0, 1.0)), fleet)
    assert placed.instance.id == 1
    assert placed.reason.why is Why.FEASIBLE


def test_instances_are_asked_in_turn() -> None:
    dispatcher, fleet = create("slos_serve", 512).dispatcher, cluster(3)
    asked = [dispatcher.choose(request(n, slo=slo(1.0)), fleet.ready, fleet, 0.0).instance.id for n in range(4)]
    assert asked == [0, 1, 2, 0]


def test_what_was_admitted_is_not_given_up_for_a_newcomer() -> None:
    """The newcomer, being more urgent, would be in time; the one planned behind it would not."""
    fleet = cluster(2)
    place(request(1, prompt_tokens=900, slo=slo(1.0, 1.0)), fleet.ready[0])
    place(request(2, prompt_tokens=2900, slo=slo(3.2, 1.0)), fleet.ready[1])
    urgent = request(9, prompt_tokens=200, slo=slo(0.5, 1.0))
    assert chosen("slos_serve", urgent, fleet) == 1


def test_what_fits_nowhere_is_best_effort_at_the_least_loaded_and_binds_nobody() -> None:
    dispatcher, fleet = create("slos_serve", 512).dispatcher, cluster(2)
    place(request(1, prompt_tokens=900, slo=slo(1.0, 1.0)), fleet.ready[0])
    place(request(2, prompt_tokens=800, slo=slo(1.0, 1.0)), fleet.ready[1])
    hopeless = request(3, prompt_tokens=700, slo=slo(1.0, 1.0))
    placed = dispatcher.choose(hopeless, fleet.ready, fleet, 0.0)
    assert (placed.instance.id, placed.reason.why) == (1, Why.BEST_EFFORT)
    place(hopeless, placed.instance)
    small = dispatcher.choose(request(4, prompt_tokens=100, slo=slo(1.0, 1.0)), fleet.ready, fleet, 0.0)
    assert (small.instance.id, small.reason.why) == (1, Why.FEASIBLE)


def test_pace_at_the_peak_is_part_of_the_test() -> None:
    fleet = cluster(2)
    for number in range(45):
        decode(request(number), fleet.ready[0])  # A step with one more takes 56 ms.
    assert chosen("slos_serve", request(90, slo=slo(5.0, 0.05)), fleet) == 1


def test_the_instance_tests_too_and_keeps_its_word() -> None:
    engine = scheduler(order="admission", sizing="fixed", prefill_tokens_max=10, seqs_max=4, block_tokens=16)
    engine.add(sequence(1, 100, slo=slo(0.15)))
    assert [chunk.sequence.id for chunk in engine.plan(0.0).prefills] == [1]
    # More urgent, but 1 would be late by it: best effort, even though 2 has less work.
    engine.add(sequence(2, 60, slo=slo(0.1)))
    engine.add(sequence(3, 20, slo=slo(0.1)))
    plan = engine.plan(0.0)
    assert [chunk.sequence.id for chunk in plan.prefills] == [3]
    engine.check()


def test_best_effort_runs_when_nothing_is_planned() -> None:
    engine = scheduler(order="admission", sizing="fixed", prefill_tokens_max=10)
    engine.add(sequence(1, 100, slo=slo(0.01)))
    assert [chunk.sequence.id for chunk in engine.plan(0.0).prefills] == [1]
