"""Promises, the three metrics, and what counts as kept."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.core.slo import ServiceClass, Slo, Timeline, Verdict


def timeline(tokens: int = 5, arrived_s: float = 10.0, first_s: float = 11.0, last_s: float = 13.0) -> Timeline:
    return Timeline(arrived_s, arrived_s, arrived_s, first_s, last_s, tokens, None, None)


def verdict(slo: Slo, made: Timeline) -> Verdict:
    return Verdict("default", 0, slo, made, "i0")


@pytest.mark.parametrize("name", ["ttft_s", "tpot_s", "e2e_s"])
@pytest.mark.parametrize("target", [0, -1.0, math.nan, math.inf])
def test_target_that_is_no_positive_number_is_refused_by_name(name: str, target: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a positive number"):
        Slo(**{name: target})


def test_promises_may_be_absent() -> None:
    assert ServiceClass("batch").slo == Slo(None, None, None)


def test_metrics_are_the_fields_own() -> None:
    made = timeline(tokens=5)
    assert (made.ttft_s, made.tpot_s, made.e2e_s) == (1.0, 0.5, 3.0)


def test_one_token_has_no_tpot_and_keeps_any() -> None:
    made = timeline(tokens=1, last_s=11.0)
    assert made.tpot_s is None
    assert verdict(Slo(tpot_s=1e-9), made).tpot_met is True


def test_target_met_exactly_is_met() -> None:
    assert verdict(Slo(1.0, 0.5, 3.0), timeline()).attained


@pytest.mark.parametrize(
    ("slo", "met"),
    [
        (Slo(), (None, None, None)),
        (Slo(ttft_s=0.9), (False, None, None)),
        (Slo(tpot_s=0.4), (None, False, None)),
        (Slo(e2e_s=2.9), (None, None, False)),
        (Slo(2.0, 1.0, 2.9), (True, True, False)),
    ],
)
def test_each_promise_is_judged_alone(slo: Slo, met: tuple[bool | None, ...]) -> None:
    made = verdict(slo, timeline())
    assert (made.ttft_met, made.tpot_met, made.e2e_met) == met
    assert made.attained == (False not in met)


TARGETS = st.one_of(st.none(), st.floats(0.01, 10))
PROMISES = st.builds(Slo, TARGETS, TARGETS, TARGETS)


@given(PROMISES, st.integers(1, 50), st.floats(0, 5), st.floats(0, 5))
def test_looser_promises_never_turn_kept_into_broken(slo: Slo, tokens: int, wait_s: float, decode_s: float) -> None:
    made = timeline(tokens, 0.0, wait_s, wait_s + decode_s)
    loose = [None if target is None else 2 * target for target in (slo.ttft_s, slo.tpot_s, slo.e2e_s)]
    assert verdict(Slo(*loose), made).attained >= verdict(slo, made).attained
