"""Steps counted from outside: what a round is, what it teaches, and that the control plane's count stays near."""

from __future__ import annotations

import random

import pytest

from hyperflexis.adapters.vllm.rounds import NOTHING, Rounds
from hyperflexis.core.cadence import STEPS_MAX
from hyperflexis.core.latency import StepShape


def decoding(*prompts: int) -> Rounds:
    """Requests of so many tokens each, that have their first tokens; the last round began at 1.0."""
    rounds = Rounds(16, 0.0)
    for number, tokens in enumerate(prompts):
        rounds.enter(number, list(range(1000 * number, 1000 * number + tokens)), 0.0)
    rounds.advance(range(len(prompts)), 0.5)
    rounds.advance(range(len(prompts)), 1.0)
    return rounds


def test_prefill_of_a_request_alone_is_a_lesson() -> None:
    rounds = Rounds(16, 0.0)
    rounds.enter(1, list(range(100)), 5.0)
    assert rounds.advance([1], 5.25) == 1
    assert (rounds.shape, rounds.duration_s) == (StepShape(100, 10_000), 0.25)


def test_prefill_of_what_may_be_cached_teaches_nothing() -> None:
    rounds = Rounds(16, 0.0)
    for number in (1, 2):
        rounds.enter(number, list(range(100)), 0.0)
        rounds.advance([number], 1.0)
        rounds.leave(number, is_at_end=True)
    assert rounds.shape is NOTHING


def test_prefill_beside_others_teaches_nothing() -> None:
    rounds = decoding(10)
    rounds.enter(5, list(range(100)), 1.0)
    rounds.advance([0, 5], 1.1)
    assert rounds.shape is NOTHING
    assert rounds.duration_s == pytest.approx(0.1)


def test_step_of_a_first_token_began_after_its_request_was_sent() -> None:
    """However long nothing was asked of the server: what a client is told of its prefill follows from that."""
    rounds = decoding(10, 20)
    for number in (0, 1):
        rounds.leave(number, is_at_end=True)
    rounds.enter(5, [1] * 40, 100.0)
    rounds.enter(6, [2] * 40, 100.5)
    rounds.advance([5], 100.75)
    assert rounds.duration_s == pytest.approx(0.75)
    rounds.advance([6], 100.8)
    assert rounds.duration_s == pytest.approx(0.05)


def test_interval_between_rounds_of_decodes_is_a_lesson() -> None:
    rounds = decoding(10, 20)
    assert rounds.advance([0, 1], 1.03) == 1
    assert rounds.shape == StepShape(0, 0, 2, 12 + 22)
    assert rounds.duration_s == pytest.approx(0.03)


def test_tokens_of_a_step_that_come_apart_are_one_round() -> None:
    rounds = decoding(10, 20)
    assert rounds.advance([0], 1.030) == 1
    assert rounds.advance([1], 1.031) == 0
    assert rounds.advance([1, 0], 1.060) == 1
    assert rounds.duration_s == pytest.approx(0.030)


def test_two_tokens_at_once_are_two_rounds() -> None:
    rounds = decoding(10)
    assert rounds.advance([0, 0], 1.06) == 2
    assert (rounds.shape.decode_seqs, rounds.duration_s) == (1, pytest.approx(0.03))


def test_round_after_a_cancel_teaches_nothing_and_that_after_an_end_does() -> None:
    for is_at_end, seqs in ((False, 0), (True, 1)):
        rounds = decoding(10, 20)
        rounds.leave(1, is_at_end=is_at_end)
        rounds.advance([0], 1.1)
        assert rounds.shape.decode_seqs == seqs


def test_what_is_there_is_counted() -> None:
    rounds = decoding(10, 30)
    rounds.enter(7, [1] * 40, 1.0)
    assert (len(rounds), rounds.waiting, rounds.waiting_tokens) == (3, 1, 40)
    assert rounds.blocks() == 1 + 2 + 3
    for number in (0, 1, 7, 7):
        rounds.leave(number)
    assert (len(rounds), rounds.waiting, rounds.blocks()) == (0, 0, 0)


def test_told_steps_follow_the_rounds_although_news_cost_one_each() -> None:
    draw = random.Random(3)
    rounds = Rounds(16, 0.0)
    done = told = news = 0
    for _ in range(5000):
        count, has_news = draw.choice([0, 1, 1, 1, 2]), draw.random() < 0.3
        done += count
        news += has_news
        steps = rounds.told(count, has_news=has_news)
        assert steps or not has_news, "the control plane would not hear of it"
        told += steps
        assert -1 <= done - told < STEPS_MAX or told - done <= news
    assert abs(done - told) < STEPS_MAX
