"""Answers as figures: who attained what, and what a reader is warned of."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hyperflexis.bench.answer import Answer, End
from hyperflexis.cli.measured import complaints, has_attained, result
from hyperflexis.cli.results import Cell, table
from hyperflexis.core.slo import ServiceClass, Slo

CLASSES = {"chat": ServiceClass("chat", Slo(1.0, 0.1)), "code": ServiceClass("code", Slo(e2e_s=2.0))}


class FakeLoad:
    def __init__(self, answers: list[Answer], behind_s: list[float]) -> None:
        self.answers, self.behind_s = answers, behind_s


def answer(due_s: float, service_class: str = "chat", *, end: End = End.DONE, **more: Any) -> Answer:
    """One that took half a second to its first token, and 50 ms to each of the other ten."""
    begun = end in (End.DONE, End.CUT)
    found = Answer(service_class, due_s, 20, 11, due_s, end=end, ended_s=due_s + 1)
    if begun:
        found.first_s, found.last_s, found.tokens, found.prompt_tokens_counted = due_s + 0.5, due_s + 1.0, 11, 20
    for name, value in more.items():
        setattr(found, name, value)
    return found


def row(
    *answers: Answer, warmup_s: float = 0.0, behind_s: tuple[float, ...] = (), cpu_s: float = 0.1
) -> dict[str, Any]:
    load: Any = FakeLoad(list(answers), list(behind_s))
    found = result(Cell("x", 1.0, 0), load, CLASSES, warmup_s, cpu_s)
    assert table([found]).splitlines()[1].startswith("x ")
    return dict(found.row)


def test_figures_are_those_of_simulations() -> None:
    found = row(answer(0.0), answer(1.0, last_s=9.0), answer(2.0, "code"), answer(3.0, "code", last_s=5.5))
    assert found["attainment"] == 0.5
    assert found["attainment_by_class"] == {"chat": 0.5, "code": 0.5}
    assert found["requests_by_class"] == {"chat": 2, "code": 2}
    assert found["ttft_s"]["p50"] == pytest.approx(0.5)
    assert found["tpot_s"]["p50"] == pytest.approx((0.05 + 0.2) / 2)
    assert found["goodput_rps"] == pytest.approx(2 / 4)
    assert found["instance_seconds"] is None


def test_what_did_not_come_whole_attains_nothing_and_is_told_apart() -> None:
    found = row(
        answer(0.0),
        answer(1.0, end=End.REFUSED, why="429", retry_after_s=2.0),
        answer(2.0, end=End.REFUSED, why="429", retry_after_s=5.0),
        answer(3.0, end=End.FAILED, why="connection"),
        answer(4.0, end=End.CUT, why="no end"),
    )
    assert [found[name] for name in ("requests", "finished", "rejected", "failed", "cut")] == [5, 1, 2, 1, 1]
    assert found["attainment"] == 0.2
    assert found["errors"] == {"429": 2, "connection": 1, "no end": 1}
    assert found["retry_after_s"] == {"count": 2, "min": 2.0, "max": 5.0}
    assert complaints(found) == [
        "1 of 5 requests failed",
        "1 of 5 requests were cut off",
        "not answered: 2 x 429, 1 x connection, 1 x no end",
    ]


def test_warm_up_and_what_is_still_awaited_do_not_count() -> None:
    found = row(answer(0.0), answer(9.9), answer(10.0), answer(11.0, ended_s=math.nan), warmup_s=10.0)
    assert found["requests"] == 1


def test_nothing_at_all_is_a_row_too() -> None:
    found = row(answer(0.0), warmup_s=10.0)
    assert (found["requests"], found["attainment"], found["sim_seconds"]) == (0, None, 0.0)
    assert complaints(found) == []


def test_late_client_says_so() -> None:
    assert "fell behind: 500 ms late" in complaints(row(answer(0.0, sent_s=0.5)))[0]
    assert "at most 300 ms" in complaints(row(answer(0.0), behind_s=(0.3,) * 3))[0]
    assert "busy 95% of the time" in complaints(row(answer(0.0), cpu_s=0.95))[0]
    assert complaints(row(answer(0.0), behind_s=(0.001,) * 300)) == []


def test_other_lengths_than_asked_for_are_told() -> None:
    found = row(answer(0.0, tokens=5), answer(1.0, prompt_tokens_counted=40))
    assert (found["short"], found["prompt_tokens"]) == (1, {"asked": 40, "counted": 60})
    assert complaints(found) == [
        "1 of 2 requests ended before their length",
        "prompts were 150% of the length that they should have had",
    ]


def test_one_token_keeps_any_pace() -> None:
    assert has_attained(answer(0.0, tokens=1), Slo(tpot_s=0.001))
    assert not has_attained(answer(0.0, tokens=2), Slo(tpot_s=0.001))
    assert has_attained(answer(0.0), Slo())
