"""Loads, searches and page of the disaggregation comparison."""

from __future__ import annotations

import copy
import json
import math
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import disaggregation
import disaggregation_loads as loads
import disaggregation_page as page
import disaggregation_runs as runs
import disaggregation_search as search
from hyperflexis.cli import trace_files

STEPS = st.integers(-search.STEPS_MAX, search.STEPS_MAX)
TRACES = disaggregation.folder(None)
needs_traces = pytest.mark.skipif(TRACES is None, reason=f"{trace_files.TRACES_ENV} names no folder with all traces")


# Search.


@given(limit=STEPS, guess=STEPS, stride=st.sampled_from([search.NEAR, search.FAR]))
def test_the_highest_step_that_is_borne_is_found_from_anywhere(limit: int, guess: int, stride: int) -> None:
    tried: list[int] = []
    assert search.highest(lambda step: tried.append(step) or step <= limit, guess, stride) == limit
    assert all(abs(step) <= search.STEPS_MAX for step in tried)
    assert len(tried) == len(set(tried))


@given(guess=STEPS)
def test_none_where_nothing_is_borne_and_the_last_where_everything_is(guess: int) -> None:
    assert search.highest(lambda step: False, guess) is None
    assert search.highest(lambda step: True, guess) == search.STEPS_MAX


def test_a_search_that_begins_near_takes_few_rates() -> None:
    tried: list[int] = []
    search.highest(lambda step: tried.append(step) or step <= 7, 6)
    assert len(tried) <= 4
    tried.clear()
    search.highest(lambda step: tried.append(step) or step <= 7, 7, search.NEAR)
    assert tried == [7, 8]


@given(step=STEPS, share=st.floats(0.0, 0.99))
def test_a_rate_is_told_by_the_step_below_it(step: int, share: float) -> None:
    assert search.step_of(search.factor(step + share)) == step


@given(threshold=st.floats(0.2, 5.0), guess=st.integers(-20, 20), slope=st.floats(0.2, 5.0))
def test_the_threshold_of_a_known_function_is_found(threshold: float, guess: int, slope: float) -> None:
    def attainment(step: int) -> float:
        return 0.95 - slope * math.log(search.factor(step) / threshold)

    found = search.highest(lambda step: attainment(step) >= 0.95, guess)
    assert search.crossing(attainment, 0.95, found) == pytest.approx(threshold, rel=1e-6)


def test_nothing_is_crossed_where_nothing_is_borne() -> None:
    assert search.crossing(lambda step: 0.0, 0.95, None) == 0.0


def test_a_crossing_lies_within_its_step() -> None:
    assert search.crossing(lambda step: 0.95 if step <= 3 else 0.0, 0.95, 3) == search.factor(3)
    assert search.crossing(lambda step: 1.0 if step <= 3 else 0.95 - 1e-12, 0.95, 3) == pytest.approx(search.factor(4))


@given(limits=st.lists(STEPS, min_size=1, max_size=7, unique=True), guess=STEPS, data=st.data())
def test_the_top_of_a_hill_is_climbed_to_from_anywhere(limits: list[int], guess: int, data: st.DataObject) -> None:
    top = data.draw(st.integers(0, len(limits) - 1))
    falling = sorted(limits, reverse=True)
    hill = [*sorted(falling[1 : top + 1]), falling[0], *falling[top + 1 :]]
    names = [str(index) for index in range(len(hill))]

    def is_borne(name: str, step: int) -> bool:
        return step <= hill[int(name)]

    start = data.draw(st.integers(0, len(hill) - 1))
    assert search.climb(names, start, is_borne, guess) == (str(top), max(hill))
    assert search.best_of(names, is_borne, guess) == (str(top), max(hill))


# Loads.


def test_promises_follow_the_quality() -> None:
    loose, tight = loads.classes(50), loads.classes(30)
    assert list(loose) == list(tight)
    for name, each in loose.items():
        assert tight[name].slo.ttft_s == each.slo.ttft_s
        assert tight[name].slo.tpot_s == pytest.approx(0.6 * (each.slo.tpot_s or 0.0))
    assert loads.long_class(24_000) == "long_24k"
    assert loads.long_class(24_001) == "long_36k"
    assert loads.long_class(10**6) in loose


@pytest.mark.parametrize("name", ["sh", "sx"])
@pytest.mark.parametrize("seed", loads.SEEDS)
def test_phases_shift_twice_and_fill_the_run(name: str, seed: int) -> None:
    load = loads.LOADS[name]
    spans = loads.spans_s(load, seed)
    assert [kind for kind, _, _ in spans] in ([0, 1, 0], [1, 0, 1])
    assert all(one[2] == two[1] for one, two in pairwise(spans))
    assert spans[0][1] == 0.0
    for kind in (0, 1):
        assert sum(end_s - start_s for each, start_s, end_s in spans if each == kind) == load.phase_s


def test_a_rate_is_the_mean_of_its_phases() -> None:
    for load in loads.LOADS.values():
        if load.phases:
            assert sum(sum(phase.values()) for phase in load.phases) / len(load.phases) == pytest.approx(1.0)


@needs_traces
@pytest.mark.parametrize("name", loads.LOADS)
def test_loads_are_the_same_each_time(name: str) -> None:
    assert TRACES is not None
    known = set(loads.classes(50))
    once, again = (loads.jobs(name, 10.0, 1, TRACES) for _ in range(2))
    assert once == again
    assert once != loads.jobs(name, 10.0, 2, TRACES)
    assert {job.service_class for job in once} <= known
    assert all(one.at_s <= two.at_s for one, two in pairwise(once))
    assert not any(job.block_hashes for job in once)
    assert len(once) / once[-1].at_s == pytest.approx(10.0, rel=0.1)


@needs_traces
@pytest.mark.parametrize("name", ["sh", "sx"])
def test_a_higher_rate_adds_requests_to_phases_that_stay(name: str) -> None:
    assert TRACES is not None
    load = loads.LOADS[name]
    slow, fast = (loads.jobs(name, rate, 0, TRACES) for rate in (8.0, 16.0))
    for kind, start_s, end_s in loads.spans_s(load, 0):
        traces = load.phases[kind]
        few, many = ([job for job in each if start_s <= job.at_s < end_s] for each in (slow, fast))
        assert len(few) == pytest.approx(8.0 * sum(traces.values()) * (end_s - start_s), rel=0.15)
        assert len(many) == pytest.approx(2 * len(few), rel=0.1)
        is_prompts = loads.CODE in traces
        assert any(job.service_class == "code" for job in few) == is_prompts


@needs_traces
def test_compressed_loads_keep_their_requests() -> None:
    assert TRACES is not None
    slow, fast = (loads.jobs("az", rate, 0, TRACES) for rate in (10.0, 20.0))
    assert [job[1:4] for job in slow] == [job[1:4] for job in fast]
    assert slow[-1].at_s == pytest.approx(2 * fast[-1].at_s)


# Deployments.

CELL = runs.Cell("st", 50, 4, 20)


def test_deployments_become_fleets() -> None:
    _, mixed = runs.fleet_of(CELL, "colocated")
    assert (mixed.instances, mixed.roles, mixed.fabric.bytes_s) == (4, (), 20e9)
    policy, split = runs.fleet_of(CELL, "static:P=3")
    assert [role.value for role in split.roles] == ["prefill"] * 3 + ["decode"]
    assert policy.binder is not None
    assert runs.fleet_of(CELL, "static:P=half")[1].roles == runs.fleet_of(CELL, "static:P=2")[1].roles
    assert runs.fleet_of(CELL, "colocated")[0].binder is None
    assert runs.fleet_of(CELL, "colocated:round_robin:chunk=512")[0].name == "round_robin"
    roles = runs.fleet_of(CELL, "distserve:P=1,M=2")[1].roles
    assert [role.value for role in roles] == ["prefill", "mixed", "mixed", "decode"]
    with pytest.raises(ValueError, match="are not 3 prefilling and 2 mixed"):
        runs.fleet_of(CELL, "distserve:P=3,M=2")
    with pytest.raises(ValueError, match="unknown policy"):
        runs.fleet_of(CELL, "nothing")


def test_every_row_can_be_run() -> None:
    for instances in disaggregation.INSTANCES:
        cell = runs.Cell("st", 50, instances, 20)
        for name in ("colocated", "static", "hyperflexis", *disaggregation.RIVALS):
            texts = disaggregation.tries(name, instances)
            assert texts
            for text in texts:
                policy, fleet = runs.fleet_of(cell, text)
                assert len(fleet.roles) in (0, instances)
                assert (policy.binder is not None) == runs.moves_kv(text)


def test_tunings_stand_behind_the_beginning() -> None:
    assert "polyserve:P=half,credit_spend_max=0.0,packs=false,chunk=8192" in disaggregation.begun("polyserve", "P=half")
    assert disaggregation.begun("distserve", "P=half") == ("distserve:P=half",)


def test_results_are_kept_by_what_they_follow_from(tmp_path: Path) -> None:
    fast = runs.Cell("st", 50, 4, 40)

    def file(cell: runs.Cell, deployment: str, step: int = 0, seed: int = 0) -> Path:
        return runs.Bench(cell, tmp_path, kept=tmp_path).file(runs.Run(cell, deployment, step, seed))

    assert file(CELL, "colocated") == file(fast, "colocated")
    others = {file(CELL, "static:P=1"), file(fast, "static:P=1"), file(CELL, "static:P=2")}
    assert len({*others, file(CELL, "static:P=1", 1), file(CELL, "static:P=1", 0, 1), file(CELL, "colocated")}) == 6


# Page.


def row(rps: float, deployment: str) -> dict[str, Any]:
    at_step = {"requests": [100, 120], "attainment": [0.95, 0.97]}
    return {"deployment": deployment, "step": 1, "rps": rps, "source": "abc", "at_step": at_step}


def results() -> dict[str, Any]:
    cells = []
    for load, ours in (("st", 0.98), ("sh", 1.2)):
        for link_gb_s in (20, 40):
            figures = {
                "colocated": row(10.0, "colocated"),
                "static": row(20.0, "static:P=3"),
                "hyperflexis": row(20.0 * ours, "hyperflexis"),
                "half": row(15.0, "static:P=half"),
            }
            cells.append({"load": load, "quality": 30, "instances": 4, "link_gb_s": link_gb_s, "rows": figures})
    machine = {"commit": "abc", "cores": 2, "cpu": "some", "python": "3", "date": "2026-11-20T00:00:00+00:00"}
    return {
        "machine": machine,
        "took": {"simulations": 7, "cpu_seconds": 120},
        "profile": "some/model",
        "kv_token_bytes": 1000,
        "seeds": [0, 1],
        "fixed_share": {"30": 0.48},
        "classes": {"code": {"ttft_s": 0.8, "tpot_s": 0.1}},
        "qualities": {"50": 1.0, "30": 0.6},
        "loads": {name: loads.described(name) for name in ("st", "sh")},
        "cells": cells,
    }


def test_the_page_says_what_was_asked_and_found() -> None:
    text = page.page(results())
    assert "Reached: kept in 4 of 4 cells; mean 1.09, lowest 0.98 (st, Q 30, 4 instances, 40 GB/s)" in text
    assert "Reached: kept in 2 of 2 cells; mean 1.20, lowest 1.20" in text
    assert "Reached: 2.18 against 1.50 (apart, half and half), which is 1.45, in 4 cells." in text
    assert "| **ours** | 1.96 | 1.96 | 2.40 | 2.40 | 2.18 |" in text
    assert "| st | 3 | 3 |" in text
    assert "| sh | shifts, prompts and conversations | 200 s, phases of 100 s | 100–120 | 95 % |" in text


def test_a_rival_is_compared_where_it_was_run() -> None:
    found = results()
    for cell in found["cells"]:
        if cell["load"] == "sh":
            del cell["rows"]["half"]
    text = page.page(found)
    assert "1.96 against 1.50 (apart, half and half), which is 1.31, in 2 cells." in text
    assert "| apart, half and half | 1.50 | 1.50 | – | – | 1.50 |" in text


def test_the_page_tells_what_was_missed() -> None:
    found = results()
    found["cells"][0]["rows"]["hyperflexis"]["rps"] = 10.0
    text = page.page(found)
    assert "**Missed**: kept in 3 of 4 cells" in text
    assert "lowest 0.50 (st, Q 30, 4 instances, 20 GB/s)" in text


def test_there_is_no_page_without_what_it_is_about() -> None:
    found = results()
    assert page.is_complete(found)
    del found["cells"][0]["rows"]["static"]
    assert not page.is_complete(found)
    assert not page.is_complete({**found, "cells": []})


def test_new_rows_join_those_that_were_there() -> None:
    before = results()["cells"]
    anew = copy.deepcopy(before[:1])
    anew[0]["rows"] = {"hyperflexis": row(99.0, "hyperflexis")}
    cells = disaggregation.merged(anew, before)
    assert len(cells) == len(before)
    assert page.rps(cells[0], "hyperflexis") == 99.0
    assert page.rps(cells[0], "static") == page.rps(before[0], "static")


def test_the_raw_file_is_read_back_as_written(tmp_path: Path) -> None:
    disaggregation.write(tmp_path / "results.json", results())
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == results()


def test_it_is_skipped_where_traces_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(os.environ, trace_files.TRACES_ENV, raising=False)
    monkeypatch.setattr("sys.argv", ["disaggregation.py", "--quick", "--traces", str(tmp_path)])
    assert disaggregation.main() == 0
    assert "skipped" in capsys.readouterr().err
