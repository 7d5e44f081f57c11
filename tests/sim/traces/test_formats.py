"""Each table format on a few hand-written rows: found by its first line, read to the token."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperflexis.sim.job import Job
from hyperflexis.sim.traces import FORMATS, Options, TraceError, detect, open_trace
from sim.traces.files import write, write_rows

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"


def rows(path: Path, options: Options | None = None) -> list[tuple[float, int, int]]:
    return [(round(job.at_s, 6), *job[1:3]) for job in open_trace(path, options=options or Options())]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_azure_2023_counts_from_its_first_row(tmp_path: Path, suffix: str) -> None:
    text = AZURE + "2023-11-16 23:59:59.5000000,4808,10\r\n2023-11-17 00:00:01.2500000,3180,8"
    path = write(tmp_path / f"a.csv{suffix}", text)
    assert rows(path) == [(0.0, 4808, 10), (1.75, 3180, 8)]
    assert detect(path) == "azure"


def test_azure_2024_has_zones_and_whole_seconds(tmp_path: Path) -> None:
    text = AZURE + "2024-05-10 00:00:00.009930+00:00,10,1\n2024-05-10 00:01:01+00:00,20,2\n"
    assert rows(write(tmp_path / "a.csv", text)) == [(0.0, 10, 1), (60.99007, 20, 2)]


def test_azure_origin_keeps_services_in_step(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", AZURE + "2023-11-16 18:17:03.5,1,1\n2023-11-16 18:17:04,1,1\n")
    assert rows(path, Options(origin="2023-11-16 18:15:00")) == [(123.5, 1, 1), (124.0, 1, 1)]
    with pytest.raises(TraceError, match="origin: no timestamp"):
        open_trace(path, options=Options(origin="yesterday"))
    with pytest.raises(TraceError, match=r"line 2: arrival time is -\d+"):
        list(open_trace(path, options=Options(origin="2023-11-17 00:00:00")))


@pytest.mark.parametrize(
    "clock",
    [
        *("", "2023-11-16", "2023-11-16 18:1", "2023-13-16 18:17:03", "2023-11-16 25:17:03", "2023-11-16 18:17:61.5"),
        *("2023-11-16 18:17:nan", "2023-11-16_18:17:03", "2023-11-16 18-17:03", "2023-11-16 18:17:03+02:00"),
    ],
)
def test_azure_clock_that_is_none_is_named(tmp_path: Path, clock: str) -> None:
    path = write(tmp_path / "a.csv", f"{AZURE}2023-11-16 18:17:03,1,1\n{clock},1,1\n")
    with pytest.raises(TraceError, match="line 3: no "):
        list(open_trace(path))


BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
BURST_SESSIONS = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"


def test_burstgpt_with_and_without_sessions(tmp_path: Path) -> None:
    old = write(tmp_path / "old.csv", f"{BURST}\n5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,7,2,9,API log\n")
    new = write(tmp_path / "new.csv", f"{BURST_SESSIONS}\n5.0,s,1.5,ChatGPT,472,18,490,API log\n")
    assert rows(old) == [(0.0, 472, 18), (40.0, 7, 2)]
    assert rows(new) == [(0.0, 472, 18)]
    assert detect(new) == "burstgpt"


def test_burstgpt_fails_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "b.csv", f"{BURST}\n5,m,4,0,4,API log\n6,m,4,1,5,API log\n")
    with pytest.raises(TraceError, match="line 2: answer of 0 tokens"):
        list(open_trace(path))
    trace = open_trace(path, options=Options(skip_bad=True))
    assert [job.output_tokens for job in trace] == [1]
    assert trace.skipped == 1


def test_vtc(tmp_path: Path) -> None:
    text = "req_id,model_dir,adapter_dir,prompt_len,output_len,req_time\n0,m,a,13,199,0.0\n1,m,b,36,137,0.25\n"
    assert rows(write(tmp_path / "v.csv", text)) == [(0.0, 13, 199), (0.25, 36, 137)]


def test_lengths_get_arrivals_of_a_rate(tmp_path: Path) -> None:
    text = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n" + "74,918,992,0.1\n" * 4000
    path = write(tmp_path / "l.csv", text)
    found = list(open_trace(path, options=Options(arrivals_per_s=8.0, seed=1)))
    assert found[-1].at_s == pytest.approx(500, rel=0.05)
    assert found == list(open_trace(path, options=Options(arrivals_per_s=8.0, seed=1)))
    assert found != list(open_trace(path, options=Options(arrivals_per_s=8.0, seed=2)))
    other = write(tmp_path / "m.csv", text)
    assert found != list(open_trace(other, options=Options(arrivals_per_s=8.0, seed=1)))
    with pytest.raises(TraceError, match="give arrivals_per_s"):
        open_trace(path)


def test_own_format_names_its_class(tmp_path: Path) -> None:
    row = {"at_s": 0.5, "prompt_tokens": 3, "output_tokens": 2}
    path = write_rows(tmp_path / "own.jsonl.gz", [row, row | {"class": "chat"}])
    assert list(open_trace(path)) == [Job(0.5, 3, 2, ""), Job(0.5, 3, 2, "chat")]


def test_every_format_can_be_named_and_others_cannot(tmp_path: Path) -> None:
    path = write(tmp_path / "v.csv", "a,b\n1,2\n")
    with pytest.raises(TraceError, match="no known format begins with 'a, b'"):
        open_trace(path)
    with pytest.raises(TraceError, match=r"unknown format 'azur'; did you mean 'azure'; there are: .*replay"):
        open_trace(path, "azur")
    for name in sorted(FORMATS.keys() - {"sessions", "lengths"}):
        with pytest.raises(TraceError):
            list(open_trace(path, name))


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"block_tokens": 0}, "block_tokens = 0: 1 or more"),
        ({"seed": -1}, "seed = -1: 0 or more"),
        ({"cv": float("nan")}, "cv = nan: 0 or more"),
        ({"arrivals_per_s": 0.0}, "arrivals_per_s = 0.0: more than 0"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, float], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Options(**wrong)  # type: ignore[arg-type]


def test_units_of_look_alikes_are_not_guessed(tmp_path: Path) -> None:
    row = {"chat_id": 1, "parent_chat_id": -1, "timestamp": 61.1, "input_length": 5, "output_length": 1, "hash_ids": []}
    path = write_rows(tmp_path / "b.jsonl", [row])
    with pytest.raises(TraceError, match="no known format"):
        open_trace(path)
    options = Options(timestamp_unit_s=1.0, hash_tokens=16)
    assert [job.at_s for job in open_trace(path, "replay", options)] == [61.1]
