"""Bad input says file, line and reason in one line, or is left out and counted."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.sim.traces import Options, TraceError, open_trace
from sim.traces.files import write, write_rows

HEADER = "req_id,prompt_len,output_len,req_time\n"

BAD = {
    "0,0,5,1.0": "prompt of 0 tokens",
    "0,-4,5,1.0": "prompt of -4 tokens",
    "0,4,0,1.0": "answer of 0 tokens",
    "0,4,-1,1.0": "answer of -1 tokens",
    "0,four,5,1.0": "prompt_len is no whole number: 'four'",
    "0,4.5,5,1.0": "prompt_len is no whole number: '4.5'",
    "0,,5,1.0": "prompt_len is no whole number: ''",
    "0,4,5,soon": "req_time is no number: 'soon'",
    "0,4,5,nan": "arrival time is nan s",
    "0,4,5,inf": "arrival time is inf s",
    "0,4,5,0.25": "unsorted: arrives at 0.25 s, after a row at 0.5 s",
    "0,4,5": "3 columns where the header has 4",
    "0,60,50,1.0": "110 tokens of prompt and answer, over context_tokens_max = 100",
    "": "empty line",
    "\ufffd\x00": "1 columns where the header has 4",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_row_is_named_or_skipped(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "t.csv", f"{HEADER}0,4,5,0.5\n{line}\n1,4,5,2.0\n")
    options = Options(context_tokens_max=100)
    with pytest.raises(TraceError) as caught:
        list(open_trace(path, options=options))
    assert str(caught.value) == f"{path}, line 3: {BAD[line]}"
    trace = open_trace(path, options=Options(context_tokens_max=100, skip_bad=True))
    assert [job.at_s for job in trace] == [0.5, 2.0]
    assert trace.skipped == 1


BAD_JSON = {
    '{"at_s": 1.0, "prompt_tokens": 4': "no JSON: ",
    "[1]": "no JSON object: [1]",
    '{"at_s": 1' + "0" * 400 + ', "prompt_tokens": 4, "output_tokens": 4}': "arrival time is inf",
    '{"at_s": 1.0, "prompt_tokens": 9999999999999, "output_tokens": 4}': "10000000000003 tokens",
    '{"at_s": 1.0, "output_tokens": 4}': "no prompt_tokens",
    '{"at_s": "x", "prompt_tokens": 4, "output_tokens": 4}': "at_s is no number: 'x'",
    '{"at_s": NaN, "prompt_tokens": 4, "output_tokens": 4}': "arrival time is nan s",
    '{"at_s": 1.0, "prompt_tokens": true, "output_tokens": 4}': "prompt_tokens is no whole number: True",
    '{"at_s": 1.0, "prompt_tokens": 4, "output_tokens": 4, "class": 3}': "class is no text: 3",
}


@pytest.mark.parametrize("line", BAD_JSON)
def test_bad_json_row_is_named_or_skipped(tmp_path: Path, line: str) -> None:
    good = '{"at_s": 0.5, "prompt_tokens": 4, "output_tokens": 4}'
    path = write(tmp_path / "t.jsonl", f"{good}\n{line}\n{good}\n")
    with pytest.raises(TraceError) as caught:
        list(open_trace(path))
    assert str(caught.value).startswith(f"{path}, line 2: {BAD_JSON[line]}")
    trace = open_trace(path, options=Options(skip_bad=True))
    assert len(list(trace)) == 2
    assert trace.skipped == 1


@given(flags=st.lists(st.booleans(), min_size=1, max_size=60))
def test_skipped_and_read_make_all(tmp_path_factory: pytest.TempPathFactory, flags: list[bool]) -> None:
    lines = [f"{index},{4 if flag else 0},5,{index}.0" for index, flag in enumerate(flags)]
    path = write(tmp_path_factory.mktemp("t") / "t.csv", HEADER + "\n".join(lines))
    trace = open_trace(path, options=Options(skip_bad=True))
    if not any(flags):
        with pytest.raises(TraceError, match=f"no requests in it, {len(flags)} bad ones left out"):
            list(trace)
        return
    assert len(list(trace)) == sum(flags)
    assert trace.skipped == flags.count(False)


@pytest.mark.parametrize(("text", "reason"), [("", "empty file"), (HEADER, "no requests"), ("\n\n", "empty file")])
def test_empty_trace_is_an_error(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(TraceError, match=reason):
        list(open_trace(write(tmp_path / "t.csv", text)))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none\.csv: No such file or directory"):
        open_trace(tmp_path / "none.csv")
    with pytest.raises(TraceError, match="Is a directory"):
        open_trace(tmp_path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_file_is_one_bad_row(tmp_path: Path, suffix: str) -> None:
    rows = "".join(f"{index},{index * 7919 % 3001 + 1},5,{index}.0\n" for index in range(30_000))
    path = write(tmp_path / f"t.csv{suffix}", HEADER + rows)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(TraceError, match=r"line \d+: .*the file ends in the middle"):
        list(open_trace(path))
    trace = open_trace(path, options=Options(skip_bad=True))
    assert 100 < len(list(trace)) < 30_000
    assert trace.skipped == 1


def test_zst_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "t.csv.zst", HEADER + "0,4,5,0.5\n")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(TraceError, match="pip install zstandard"):
        open_trace(path)


@pytest.mark.parametrize("magic", [b"\x1f\x8b", b"\x28\xb5\x2f\xfd"])
def test_damaged_compression_is_an_error(tmp_path: Path, magic: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(magic + b"\x07no such thing" * 4)
    with pytest.raises(TraceError, match="damaged compression"):
        open_trace(path, "vtc")


def test_damage_in_the_middle_of_gzip(tmp_path: Path) -> None:
    data = bytearray(gzip.compress((HEADER + "0,4,5,0.5\n" * 50_000).encode()))
    data[len(data) // 2 :] = b"\xff" * (len(data) - len(data) // 2)
    (tmp_path / "t.csv.gz").write_bytes(data)
    with pytest.raises(TraceError, match=r"line \d+: "):
        list(open_trace(tmp_path / "t.csv.gz"))


def test_missing_column_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "req_time,prompt_len\n1,2\n")
    with pytest.raises(TraceError, match="line 1: the header has no column output_len"):
        open_trace(path, "vtc")


def test_blank_lines_at_the_end_are_none(tmp_path: Path) -> None:
    row = {"at_s": 0.5, "prompt_tokens": 3, "output_tokens": 2}
    path = write_rows(tmp_path / "t.jsonl", [row])
    path.write_text(path.read_text() + "\n\n")
    assert len(list(open_trace(path))) == 1
