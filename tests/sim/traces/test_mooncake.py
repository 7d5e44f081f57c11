"""Mooncake's prefixes and ticks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.sim.job import Job
from hyperflexis.sim.traces import Options, TraceError, open_trace
from hyperflexis.sim.traces.mooncake import spread
from hyperflexis.sim.traces.prefixes import Prefixes
from sim.traces.files import write_rows


def row(at_ms: int, tokens: int, *ids: int) -> dict[str, object]:
    return {"timestamp": at_ms, "input_length": tokens, "output_length": 5, "hash_ids": list(ids)}


def test_shared_ids_share_blocks_and_their_bytes(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "m.jsonl", [row(0, 1100, 7, 8, 9), row(0, 1030, 7, 8, 10)])
    first, second = open_trace(path, options=Options(block_tokens=128))
    assert (len(first.block_hashes), len(second.block_hashes)) == (1100 // 128, 1030 // 128)
    assert all(a is b for a, b in zip(first.block_hashes, second.block_hashes, strict=False))
    assert len(set(first.block_hashes)) == 8
    assert {len(each) for each in first.block_hashes} == {16}


def test_hashes_are_the_same_each_time_and_differ_between_files(tmp_path: Path) -> None:
    one, other = (write_rows(tmp_path / name, [row(0, 1024, 7, 8)]) for name in ("a.jsonl", "b.jsonl"))
    hashes = next(open_trace(one)).block_hashes
    assert hashes == next(open_trace(one)).block_hashes
    assert not set(hashes) & set(next(open_trace(other)).block_hashes)
    assert not set(hashes) & set(next(open_trace(one, options=Options(scope="again"))).block_hashes)


@given(tokens=st.integers(1, 3000), block=st.sampled_from([1, 2, 16, 64, 512]), ids=st.lists(st.integers(0, 9)))
def test_only_whole_blocks_that_ids_reach(tokens: int, block: int, ids: list[int]) -> None:
    hashes = Prefixes("", 512, block).of(ids, tokens)
    assert len(hashes) == min(tokens // block, len(ids) * (512 // block))


def test_block_that_does_not_divide_is_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "m.jsonl", [row(0, 10)])
    with pytest.raises(TraceError, match="block_tokens = 48 does not divide the trace's blocks of 512"):
        open_trace(path, options=Options(block_tokens=48))


def test_one_tick_is_spread_over_it(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "m.jsonl", [row(at, 10) for at in (0, 0, 0, 3000, 4000, 4000, 60000, 60000)])
    assert [job.at_s for job in open_trace(path)] == [0, 1, 2, 3, 4, 5.5, 60, 61.5]
    plain = open_trace(path, options=Options(spread=False))
    assert [job.at_s for job in plain] == [0, 0, 0, 3, 4, 4, 60, 60]


@given(gaps=st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.1, 3.0, 40.0]), min_size=1, max_size=40))
def test_spreading_keeps_order_and_moves_less_than_a_tick(gaps: list[float]) -> None:
    at = [sum(gaps[: index + 1]) for index in range(len(gaps))]
    jobs = [Job(at_s, index + 1, 1, "") for index, at_s in enumerate(at)]
    found = list(spread(jobs, 3.0))
    assert [job.prompt_tokens for job in found] == [job.prompt_tokens for job in jobs]
    assert [job.at_s for job in found] == sorted(job.at_s for job in found)
    assert all(0 <= job.at_s - before.at_s < 3.0 for job, before in zip(found, jobs, strict=True))
