"""What would become of a request on an instance, whether that keeps every promise, and which instance takes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.builders import H100_8B, SIMPLE, cluster, decode, instance, place, request, slo
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Why
from hyperflexis.core.dispatch import (
    FEW,
    INDIFFERENCE,
    Estimate,
    Newcomer,
    Placement,
    SloDispatcher,
    estimate,
    is_feasible,
    score,
)
from hyperflexis.core.instance import Instance, Role
from hyperflexis.core.latency import StepShape
from hyperflexis.core.prefix import block_hashes
from hyperflexis.core.request import Request
from hyperflexis.core.slo import Slo


def look(one: Request, on: Instance, now: float = 0.0) -> Estimate:
    return estimate(one, on, one.max_tokens, now)


def beside(*instances: Instance) -> Cluster:
    """A cluster in which these are ready, and nothing is known of lengths."""
    made = Cluster()
    made.ready = list(instances)
    made.loads.reset(instances)
    return made


def choose(one: Request, *instances: Instance, now: float = 0.0) -> Placement:
    return SloDispatcher().choose(one, instances, beside(*instances), now)


# Estimates.


def test_idle_instance_is_base_and_own_prefill() -> None:
    seen = look(request(prompt_tokens=20, max_tokens=5), instance())
    assert seen.ttft_s == pytest.approx(0.010 + 0.020)
    assert seen.step_s == seen.peak_step_s == pytest.approx(0.011)
    assert seen.strictest_pace_s == 0.2
    assert seen.has_blocks


def test_time_since_arrival_counts() -> None:
    seen = look(request(prompt_tokens=20, arrived_s=1.0), instance(), now=3.0)
    assert seen.ttft_s == pytest.approx(2.030)


def test_rest_of_the_running_step_counts_until_it_is_over() -> None:
    busy = instance()
    decode(request(1), busy)
    busy.observe_step(StepShape(0, 0, 1, 11), 0.011, now=1.0)
    other = request(2, prompt_tokens=20)
    later_s = look(other, busy, now=1.014).ttft_s - look(other, busy, now=1.004).ttft_s
    assert later_s == pytest.approx(0.010 + 0.008 - 0.007), "a step like it follows, of which nothing is told yet"


def test_decodes_stretch_a_prefill() -> None:
    """81 tokens fit beside one decode at 97 % of 100 ms, of which .95 is used; every such step pays 11 ms besides."""
    busy = instance()
    decode(request(1, slo=slo(tpot_s=0.1)), busy)
    seen = look(request(2, prompt_tokens=20), busy)
    assert seen.ttft_s == pytest.approx(0.010 + (0.011 + 0.081) / 0.081 * 0.020)
    assert seen.strictest_pace_s == 0.1


def test_only_work_ahead_in_order_delays() -> None:
    busy = instance()
    place(request(1, prompt_tokens=30, slo=slo(ttft_s=1.0)), busy)
    place(request(2, prompt_tokens=50, slo=slo(ttft_s=9.0)), busy)
    assert look(request(3, prompt_tokens=20, slo=slo(ttft_s=2.0)), busy).ttft_s == pytest.approx(0.010 + 0.050)
    assert look(request(3, prompt_tokens=20, slo=slo(ttft_s=0.5)), busy).ttft_s == pytest.approx(0.010 + 0.020)
    assert look(request(3, prompt_tokens=20), busy).ttft_s == pytest.approx(0.010 + 0.100)


def test_prefill_already_computed_no_longer_delays() -> None:
    busy = instance()
    place(request(1, prompt_tokens=30, slo=slo(ttft_s=1.0)), busy)
    busy.observe_step(StepShape(25, 625), 0.035, now=0.0)
    seen = look(request(2, prompt_tokens=20), busy, now=1.0)
    assert seen.ttft_s == pytest.approx(1.0 + 0.010 + 0.005 + 0.020)


def test_prefix_hit_lowers_predicted_ttft() -> None:
    warm, cold = instance(0, block_tokens=4), instance(1, block_tokens=4)
    hashes = tuple(block_hashes(range(40), 4))
    place(request(1, prompt_tokens=40, block_hashes=hashes), warm)
    place(request(2, prompt_tokens=40), cold)
    asked = request(3, prompt_tokens=40, block_hashes=hashes, slo=slo(ttft_s=9.0), priority=1)
    assert look(asked, cold).ttft_s == pytest.approx(0.050)
    assert look(asked, warm).ttft_s == pytest.approx(0.014)
    assert choose(asked, warm, cold).instance is warm


def test_peak_is_everyone_at_expected_length() -> None:
    busy = instance(model=H100_8B, block_tokens=16, blocks=20)
    decode(request(1, prompt_tokens=100, max_tokens=50), busy)
    place(request(2, prompt_tokens=60, max_tokens=40), busy)
    seen = look(request(3, prompt_tokens=30, max_tokens=20), busy)
    assert seen.peak_step_s == pytest.approx(H100_8B.decode_step_s(3, 150 + 100 + 50))
    assert not seen.has_blocks, "10 + 7 + 4 blocks are more than 20"


def test_expected_length_is_what_blocks_are_planned_for() -> None:
    small = instance(blocks=4, block_tokens=4)
    one = request(prompt_tokens=8, max_tokens=100)
    assert not look(one, small).has_blocks
    assert estimate(one, small, 8, 0.0).has_blocks


def test_resumed_request_prefills_what_it_has_and_plans_for_what_it_becomes() -> None:
    resumed = request(prompt_tokens=20, max_tokens=50, tokens_before=30)
    seen = estimate(resumed, instance(blocks=3, block_tokens=16), 31, 0.0)
    assert not seen.has_blocks
    assert seen.ttft_s == pytest.approx(0.010 + 0.050)
    assert seen.peak_step_s == pytest.approx(0.011)


def test_learnt_slowness_lengthens_estimates() -> None:
    slow, fast = instance(0), instance(1)
    for _ in range(100):
        for shape in (StepShape(10, 100), StepShape(0, 0, 2, 20)):
            slow.latency.observe(shape, 1.5 * SIMPLE.step_s(shape))
    asked = request(prompt_tokens=100)
    assert look(asked, slow).ttft_s == pytest.approx(0.010 + 1.5 * 0.100, rel=1e-4)
    assert look(asked, slow).step_s == pytest.approx(1.5 * look(asked, fast).step_s, rel=1e-4)


def test_learnt_slowness_of_mixed_steps_lengthens_prefills_beside_decodes() -> None:
    busy = instance()
    decode(request(1, slo=slo(tpot_s=0.1)), busy)
    asked = request(2, prompt_tokens=20)
    before_s = look(asked, busy).ttft_s
    for _ in range(100):
        busy.latency.observe(StepShape(10, 100, 1, 11), 1.5 * SIMPLE.step_s(StepShape(10, 100, 1, 11)))
    assert look(asked, busy).ttft_s - 0.010 == pytest.approx(1.5 * (before_s - 0.010), rel=1e-3)


# Scores.


def expected_score(one: Request, on: Instance, expected_tokens: int) -> float:
    """The formula of the module, term by term, from the instance itself."""
    model, factor = on.latency.model, on.latency.correction.factor("decode")
    seqs, context = len(on.decoding), on.context_tokens
    tpot_s = math.inf if one.slo.tpot_s is None else one.slo.tpot_s
    pace_s = min(max(0.2, 4 * model.decode_base_s), on.strictest_pace_s(), tpot_s)
    used = factor * model.decode_step_s(seqs + 1, context + one.context_tokens) / pace_s
    own_s = on.prefill_work_s(one, on.cached_tokens(one))
    queued_s = on.waiting_s() + 0.1 * model.prefill_token_s * context
    peak_s = factor * model.decode_step_s(on.requests + 1, on.planned_tokens + one.prompt_tokens + expected_tokens)
    return (queued_s + own_s) / max(0.1, 1 - used) + 3 * (peak_s > pace_s)


LOADS = st.tuples(
    st.integers(1, 400),
    st.integers(1, 60),
    st.sampled_from([None, 0.015, 0.03, 0.5]),
    st.integers(0, 40),
    st.booleans(),
)
"""(prompt, answer, TPOT, tokens emitted or none, whether the prompt is one that others have)."""


def loaded(fleet: Sequence[Instance], specs: list[list[tuple[int, int, float | None, int, bool]]]) -> None:
    number = 0
    for on, works in zip(fleet, specs, strict=False):
        for prompt, answer, tpot_s, emitted, shares in works:
            hashes = tuple(block_hashes(range(prompt), 16)) if shares else ()
            one = request(number, prompt, answer + emitted, slo=slo(tpot_s=tpot_s), block_hashes=hashes)
            if emitted:
                decode(one, on, emitted)
            else:
                place(one, on)
            number += 1
        on.observe_step(StepShape(0, 0, 1, 10), 0.008 + 0.0001 * number, 0.0)


@pytest.mark.parametrize("instances", [2, FEW, FEW + 1, 12])
@settings(max_examples=40)
@given(
    specs=st.lists(st.lists(LOADS, max_size=4), max_size=12),
    asked=LOADS,
    now=st.sampled_from([0.0, 0.1, 10.0]),
)
def test_chosen_is_the_least_of_the_formula(
    instances: int,
    specs: list[list[tuple[int, int, float | None, int, bool]]],
    asked: tuple[int, int, float | None, int, bool],
    now: float,
) -> None:
    """Of those as good as the best, most of the prompt held, then fewest requests, fewest so far, the oldest."""
    made = cluster(instances, H100_8B)
    loaded(made.ready, specs)
    prompt, answer, tpot_s, emitted, _ = asked
    promise, hashes = slo(tpot_s=tpot_s), tuple(block_hashes(range(prompt), 16))
    one = request(999, prompt, answer + emitted, slo=promise, tokens_before=emitted, block_hashes=hashes)
    believed = made.expected_tokens(one)
    expected = [expected_score(one, each, believed) for each in made.ready]
    chosen = SloDispatcher(separation=0.0).choose(one, made.ready, made, now).instance
    newcomer = Newcomer(one.context_tokens, believed, tpot_s or math.inf)
    cached = np.array([each.cached_tokens(one) for each in made.ready], dtype=np.float64)
    made.loads.refresh()
    at_once = score(made.loads.table(made.ready), newcomer, cached, np.minimum, np.maximum)
    assert list(at_once) == pytest.approx(expected)
    one_by_one = [score(made.loads.column(i), newcomer, i.cached_tokens(one), min, max) for i in made.ready]
    assert one_by_one == pytest.approx(expected)
    equals = [each for each, value in zip(made.ready, at_once, strict=True) if value <= min(at_once) + INDIFFERENCE]
    assert chosen is min(equals, key=lambda each: (-each.cached_tokens(one), each.requests, each.dispatches, each.id))


def test_slow_machines_are_not_held_to_paces_that_they_could_not_keep() -> None:
    slow = replace(SIMPLE, decode_base_s=0.1)
    assert look(request(), instance(model=slow)).strictest_pace_s == 0.4


# Feasibility, one check at a time.

FINE = Estimate(ttft_s=0.9, e2e_s=5.0, step_s=0.05, peak_step_s=0.08, strictest_pace_s=0.1, has_blocks=True)
ASKED = slo(ttft_s=1.0, tpot_s=0.1)


@pytest.mark.parametrize(
    ("change", "is_fine"),
    [
        ({}, True),
        ({"has_blocks": False}, False),
        ({"peak_step_s": 0.1}, True),
        ({"peak_step_s": 0.101}, False),
        ({"ttft_s": 1.0}, True),
        ({"ttft_s": 1.001}, False),
        ({"ttft_s": 1.0, "step_s": 0.101}, False),
        ({"ttft_s": 0.9, "step_s": 0.15}, True),
    ],
)
def test_each_check_alone_decides(change: dict[str, float], is_fine: bool) -> None:
    assert is_feasible(request(slo=ASKED), replace(FINE, **change)) is is_fine


def test_end_to_end_promise_is_looked_at_even_after_the_first_token() -> None:
    resumed = request(slo=slo(e2e_s=5.0))
    resumed.first_token_s = 0.5
    assert is_feasible(resumed, FINE)
    assert not is_feasible(resumed, replace(FINE, e2e_s=5.001))


def test_whole_answer_is_its_first_token_and_steps_at_the_peak() -> None:
    asked = request(prompt_tokens=20, max_tokens=50, tokens_before=10)
    seen = estimate(asked, instance(), 30, 0.0)
    assert seen.e2e_s == pytest.approx(seen.ttft_s + 20 * seen.peak_step_s)


def test_without_ttft_only_neighbours_and_blocks_matter() -> None:
    assert is_feasible(request(slo=slo(tpot_s=0.1)), replace(FINE, ttft_s=99.0))


def test_request_that_has_its_first_token_can_no_longer_be_late_with_it() -> None:
    resumed = request(slo=ASKED)
    resumed.first_token_s = 0.5
    assert is_feasible(resumed, replace(FINE, ttft_s=99.0))


# Choice.


def test_reason_says_whether_the_promises_are_kept_where_it_goes() -> None:
    placement = choose(request(1, prompt_tokens=30, max_tokens=10, slo=slo(ttft_s=1.0)), instance(0), instance(1))
    assert placement.reason.why is Why.FEASIBLE
    placement = choose(request(1, prompt_tokens=30, max_tokens=10, slo=slo(ttft_s=0.03)), instance(0), instance(1))
    assert placement.reason.why is Why.LEAST_HARM


def test_where_nothing_fits_the_least_harm_wins() -> None:
    near, far = instance(0), instance(1)
    for number in range(20):
        place(request(number + 10, prompt_tokens=100, slo=slo(ttft_s=0.01)), far if number % 4 else near)
    placement = choose(request(1, prompt_tokens=100, slo=slo(ttft_s=0.1)), near, far)
    assert placement.instance is near
    assert placement.reason.why is Why.LEAST_HARM
    assert {name for name, _ in placement.reason.numbers} == {"ttft_s", "peak_step_s"}


def test_two_dispatches_in_a_row_see_each_other() -> None:
    """No report is needed between them: the first one's work counts from its dispatch."""
    both = [instance(0), instance(1)]
    first = choose(request(1, prompt_tokens=100), *both).instance
    place(request(1, prompt_tokens=100), first)
    assert choose(request(2, prompt_tokens=100), *both).instance is not first


def test_equals_take_turns() -> None:
    both = [instance(0), instance(1)]
    chosen = []
    for number in range(4):
        one = request(number, prompt_tokens=10)
        on = choose(one, *both).instance
        place(one, on)
        on.remove(one)
        chosen.append(on.id)
    assert chosen == [0, 1, 0, 1]


def homes_of_chats(separation: float) -> set[int]:
    """Where eight strict chats go after half a minute of them among bursts of long prompts with a loose pace."""
    dispatcher, among = SloDispatcher(separation), cluster(4, replace(H100_8B, decode_base_s=0.015))
    chat = replace(request(prompt_tokens=100, slo=slo(1.0, 0.02)), service_class="chat")
    long = replace(request(prompt_tokens=900, slo=slo(0.2, 0.2)), service_class="long")
    for each in among.ready:
        decode(replace(chat, id=100 + each.id), each)
        decode(replace(long, id=200 + each.id), each)
    for second in range(30):
        for each in among.ready:
            each.advance(50)
        for one in [chat] * 4 + [long] * 24:
            dispatcher.choose(replace(one, arrived_s=float(second)), among.ready, among, float(second))
    for number in range(8):
        one = replace(chat, id=number, arrived_s=30.0)
        place(one, dispatcher.choose(one, among.ready, among, 30.0).instance)
    return {each.id for each in among.ready if each.waiting}


def test_strict_work_is_kept_apart_where_that_keeps_more_promises() -> None:
    """Even while other instances are free: it would bind them to its pace."""
    assert homes_of_chats(separation=0.0) == {0, 1, 2, 3}
    assert 1 <= len(homes_of_chats(separation=1.0)) < 4


def test_separation_is_no_less_than_none() -> None:
    with pytest.raises(ValueError, match="separation must be at least 0"):
        SloDispatcher(separation=-1.0)


def test_who_would_be_refused_goes_wherever_its_promises_are_kept() -> None:
    """Even if that is not the instance with the least score."""
    short, long = instance(0), instance(1)
    place(request(10, prompt_tokens=50, slo=slo(ttft_s=0.01)), short)
    place(request(11, prompt_tokens=200, slo=slo(ttft_s=9.0)), long)
    for refuses, chosen, why in ((False, short, Why.LEAST_HARM), (True, long, Why.FEASIBLE)):
        asked = request(12, prompt_tokens=30, slo=slo(ttft_s=0.06), refuses_late=refuses)
        placement = choose(asked, short, long)
        assert (placement.instance, placement.reason.why) == (chosen, why)


SPECS = st.lists(
    st.tuples(
        st.integers(1, 300), st.integers(1, 40), st.sampled_from([None, 0.1, 2.0]), st.sampled_from([None, 0.03, 0.3])
    ),
    min_size=1,
    max_size=12,
)


def dispatch_all(specs: list[tuple[int, int, float | None, float | None]], rename: int) -> list[tuple]:
    """Each request goes where it should; every third one then decodes. Ids are stretched by `rename`, in order."""
    fleet = [instance(number, H100_8B, blocks=40) for number in range(3)]
    journal = []
    for number, (prompt, answer, ttft_s, tpot_s) in enumerate(specs):
        one = request(rename * number + rename - 1, prompt, answer, slo=Slo(ttft_s, tpot_s), arrived_s=0.01 * number)
        placement = choose(one, *fleet, now=0.01 * number)
        journal.append((number, placement.instance.id, placement.reason, placement.ttft_s, placement.tpot_s))
        place(one, placement.instance)
        if number % 3 == 0:
            placement.instance.begin_decoding(one)
    return journal


@given(SPECS, st.integers(2, 9))
def test_relabelling_requests_changes_only_labels(
    specs: list[tuple[int, int, float | None, float | None]], rename: int
) -> None:
    assert dispatch_all(specs, 1) == dispatch_all(specs, 1) == dispatch_all(specs, rename)


@given(SPECS)
def test_looking_changes_nothing(specs: list[tuple[int, int, float | None, float | None]]) -> None:
    fleet = [instance(number) for number in range(2)]
    for number, (prompt, answer, ttft_s, tpot_s) in enumerate(specs):
        place(request(number, prompt, answer, slo=Slo(ttft_s, tpot_s)), fleet[number % 2])
    before = [(each.waiting_s(), each.context_tokens, each.dispatches, repr(each.waiting)) for each in fleet]
    choose(request(99, slo=ASKED), *fleet)
    assert before == [(each.waiting_s(), each.context_tokens, each.dispatches, repr(each.waiting)) for each in fleet]


def test_reason_reads_as_a_sentence_with_numbers() -> None:
    assert str(choose(request(prompt_tokens=20, slo=ASKED), instance()).reason) == (
        "fits every promise there (ttft_s=0.03, peak_step_s=0.011)"
    )


# Where instances prefill for others.


def early(number: int, prompt_tokens: int) -> Request:
    """It is due before all others."""
    return request(number, prompt_tokens, slo=slo(ttft_s=0.1))


def parted(*roles: Role) -> Cluster:
    made = cluster(len(roles))
    for each, role in zip(made.ready, roles, strict=True):
        each.role = role
    made.note_ready()
    return made


def parted_choice(made: Cluster, newcomer: Request, *, converts: bool = True) -> tuple[int, Why]:
    placement = SloDispatcher(converts=converts).choose(newcomer, made.fronts, made, 0.0)
    return placement.instance.id, placement.reason.why


def test_new_request_goes_to_who_prefills_as_long_as_that_is_in_time() -> None:
    made = parted(Role.PREFILL, Role.MIXED, Role.PREFILL)
    newcomer = request(90, slo=slo(0.5, 0.1))
    assert parted_choice(made, newcomer) == (0, Why.FEASIBLE)
    place(early(1, 100), made.ready[0])
    assert parted_choice(made, newcomer) == (2, Why.FEASIBLE)
    place(early(2, 200), made.ready[2])
    assert parted_choice(made, newcomer) == (0, Why.FEASIBLE)


@pytest.mark.parametrize("role", [Role.MIXED, Role.DECODE])
def test_request_that_would_be_late_there_is_prefilled_where_it_will_decode(role: Role) -> None:
    made = parted(Role.PREFILL, role, role)
    place(early(1, 900), made.ready[0])
    newcomer = request(90, slo=slo(0.5, 0.1))
    assert parted_choice(made, newcomer) == (1, Why.FEASIBLE)
    assert parted_choice(made, newcomer, converts=False) == (0, Why.LEAST_HARM)
    place(early(2, 100), made.ready[1])
    assert parted_choice(made, newcomer) == (2, Why.FEASIBLE), "the earliest first token"


@pytest.mark.parametrize(("decodes", "expected"), [(68, 1), (71, 0)])
def test_only_where_steps_stay_well_below_the_pace(decodes: int, expected: int) -> None:
    """A step of 71 decodes and the newcomer takes 82 ms, more than .8 of 100."""
    made = parted(Role.PREFILL, Role.MIXED)
    place(early(1, 900), made.ready[0])
    for number in range(decodes):
        decode(request(100 + number), made.ready[1])
    assert parted_choice(made, request(90, slo=slo(0.9, 0.1)))[0] == expected


@pytest.mark.parametrize(("blocks", "expected"), [(790, 1), (810, 0)])
def test_only_where_blocks_stay_well_below_what_there_is(blocks: int, expected: int) -> None:
    """Of 1000: decodes that prefills slow down hold theirs for longer."""
    made = parted(Role.PREFILL, Role.MIXED)
    place(early(1, 900), made.ready[0])
    decode(request(100, prompt_tokens=16 * blocks - 10), made.ready[1])
    assert parted_choice(made, request(90, slo=slo(0.9, 0.1)))[0] == expected


@pytest.mark.parametrize(("tokens", "expected"), [(200, 1), (300, 0)])
def test_only_well_before_its_deadline(tokens: int, expected: int) -> None:
    """Of 500 ms: what comes until then may have to go first."""
    made = parted(Role.PREFILL, Role.MIXED)
    place(early(1, 900), made.ready[0])
    place(early(2, tokens), made.ready[1])
    assert parted_choice(made, request(90, slo=slo(0.5, 0.1)))[0] == expected


def test_request_that_would_be_late_everywhere_goes_to_who_prefills() -> None:
    made = parted(Role.PREFILL, Role.MIXED)
    for each in made.ready:
        place(early(each.id, 900), each)
    assert parted_choice(made, request(90, slo=slo(0.5, 0.1))) == (0, Why.LEAST_HARM)
