"""What requests ask for, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.builders import SIMPLE, cluster, instance, request, slo
from hyperflexis.core import budget
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.demand import (
    BELIEVED_ANSWERS,
    BELIEVED_SQUARES,
    BELIEVED_TOKENS,
    Asked,
    Demand,
    alike,
    answered,
    arrived,
    per_second,
    with_running,
)

MODEL = replace(SIMPLE, context_token_s=1e-6, prefill_pair_s=1e-6)
KNOWN = Asked(ended=1e9, answer_tokens=10e9, answer_squares=104e9)
"""So many answers of 8 and 12 tokens that what is believed beforehand is nothing."""


def test_request_asks_for_its_prefill_and_its_pace() -> None:
    asked = arrived(request(prompt_tokens=100, slo=slo(tpot_s=0.05)), instance(model=MODEL))
    prefill_s = MODEL.chunk_s(100, 0)
    assert asked == Asked(1.0, prefill_s, prefill_s**2, 100, 0.05)


def test_looser_paces_than_the_cap_count_as_it() -> None:
    loose, none = (arrived(request(slo=slo(tpot_s=pace_s)), instance()) for pace_s in (0.5, None))
    assert none == loose
    assert none.pace_s == 0.2


def test_class_asks_for_its_prefills_its_decodes_and_its_blocks() -> None:
    """Answers of 8 and 12: ten steps on average, on 100 x 10 + 104 / 2 tokens; three requests in two seconds."""
    one = arrived(request(prompt_tokens=100, slo=slo(tpot_s=0.05)), instance(model=MODEL))
    three = one.plus(one).plus(one)
    found = per_second({"": three.plus(KNOWN)}, {"": KNOWN}, {}, 2.0, instance(model=MODEL))
    decode_s = 10 * 0.001 + 1052 * 1e-6
    assert found.prefill_s == pytest.approx(1.5 * MODEL.chunk_s(100, 0))
    assert found.decode_s == pytest.approx(1.5 * decode_s)
    assert found.context_steps == pytest.approx(1.5 * 1052)
    assert found.prompt_tokens == pytest.approx(150)
    share = MODEL.decode_base_s / (budget.AIM * 0.05)
    assert found.fixed_s == pytest.approx(share * (found.prefill_s + found.decode_s))


def test_classes_are_summed_with_answers_of_their_own() -> None:
    one = arrived(request(prompt_tokens=100), instance())
    alone = per_second({"": one}, {}, {}, 1.0, instance())
    both = per_second({"": one, "short": one.plus(KNOWN)}, {}, {}, 1.0, instance())
    short = per_second({"short": one.plus(KNOWN)}, {}, {}, 1.0, instance())
    assert both == pytest.approx(alone.plus(short))
    assert short.decode_s < alone.decode_s


def test_answers_are_believed_to_be_usual_until_some_are_known() -> None:
    one = arrived(request(prompt_tokens=0), instance())
    unknown = per_second({"": one}, {}, {}, 1.0, instance())
    assert unknown.decode_s == pytest.approx(0.001 * BELIEVED_TOKENS)
    assert unknown.context_steps == pytest.approx(BELIEVED_SQUARES / 2)
    ended = Asked(ended=BELIEVED_ANSWERS, answer_tokens=BELIEVED_ANSWERS * 100)
    assert per_second({"": one.plus(ended)}, {}, {}, 1.0, instance()).decode_s == pytest.approx(0.001 * 150)


def test_answers_that_have_not_ended_are_not_taken_for_short_ones() -> None:
    """One of ten tokens has ended, of a hundred that have ten each by now: they are a thousand tokens long on average,
    less what is believed beforehand.
    """
    ledger = {"default": answered(request(tokens_before=10)).plus(arrived(request(prompt_tokens=0), instance()))}
    running = [request(number, tokens_before=10) for number in range(99)]
    counted = with_running(ledger, running)["default"]
    assert (counted.ended, counted.answer_tokens, counted.answer_squares) == (1.0, 1000.0, 10_000.0)
    mean = (1000 + BELIEVED_ANSWERS * BELIEVED_TOKENS) / (1 + BELIEVED_ANSWERS)
    assert per_second({"": counted}, {}, {}, 1.0, instance()).decode_s == pytest.approx(0.001 * mean)


def test_running_request_of_a_class_that_is_new_counts() -> None:
    assert with_running({}, [request(tokens_before=3), request(1)]) == {
        "default": Asked(answer_tokens=3, answer_squares=9)
    }


def test_what_has_left_unfinished_asks_for_nothing_less() -> None:
    """Its tokens were counted while it ran, and are gone."""
    one = arrived(request(prompt_tokens=0), instance())
    ledger, before = {"": one}, {"": Asked(answer_tokens=50, answer_squares=2500)}
    assert per_second(ledger, {}, before, 1.0, instance()) == per_second(ledger, {}, {}, 1.0, instance())


@given(st.lists(st.floats(1e-3, 10.0), min_size=1, max_size=20))
def test_requests_count_as_no_more_alike_than_they_are(prefills_s: list[float]) -> None:
    total = Asked()
    for prefill_s in prefills_s:
        total = total.plus(Asked(requests=1, prefill_s=prefill_s, prefill_squares=prefill_s**2))
    count = alike({"": total}, {})
    assert 1.0 - 1e-9 <= count <= len(prefills_s) + 1e-9
    assert alike({"": total}, {"": total}) == 0.0


def test_equal_requests_count_one_by_one() -> None:
    one = arrived(request(prompt_tokens=100), instance())
    assert alike({"a": one.plus(one), "b": one}, {}) == pytest.approx(3)


@given(st.lists(st.tuples(*[st.floats(0, 1e6)] * 5), max_size=10))
def test_sums_are_by_term(parts: list[tuple[float, float, float, float, float]]) -> None:
    total = Demand()
    for part in parts:
        total = total.plus(Demand(*part))
    assert total == pytest.approx(tuple(sum(part[index] for part in parts) for index in range(5)))


def test_arrivals_count_while_an_instance_is_ready_and_answers_when_they_end() -> None:
    nobody = Cluster()
    nobody.observe_arrival(request())
    assert nobody.asked == {}
    made = cluster(2)
    made.observe_arrival(request(prompt_tokens=30, service_class="code"))
    made.observe_arrival(request(prompt_tokens=20))
    made.observe_length(request(tokens_before=8))
    first, second = (arrived(request(prompt_tokens=tokens), made.ready[0]) for tokens in (30, 20))
    assert made.asked == {"code": first, "default": second.plus(answered(request(tokens_before=8)))}
    assert math.isfinite(made.asked["default"].pace_s)
