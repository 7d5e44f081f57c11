"""Generated requests have the rates, gaps and lengths that the tables describe."""

from __future__ import annotations

import csv
import gzip
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from hyperflexis.sim.traces import Options, TraceError, open_trace
from hyperflexis.sim.traces.arrivals import unit_gaps, weibull_cv, weibull_shape
from sim.traces.files import shared, write, write_rows

HEADER = "client_id,timestamp,rate,cv,pattern,param1,param2\n"
RATES = [
    "3,0,5.0,2.0,Gamma,0.25,0.8",
    "3,600,0,0,,0,0",
    "3,1200,10.0,0.5,Weibull,1,1",
    "8,0,0.5,1.0,Gamma,1,2",
    "8,600,2.0,3.0,Weibull,1,1",
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lengths = [
        {"client_id": 3, "window_start": 0, "input_tokens": {}, "output_tokens": {}},
        {"client_id": 3, "window_start": 21600, "input_tokens": {"7": 1.0}, "output_tokens": {"0": 0.5, "4": 0.5}},
        {
            "client_id": 8,
            "window_start": 0,
            "text_tokens": {"10": 1.0},
            "image_tokens": {"100": 1.0},
            "image_count": {"0": 0.5, "2": 0.5},
            "output_tokens": {"9": 1.0},
        },
    ]
    write_rows(tmp_path / "servegen_x_lengths_part1.jsonl.gz", lengths)
    return write(tmp_path / "servegen_x_rates_part1.csv.gz", HEADER + "\n".join(RATES) + "\n")


def test_counts_and_gaps_are_the_tables(path: Path) -> None:
    jobs = list(open_trace(path))
    first = np.array([job.at_s for job in jobs if job.prompt_tokens == 7 and job.at_s < 600])
    last = np.array([job.at_s for job in jobs if job.prompt_tokens == 7 and job.at_s >= 1200])
    assert (len(first), len(last)) == (3000, 6000)
    assert np.std(np.diff(first)) / np.mean(np.diff(first)) == pytest.approx(2.0, rel=0.1)
    assert np.std(np.diff(last)) / np.mean(np.diff(last)) == pytest.approx(0.5, rel=0.1)
    assert sum(600 <= job.at_s < 1200 for job in jobs) == 1200


def test_lengths_are_the_nearest_windows(path: Path) -> None:
    jobs = list(open_trace(path))
    assert {job.prompt_tokens for job in jobs} == {7, 10, 210}
    outputs = np.array([job.output_tokens for job in jobs if job.prompt_tokens == 7])
    assert set(outputs.tolist()) == {1, 4}
    assert np.mean(outputs == 4) == pytest.approx(0.5, abs=0.03)
    share = np.mean([job.prompt_tokens == 10 for job in jobs if job.prompt_tokens != 7])
    assert share == pytest.approx(0.5, abs=0.05)


def test_selections_are_parts_of_the_whole(path: Path) -> None:
    whole = list(open_trace(path))
    client = list(open_trace(path, options=Options(clients=(8,))))
    assert client == [job for job in whole if job.prompt_tokens != 7]
    window = list(open_trace(path, options=Options(window_s=(300.0, 900.0))))
    assert window == [job for job in whole if 300 <= job.at_s < 900]
    assert list(open_trace(path, options=Options(seed=1))) != whole
    with pytest.raises(TraceError, match=r"no client 4; there are: \[3, 8\]"):
        open_trace(path, options=Options(clients=(4,)))


def test_total_rate_can_be_asked_for(path: Path) -> None:
    jobs = list(open_trace(path, options=Options(arrivals_per_s=1.0)))
    assert len(jobs) == pytest.approx(1800, abs=3)
    assert sum(job.prompt_tokens == 7 for job in jobs) / len(jobs) == pytest.approx(9000 / 10500, abs=0.01)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("3,100,1,1,Gamma,1,1", "timestamp 100 begins no window of 600 s"),
        ("3,600,-1,1,Gamma,1,1", "rate -1.0, cv 1.0"),
        ("3,600,nan,1,Gamma,1,1", "rate nan, cv 1.0"),
        ("3,600,1,1,Pareto,1,1", "unknown pattern 'Pareto'"),
    ],
)
def test_bad_rates_are_refused(path: Path, row: str, reason: str) -> None:
    write(path, HEADER + "\n".join([*RATES, row]))
    with pytest.raises(TraceError, match=f"line 7: {reason}"):
        open_trace(path)
    trace = open_trace(path, options=Options(skip_bad=True))
    assert trace.skipped == 1


def test_lengths_must_be_there_and_whole(path: Path) -> None:
    lengths = path.with_name("servegen_x_lengths_part1.jsonl.gz")
    write_rows(lengths, [{"client_id": 3, "window_start": 0, "input_tokens": {"7": -1.0}, "output_tokens": {"4": 1}}])
    with pytest.raises(TraceError, match=r"lengths_part1.*line 1: no map of lengths"):
        open_trace(path)
    write_rows(lengths, [{"client_id": 3, "window_start": 0, "input_tokens": {"7": 1.0}, "output_tokens": {"4": 1}}])
    with pytest.raises(TraceError, match="no lengths of client 8"):
        open_trace(path)
    lengths.unlink()
    with pytest.raises(TraceError, match=r"its lengths are not beside it: no servegen_x_lengths_part1\.jsonl"):
        open_trace(path)


@pytest.mark.parametrize("cv", [0.2, 0.5, 1.0, 2.0, 5.0, 20.0])
def test_weibull_shape_gives_its_cv(cv: float) -> None:
    assert weibull_cv(weibull_shape(cv)) == pytest.approx(cv, rel=1e-6)


@pytest.mark.parametrize("pattern", ["Gamma", "Weibull"])
@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 2.0])
def test_gaps_have_mean_one_and_their_cv(pattern: str, cv: float) -> None:
    gaps = unit_gaps(pattern, cv, 100_000, np.random.default_rng(1))
    assert gaps.mean() == pytest.approx(1.0, rel=0.03)
    assert gaps.std() == pytest.approx(cv, rel=0.05)


def test_published_tables_are_met() -> None:
    """Per client and window: the count exactly, the CV in the middle of all windows."""
    path = shared("servegen_deepseek-r1_rates_part1.csv.gz")
    end_s = 3 * 3600
    with gzip.open(path, "rt") as file:
        rows = [row for row in csv.DictReader(file) if int(row["timestamp"]) < end_s]
    jobs = list(open_trace(path, options=Options(window_s=(0.0, float(end_s)))))
    assert len(jobs) == pytest.approx(sum(float(row["rate"]) for row in rows) * 600, abs=1)
    client = max({row["client_id"] for row in rows}, key=lambda one: sum(_rate(row, one) for row in rows))
    own = open_trace(path, options=Options(window_s=(0.0, float(end_s)), clients=(int(client),)))
    windows: dict[int, list[float]] = defaultdict(list)
    for job in own:
        windows[int(job.at_s // 600) * 600].append(job.at_s)
    ratios = []
    for row in rows:
        if row["client_id"] == client and float(row["rate"]) > 0.1:
            gaps = np.diff(windows[int(row["timestamp"])])
            assert len(gaps) + 1 == round(float(row["rate"]) * 600)
            ratios.append(gaps.std() / gaps.mean() / float(row["cv"]))
    assert np.median(ratios) == pytest.approx(1.0, abs=0.1)


def _rate(row: dict[str, str], client: str) -> float:
    return float(row["rate"]) if row["client_id"] == client else 0.0


def test_fields_of_the_published_lengths_are_known() -> None:
    path = shared("servegen_mm-image_lengths_part1.jsonl.gz")
    with gzip.open(path, "rt") as file:
        assert {"text_tokens", "image_tokens", "image_count", "output_tokens"} <= set(json.loads(file.readline()))
