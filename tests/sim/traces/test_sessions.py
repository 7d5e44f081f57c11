"""Closed loops: turns follow from answers, with prefixes of their own session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hyperflexis.sim.job import Job
from hyperflexis.sim.traces import Options, TraceError, open_trace
from sim.traces.files import write_rows

RATE = Options(arrivals_per_s=1.0, block_tokens=16)


def request(prompt: int, output: int, think_s: float | None = 0.0) -> dict[str, Any]:
    ids = list(range(prompt // 64))
    return {"t": 0.0, "type": "n", "in": prompt, "out": output, "hash_ids": ids, "think_time": think_s}


def session(name: str, *requests: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "block_size": 64, "hash_id_scope": "local", "requests": list(requests)}


def turns(job: Job, answer_s: float = 2.0) -> list[Job]:
    """A session played with answers that all take as long."""
    found = [job]
    while found[-1].follow_up is not None:
        following = found[-1].follow_up(found[-1].at_s + answer_s)
        assert following is not None
        found.append(following)
    return found


@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_turn_comes_a_pause_after_the_answer(tmp_path: Path, suffix: str) -> None:
    path = write_rows(
        tmp_path / f"s.jsonl{suffix}", [session("a", request(128, 5), request(256, 6, 12.0), request(300, 7, None))]
    )
    first, second, third = turns(next(open_trace(path, options=RATE)))
    assert [each.prompt_tokens for each in (first, second, third)] == [128, 256, 300]
    assert second.at_s == first.at_s + 2.0 + 12.0
    assert third.at_s == second.at_s + 2.0
    assert second.block_hashes[:8] == first.block_hashes
    assert all(a is b for a, b in zip(second.block_hashes, first.block_hashes, strict=False))
    assert len(third.block_hashes) == 256 // 16


def test_sessions_share_nothing_and_arrive_by_the_seed(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "s.jsonl", [session(str(index), request(128, 5)) for index in range(500)])
    jobs = list(open_trace(path, options=RATE))
    assert len({hash_ for job in jobs for hash_ in job.block_hashes}) == 500 * 8
    assert jobs[-1].at_s == pytest.approx(500, rel=0.15)
    assert [job.at_s for job in jobs] == [job.at_s for job in open_trace(path, options=RATE)]


def test_subagents_take_their_place(tmp_path: Path) -> None:
    nested = {"t": 1.0, "type": "subagent", "requests": [request(70, 1), request(80, 1, 1.0)]}
    path = write_rows(tmp_path / "s.jsonl", [session("a", request(64, 5), nested, request(90, 7))])
    assert [each.prompt_tokens for each in turns(next(open_trace(path, options=RATE)))] == [64, 70, 80, 90]


def test_bad_turns_are_left_out_one_by_one(tmp_path: Path) -> None:
    rows = [session("a", request(64, 5), request(65, 0), request(66, 1)), session("b", request(0, 1)), {"id": "c"}]
    path = write_rows(tmp_path / "s.jsonl", rows)
    with pytest.raises(TraceError, match="line 1: answer of 0 tokens"):
        list(open_trace(path, options=RATE))
    trace = open_trace(path, options=Options(arrivals_per_s=1.0, skip_bad=True))
    (job,) = trace
    assert [each.prompt_tokens for each in turns(job)] == [64, 66]
    assert trace.skipped == 3


def test_long_pauses_can_be_shortened(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "s.jsonl", [session("a", request(64, 5), request(65, 1, 86400.0))])
    first, second = turns(next(open_trace(path, options=Options(arrivals_per_s=1.0, think_s_max=60.0))))
    assert second.at_s == first.at_s + 62.0


def test_rate_and_block_are_asked_for(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "s.jsonl", [session("a", request(64, 5))])
    with pytest.raises(TraceError, match="give arrivals_per_s"):
        open_trace(path)
    with pytest.raises(TraceError, match="does not divide the trace's blocks of 64"):
        list(open_trace(path, options=Options(arrivals_per_s=1.0, block_tokens=128)))


# Replay files of serving benchmarks.


def test_replay_takes_the_usual_names(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"timestamp": 500, "input_length": 32, "output_length": 2, "session_id": "x"},
        {"at_s": 0.5, "prompt_tokens": 32, "completion_tokens": 2},
        {"arrival_time": 0.5, "prompt_len": 32, "output_len": 2},
        {"arrival_time": 0.5, "input_tokens": 32, "output_tokens": 2},
    ]
    for row in rows:
        trace = open_trace(write_rows(tmp_path / "r.jsonl", [row]))
        assert list(trace) == [Job(0.5, 32, 2, "")]
        assert trace.format == "replay"


def test_replay_expands_hashes_of_a_size(tmp_path: Path) -> None:
    row = {"timestamp": 1, "input_length": 64, "output_length": 2, "hash_ids": [1, 2], "model": "m"}
    path = write_rows(tmp_path / "r.jsonl", [row])
    (job,) = open_trace(path, options=Options(hash_tokens=32))
    assert len(job.block_hashes) == 4
    with pytest.raises(TraceError, match="block_tokens = 48 does not divide"):
        list(open_trace(path, options=Options(block_tokens=48)))


def test_replay_turn_adds_to_its_history(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "session_id": "a", "input_length": 100, "output_length": 20},
        {"session_id": "a", "input_length": 30, "output_length": 10, "delay": 1500},
        {"timestamp": 10, "session_id": "b", "input_length": 8, "output_length": 1},
        {"session_id": "a", "input_length": 30, "output_length": 10, "delay": 1500},
    ]
    path = write_rows(tmp_path / "r.jsonl", rows)
    with pytest.raises(TraceError, match="line 4: a turn of session 'a' must follow the row before it"):
        list(open_trace(path))
    trace = open_trace(path, options=Options(skip_bad=True))
    first, other = trace
    _, second = turns(first)
    assert (second.at_s, second.prompt_tokens) == (3.5, 150)
    assert second.block_hashes[:6] == first.block_hashes
    assert other.follow_up is None
    assert trace.skipped == 1


def test_replay_turn_past_the_context_is_counted_once(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "session_id": "a", "input_length": 100, "output_length": 20},
        {"session_id": "a", "input_length": 30, "output_length": 10, "delay": 1500},
    ]
    path = write_rows(tmp_path / "r.jsonl", rows)
    with pytest.raises(TraceError, match=r"line 2: 160 tokens of prompt and answer, over context_tokens_max = 150$"):
        list(open_trace(path, options=Options(context_tokens_max=150)))
    trace = open_trace(path, options=Options(context_tokens_max=150, skip_bad=True))
    assert [job.follow_up for job in trace] == [None]
    assert trace.skipped == 1
