"""Which prefills go first inside vLLM, and how much of them a step may hold."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.core.latency import LatencyModel, StepShape
from hyperflexis.core.slo import Slo
from hyperflexis.core.step import StepRules
from hyperflexis.vllm_plugin.chooser import UNKNOWN, Job, Room, StepChooser, shape_of

MODEL = LatencyModel(0.004, 0.004, 1e-4, 0.0, 2e-4, 0.0)
"""100 tokens of prefill take 10 ms."""
PLENTY = Room(tokens=10_000, seats=100)


def chooser(**rules: float) -> StepChooser:
    made = StepChooser(StepRules(prefill_tokens_max=2048, **rules))  # type: ignore[arg-type]
    made.latency.adopt(MODEL)
    return made


def job(name: int, tokens: int = 100, *, at_s: float = 0.0, priority: int = 0, **slo: float) -> Job:
    return Job(name, tokens, 32, Slo(**slo), at_s, priority)


def answering(name: int, *, now: float, emitted: int = 4, tpot_s: float | None = 0.05, most: int = 32) -> Job:
    """A decode on which the next token is due in one whole pace."""
    one = Job(name, 50, most, Slo(tpot_s=tpot_s), now - 1.0)
    one.emitted, one.computed, one.has_begun = emitted, 50 + emitted - 1, True
    one.begin_to_answer(now)
    if one.pace_s is not None:
        one.anchor_s = now - (emitted - 1) * one.pace_s
    return one


def names(jobs: list[Job]) -> list[int]:
    return [each.id for each in jobs]


# -- order


def test_without_promises_it_is_vllms_own_order() -> None:
    waiting = [job(0, at_s=2.0), job(1, at_s=1.0), job(2, at_s=3.0, priority=1)]
    assert names(chooser().choose(10.0, [], waiting, PLENTY).order) == [2, 1, 0]


def test_least_time_left_goes_first() -> None:
    waiting = [job(0, ttft_s=9.0), job(1, ttft_s=1.0, at_s=0.5), job(2, at_s=0.1)]
    assert names(chooser().choose(1.0, [], waiting, PLENTY).order) == [1, 0, 2]


def test_priority_decides_who_is_late_and_not_who_is_first() -> None:
    """Three of a second's work each, and two seconds: the unimportant one is given up, although it is due first."""
    waiting = [
        job(0, 10_000, ttft_s=1.9, priority=0),
        job(1, 10_000, ttft_s=2.3, priority=1),
        job(2, 10_000, ttft_s=2.2, priority=1),
    ]
    assert names(chooser().choose(0.0, [], waiting, PLENTY).order) == [2, 1, 0]


def test_what_has_begun_gives_way_to_what_is_urgent() -> None:
    begun = job(0, 5_000, ttft_s=30.0)
    begun.computed, begun.has_begun = 1_000, True
    choice = chooser().choose(0.1, [answering(9, now=0.1)], [begun, job(1, 200, at_s=0.1, ttft_s=0.2)], PLENTY)
    assert names(choice.order) == [1, 0]
    assert choice.tokens[1] == 200, "all of it, and the rest of the step for who had begun"


def test_newcomer_is_seen_at_once() -> None:
    one = chooser()
    loose = job(0, ttft_s=9.0)
    assert names(one.choose(0.0, [], [loose], PLENTY).order) == [0]
    assert names(one.choose(0.001, [], [loose, job(1, ttft_s=1.0)], PLENTY).order) == [1, 0]
    assert names(one.choose(0.002, [], [loose], PLENTY).order) == [0]


# -- size


def test_decodes_without_a_pace_bind_nothing() -> None:
    decode = answering(9, now=0.0, tpot_s=None)
    assert chooser().choose(0.0, [decode], [job(0, 1_500)], PLENTY).tokens == {0: 1_500}


def test_prefill_fills_what_the_tightest_decode_leaves() -> None:
    decodes = [answering(8, now=0.0, tpot_s=0.1), answering(9, now=0.0, tpot_s=0.05)]
    one = chooser()
    choice = one.choose(0.0, decodes, [job(0, 1_500, ttft_s=5.0)], PLENTY)
    step_s = one.latency.model.step_s(shape_of(decodes, [(choice.order[0], choice.tokens[0])]))
    assert step_s == pytest.approx(0.95 * 0.97 * 0.05, abs=1.1e-4), "but for less than a token"


def test_first_gets_its_floor_however_tight_the_decodes_are() -> None:
    late = answering(9, now=0.0, most=1_000)
    choice = chooser().choose(0.04, [late], [job(0, 500, ttft_s=5.0), job(1, 500, ttft_s=6.0)], PLENTY)
    assert choice.tokens == {0: 64}


def test_lost_decode_binds_nobody() -> None:
    lost = answering(9, now=0.0, emitted=31)
    assert chooser().choose(9.0, [lost], [job(0, 500, at_s=8.9, ttft_s=5.0)], PLENTY).tokens == {0: 500}


def test_answer_that_comes_next_is_not_made_late_by_its_neighbour() -> None:
    waiting = [job(0, 100, ttft_s=0.03), job(1, 1_000, ttft_s=9.0)]
    choice = chooser().choose(0.0, [], waiting, PLENTY)
    assert choice.tokens[0] == 100
    assert 0 < choice.tokens[1] <= 160


def test_who_finds_no_seat_or_room_holds_nobody_up() -> None:
    begun = job(0, 400, ttft_s=9.0)
    begun.computed, begun.has_begun = 100, True
    waiting = [begun, job(1, 300, ttft_s=1.0)]
    assert chooser().choose(0.0, [], waiting, Room(2_000, seats=0)).tokens == {0: 300}
    assert chooser().choose(0.0, [], waiting, Room(2_000, seats=5, kv_tokens=200)).tokens == {0: 300}
    assert chooser().choose(0.0, [], waiting, Room(2_000, seats=5)).tokens == {0: 300, 1: 300}


def test_small_ones_do_not_pass_who_waits_for_memory() -> None:
    waiting = [job(0, 900, ttft_s=1.0), job(1, 50, ttft_s=2.0)]
    assert chooser().choose(0.0, [], waiting, Room(2_000, seats=5, kv_tokens=500)).tokens == {}


def test_cached_prefix_is_no_work() -> None:
    cached = job(0, 1_000, ttft_s=9.0)
    cached.computed = cached.cached_tokens = 900
    choice = chooser().choose(0.0, [], [cached], Room(2_000, seats=5, kv_tokens=500))
    assert choice.tokens == {0: 100}


def test_latest_of_all_gets_a_trickle_in_the_end() -> None:
    given_up = job(0, 2_000, ttft_s=1.0)
    urgent = [job(each, 900, at_s=40.0, ttft_s=0.5) for each in (1, 2, 3)]
    decode = answering(9, now=40.0)
    before = chooser(starvation_s=60.0).choose(40.0, [decode], [given_up, *urgent], PLENTY)
    after = chooser(starvation_s=30.0).choose(40.0, [decode], [given_up, *urgent], PLENTY)
    assert 0 not in before.tokens
    assert after.tokens[0] == 64


# -- learning


def test_nothing_is_held_back_before_anything_is_known() -> None:
    one = StepChooser(StepRules())
    assert one.latency.model == UNKNOWN
    assert one.choose(0.0, [answering(9, now=0.0)], [job(0, 1_500)], PLENTY).tokens == {0: 1_500}


def test_step_times_are_learnt_while_serving() -> None:
    one = StepChooser(StepRules())
    for tokens in (16, 64, 200, 500):
        for shape in (StepShape(tokens, tokens**2), StepShape(0, 0, tokens // 16, tokens)):
            one.observe(shape, MODEL.step_s(shape))
    assert one.latency.model.prefill_token_s == pytest.approx(MODEL.prefill_token_s, rel=0.1)
    assert one.latency.model.decode_base_s == pytest.approx(MODEL.decode_base_s, rel=0.1)
    again = StepChooser(StepRules(), one.samples())
    assert again.latency.model.prefill_token_s == pytest.approx(MODEL.prefill_token_s, rel=0.1)


@given(
    st.lists(st.tuples(st.integers(1, 900), st.floats(0.05, 20.0), st.integers(-1, 1)), min_size=1, max_size=12),
    st.lists(st.floats(0.01, 0.2), max_size=5),
    st.integers(1, 600),
    st.integers(0, 12),
)
def test_choice_is_always_one_that_the_engine_can_take(
    asked: list[tuple[int, float, int]], paces: list[float], room: int, seats: int
) -> None:
    waiting = [job(name, tokens, ttft_s=ttft, priority=level) for name, (tokens, ttft, level) in enumerate(asked)]
    decodes = [answering(100 + name, now=0.1, tpot_s=pace) for name, pace in enumerate(paces)]
    choice = chooser().choose(0.1, decodes, waiting, Room(room, seats, math.inf))
    assert sorted(names(choice.order)) == list(range(len(waiting)))
    assert sum(choice.tokens.values()) <= room
    assert all(1 <= tokens <= waiting[name].left for name, tokens in choice.tokens.items())
    assert len(choice.tokens) <= seats
    assert bool(choice.tokens) == bool(seats), "the first always gets something"
