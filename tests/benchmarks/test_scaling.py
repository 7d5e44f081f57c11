"""Loads, choices and page of the scaling comparison."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scaling
import scaling_choice as choice
import scaling_future as future
import scaling_loads as loads
import scaling_page as page
import scaling_runs as runs
from helpers.builders import SIMPLE, capacity
from hyperflexis.cli import trace_files
from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.policies import create
from hyperflexis.sim.job import Job
from hyperflexis.sim.outcome import Outcome, Usage

TRACES = scaling.folder(None)
needs_traces = pytest.mark.skipif(TRACES is None, reason=f"{trace_files.TRACES_ENV} names no folder with all traces")


def figures(kept: float, instance_s: float = 100.0, requests: int = 1000) -> dict[str, Any]:
    return {"classes": {"chat": [requests, round(kept * requests)]}, "instance_s": instance_s, "violation_s": []}


# Choices.


@given(first=st.integers(1, 20), most=st.integers(1, 20))
def test_the_smallest_fleet_that_keeps_enough_is_found(first: int, most: int) -> None:
    found = choice.smallest(lambda count: figures(1.0 if count >= first else 0.5), most)
    assert found["instances"] == (first if first <= most else 1)
    assert found["is_enough"] == (first <= most)


def test_where_no_fleet_keeps_enough_half_a_point_less_than_the_best_does() -> None:
    found = choice.smallest(lambda count: figures(0.90 + 0.004 * count), 10)
    assert (found["instances"], found["is_enough"]) == (9, False)


def test_the_cheapest_tuning_that_keeps_as_much_is_taken() -> None:
    tried: list[tuple[str, int]] = []
    known = {"lean": figures(0.97, 50), "right": figures(0.992, 80), "rich": figures(1.0, 200)}

    def run(text: str, seed: int) -> Mapping[str, Any]:
        tried.append((text, seed))
        return known[text]

    assert choice.cheapest(list(known), run, {3: figures(0.995), 4: figures(0.995)}) == "right"
    assert ("rich", 4) not in tried


def test_a_tuning_that_fails_under_another_seed_is_passed_over() -> None:
    def run(text: str, seed: int) -> Mapping[str, Any]:
        return figures(0.95 if (text, seed) == ("lean", 4) else 1.0, 50 if text == "lean" else 80)

    assert choice.cheapest(["lean", "rich"], run, {3: figures(0.995), 4: figures(0.995)}) == "rich"


def test_where_none_keeps_as_much_the_least_behind_is_taken() -> None:
    known = {"lean": figures(0.80, 50), "rich": figures(0.90, 80)}
    assert choice.cheapest(list(known), lambda text, _: known[text], {3: figures(1.0), 4: figures(1.0)}) == "rich"


def test_the_class_that_falls_furthest_behind_counts() -> None:
    static = [{"classes": {"chat": [100, 100], "code": [100, 99]}}]
    own = [{"classes": {"chat": [100, 100], "code": [100, 98]}}]
    assert choice.shortfall(own, static) == pytest.approx(0.01)
    assert choice.keeps(own, static)
    assert not choice.keeps(own, static, 0.005)


# The future.


def test_a_clairvoyant_fleet_is_told_what_arrives_when() -> None:
    """Two seconds of prefill, due within one, at 10 s; before and long after nothing."""
    classes = {"chat": ServiceClass("chat", Slo(1.0, 0.05))}
    jobs = [Job(10.0, 1000, 10, "chat")] * 2 + [Job(30.0, 10, 1, "chat")]
    needs = dict(future.needs(jobs, classes, SIMPLE, capacity(10_000), 1.0))
    assert needs[5.0] == 0
    assert needs[10.0] >= 2
    assert needs[20.0] == 0
    assert dict(future.needs(jobs, classes, SIMPLE, capacity(10_000), 2.0))[10.0] > needs[10.0]


# Bursts.


def outcome(arrived_s: list[float], attained: list[bool]) -> Outcome:
    count = len(arrived_s)
    nothing = np.zeros(count)
    return Outcome(
        classes=("chat",),
        service_class=np.zeros(count, dtype=np.int64),
        arrived_s=np.array(arrived_s),
        ttft_s=nothing,
        tpot_s=nothing,
        e2e_s=nothing,
        attained=np.array(attained),
        rejected=np.zeros(count, dtype=bool),
        finished=np.ones(count, dtype=bool),
        output_tokens=np.ones(count, dtype=np.int64),
        usage=Usage(0.0, 0.0, 0.0),
        migrations=0,
        role_changes=0,
        scale_events=0,
        sim_seconds=100.0,
    )


def test_a_burst_is_over_when_what_arrives_is_kept_again() -> None:
    seconds = [float(second) for second in range(60)]
    broken = {22, 25}
    assert runs.violations_s(outcome(seconds, [s not in broken for s in seconds]), [20.0]) == [6]
    assert runs.violations_s(outcome(seconds, [True] * 60), [20.0]) == [0]
    late = {22, 40}
    assert runs.violations_s(outcome(seconds, [s not in late for s in seconds]), [20.0]) == [3]


# Deployments.


@pytest.mark.parametrize("row", [row for row in scaling.ROWS if row != runs.STAYS])
def test_every_row_has_tunings_that_can_be_made(row: str) -> None:
    for at_s in set(scaling.TUNED_AT_S.values()):
        texts = scaling.tries(row, at_s)
        assert texts
        assert len(set(texts)) == len(texts)
        if row != runs.CLAIRVOYANT:
            assert all(create(text, 1024).scaler is not None for text in texts)


@needs_traces
def test_a_deployment_becomes_a_policy_and_a_fleet() -> None:
    assert TRACES is not None
    ours, fleet = runs.fleet_of(runs.Run("bu", 3.0, "hyperflexis", 0), TRACES)
    assert ours.relief is not None
    assert fleet.bounds is not None
    assert fleet.bounds.instances_max == loads.LOADS["bu"].instances_max
    stays, _ = runs.fleet_of(runs.Run("bu", 3.0, "stays:late_share=0.02", 0), TRACES)
    assert (stays.name, stays.relief) == ("hyperflexis", None)
    _, fixed = runs.fleet_of(runs.Run("bu", 0.0, "static:7", 0), TRACES)
    assert (fixed.instances, fixed.bounds) == (7, None)
    told, _ = runs.fleet_of(runs.Run("bu", 3.0, "clairvoyant:1.15", 0), TRACES)
    assert told.name == "clairvoyant"


# Loads.


@needs_traces
@pytest.mark.parametrize("name", ["az", "bu"])
def test_loads_are_in_order_and_seeds_differ(name: str) -> None:
    assert TRACES is not None
    found = [loads.jobs(name, seed, TRACES) for seed in (0, 1)]
    assert found[0] != found[1]
    for jobs in found:
        instants = [job.at_s for job in jobs]
        assert instants == sorted(instants)
        assert instants[-1] <= loads.LOADS[name].lasts_s + loads.BURST_RISE_S
        assert {job.service_class for job in jobs} <= loads.classes(name).keys()
        assert not any(job.block_hashes for job in jobs)


@needs_traces
def test_bursts_are_five_times_as_much_within_two_seconds() -> None:
    assert TRACES is not None
    counts = np.bincount([int(job.at_s) for job in loads.jobs("bu", 0, TRACES)])
    begins = [int(at_s) for at_s in loads.burst_begins_s("bu")]
    within = np.concatenate([counts[begin + 2 : begin + 38] for begin in begins]).mean()
    before = np.concatenate([counts[begin - 60 : begin] for begin in begins]).mean()
    assert 3.5 <= within / before <= 6.5


# Page.


def report() -> dict[str, Any]:
    """Two loads, two starts; ours is a tenth cheaper than the rival and keeps as much, but for one cell."""
    fixed = [{**figures(0.995, 1000), "seed": seed, "instances": 5, "is_enough": seed < 4} for seed in range(5)]
    row = {"deployment": "x:target=8", "source": "abc"}
    cells = [
        {
            "load": load,
            "startup_s": startup_s,
            "rows": {
                "hyperflexis": {**row, "runs": [figures(0.99, 450)] * 3},
                "stays": {**row, "runs": [figures(0.99, 480)] * 3},
                "kpa": {**row, "runs": [figures(0.99, 500)] * 3},
                "chiron": {**row, "runs": [figures(0.90, 100)] * 3},
            },
        }
        for load in ("az", "pk")
        for startup_s in (3.0, 30.0)
    ]
    load = {"title": "t", "profile": "p", "lasts_s": 600.0, "requests": [1, 2, 3], "classes": {}}
    return {
        "machine": {"commit": "c", "cores": 2, "cpu": "x", "python": "3.11", "date": "2026-01-01T00:00:00"},
        "warm_s": 90.0,
        "loads": {"az": {**load, "peak_over_mean": [2.0] * 3}, "pk": {**load, "peak_over_mean": [3.0] * 3}},
        "static": {"az": fixed, "pk": fixed},
        "cells": cells,
    }


def test_page_says_what_was_reached() -> None:
    text = page.verdict(report())
    assert text.count("Reached") == 4
    assert "Missed" not in text
    assert "55.0 % at 3 s" in text


def test_page_says_what_was_missed() -> None:
    results = copy.deepcopy(report())
    results["cells"][0]["rows"]["hyperflexis"]["runs"] = [figures(0.99, 800)] * 3
    results["cells"][2]["rows"]["hyperflexis"]["runs"] = [figures(0.97, 300)] * 3
    text = page.verdict(results)
    assert "dearer in az 3 s +60 %" in text
    assert "Ours keeps less than asked in pk 3 s" in text
    assert text.count("**Missed**") == 3


def test_a_row_that_keeps_less_is_in_brackets_and_no_rival() -> None:
    results = report()
    assert page.best_rival(results, results["cells"][0]) == "kpa"
    assert "[0.10 (90.0)]" in page.page(results)
    assert "0.45 (99.0)" in page.page(results)


def test_sections_can_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "further", lambda: ["## Elsewhere\n"])
    assert "## Elsewhere" in page.page(report())


def test_results_are_kept_under_what_they_follow_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulated: list[runs.Run] = []
    monkeypatch.setattr(runs, "simulated", lambda run, _: simulated.append(run) or figures(1.0))
    for run in (runs.Run("bu", 3.0, "kpa", 0), runs.Run("bu", 3.0, "kpa", 0), runs.Run("bu", 3.0, "kpa", 1)):
        assert runs.kept(run, tmp_path, tmp_path) == figures(1.0)
    assert [run.seed for run in simulated] == [0, 1]
