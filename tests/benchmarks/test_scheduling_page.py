"""The page and the curves of the scheduling comparison."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import scheduling_page as page
from scheduling_curves import drawing

SPREAD = {"mean": 2.0, "p50": 1.5, "p90": 3.0, "p99": 4.0}
RIVAL = "proserve:chunk=8192"


def point(policy: str, rate: float, seed: int, share: float, *, is_disturbed: bool = False) -> dict[str, Any]:
    each = {"attainment": share, "worst_minute": share, "requests": 10}
    metrics = {"ttft_s": SPREAD, "e2e_s": {**SPREAD, "mean": 2.0 + share}, "longest_ttft_s": 5.0 + seed}
    own = {"policy": policy, "rate": rate, "seed": seed, "disturbed": is_disturbed, "attainment": share}
    return {**own, **metrics, "classes": {"code": each, "chat": {**each, "attainment": 1.0}}}


def report() -> dict[str, Any]:
    texts = {"hyperflexis": "hyperflexis", "round_robin": "round_robin:chunk=512", "proserve": RIVAL}
    shares = {"hyperflexis": 0.97, "round_robin:chunk=512": 0.2, RIVAL: 0.9}
    points = [
        point(text, rate, seed, shares[text] - seed / 100) for text in shares for rate in (1.0, 2.0) for seed in (1, 2)
    ]
    promised = {"ttft_ms": 500.0, "tpot_ms": 100.0, "e2e_ms": None, "priority": 1, "requests": 9}
    sizes = {"prompt_tokens": {"p50": 10, "p90": 20}, "output_tokens": {"p50": 3, "p90": 4}}
    return {
        "scenario": "two",
        "instances": 4,
        "profile": "some/model",
        "requests_per_s": 10.0,
        "windows_s": {"tuning": [0, 600], "test": [600, 1800]},
        "seeds": {"tuning": [3], "test": [1, 2]},
        "criteria": [{"name": "95", "share": 0.95, "figure": "attainment"}],
        "classes": {
            name: {**promised, **sizes, "idle_ttft_ms": {"p50": 50.0, "p90": 100.0}, "idle_tpot_ms": 20.0}
            for name in ("code", "chat")
        },
        "policies": texts,
        "best_rival": RIVAL,
        "capacity": {"hyperflexis": {"95": 2.0}, "round_robin:chunk=512": {"95": None}, RIVAL: {"95": 1.0}},
        "fifth": {"overall": 2.0, "worst": None},
        "loads": {"0.5": 1.0, "1.0": 2.0},
        "disturbed": {"hyperflexis": {"95": 1.0}},
        "parts": {"hyperflexis/fixed": {"95": 1.5}},
        "points": [*points, point("hyperflexis", 1.5, 1, 0.9), point("hyperflexis", 1.0, 1, 0.1, is_disturbed=True)],
    }


def test_what_is_written_around_the_tables_stays() -> None:
    first = page.filled("# Head\n", "two", "old table\n")
    told = first.replace("## two", "## Two\n\nOur words.").replace(page.END, page.END + "\nMore words.\n")
    again = page.filled(told, "two", "new table\n")
    assert "Our words." in again
    assert "More words." in again
    assert "new table" in again
    assert "old table" not in again
    assert page.filled(again, "two", "new table\n") == again


def test_only_loads_under_every_seed_are_shown() -> None:
    found = page.complete(report())
    assert ("hyperflexis", 1.0) in found
    assert len(found["hyperflexis", 1.0]) == 2
    assert ("hyperflexis", 1.5) not in found
    assert page.complete(report(), disturbed=True) == {}


def test_the_summary_shows_absolute_values_beside_every_ratio() -> None:
    assert "| two | ≥ 95 % | 20.00 | 10.00 (proserve) | **2.00** | none | – |" in page.summary([report()])


def test_promises_stand_beside_what_an_idle_instance_takes() -> None:
    assert "| code | 9 | 10 / 20 | 3 / 4 | 500 ms (10.0 / 5.0) | 100 ms (5.0) | – | 1 |" in page.scenario(report())


def test_a_fifth_is_shown_per_class_with_the_span_of_the_seeds() -> None:
    told = page.fifth(report(), "overall", "of all requests")
    assert "At 20.00 requests/s" in told
    assert "| **hyperflexis** | 95.5 (95.0–96.0) | 5.16 | 95.5 (95.0–96.0) | 100.0 | 6 (6–7) |" in told
    assert "keeps no fifth" in page.fifth(report(), "worst", "of its worst class")


def test_latencies_are_compared_with_ours() -> None:
    assert "| proserve `chunk=8192` | 2.88 (2.88–2.89), +2.4 % |" in page.latencies(report())


def test_the_whole_of_a_scenario_can_be_told() -> None:
    told = page.scenario(report())
    assert "ours, but fixed chunks inside | 15.00 (0.75)" in told
    assert "| **hyperflexis** | 10.00 (0.50) |" in told
    assert "seconds 600–1800 (seeds 1, 2)" in told


def test_curves_are_one_sound_file_of_their_own() -> None:
    told = report()
    text = drawing("two & more", list(told["policies"].values()), page.complete(told), told["requests_per_s"])
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert text.count("<circle") == 2 * 3 * 2
    assert "proserve" in text
