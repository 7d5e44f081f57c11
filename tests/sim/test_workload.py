"""Cutting, turning, scaling and merging: nothing is lost, order holds, bursts keep their shape."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.sim.job import Job
from hyperflexis.sim.traces import Options, TraceError
from hyperflexis.sim.workload import Band, Generator, Stream, measure, mix
from sim.traces.files import write


def source(instants: Sequence[float]) -> Generator:
    """A generator of jobs at these instants, numbered by their prompts."""

    def generate(seed: int) -> Iterable[Job]:
        return (Job(at_s, index + 1, 1, "own") for index, at_s in enumerate(instants))

    return generate


def played(stream: Stream) -> list[tuple[float, int]]:
    return [(job.at_s, job.prompt_tokens) for job in mix([stream])]


INSTANTS = st.lists(st.floats(0, 1000), min_size=1, max_size=40).map(sorted)


@given(instants=INSTANTS, rate=st.floats(0.01, 100))
def test_scaling_keeps_order_and_ratio_of_gaps(instants: list[float], rate: float) -> None:
    found = played(Stream(source(instants), rate=rate))
    assert [number for _, number in found] == list(range(1, len(instants) + 1))
    assert all(before <= after for (before, _), (after, _) in pairwise(found))
    for (at_s, _), original_s in zip(found, instants, strict=True):
        assert at_s * rate == pytest.approx(original_s, rel=1e-9, abs=1e-9)


@given(instants=INSTANTS, rotate_s=st.floats(0, 3000))
def test_rotation_is_a_permutation_in_order(instants: list[float], rotate_s: float) -> None:
    stream = Stream(source(instants), rotate_s=rotate_s)
    found, length_s = played(stream), measure(stream).length_s
    assert sorted(number for _, number in found) == list(range(1, len(instants) + 1))
    assert all(before <= after for (before, _), (after, _) in pairwise(found))
    shift_s = rotate_s % length_s
    for at_s, number in found:
        assert 0 <= at_s <= length_s
        turned = (at_s + shift_s) - instants[number - 1]
        assert min(abs(turned), abs(turned - length_s)) == pytest.approx(0, abs=1e-6)


@given(streams=st.lists(INSTANTS, min_size=0, max_size=4))
def test_mix_is_sorted_and_loses_nothing(streams: list[list[float]]) -> None:
    jobs = list(mix([Stream(source(each), service_class=str(index)) for index, each in enumerate(streams)]))
    order = [(job.at_s, int(job.service_class), job.prompt_tokens) for job in jobs]
    assert order == sorted(order)
    assert sorted(at_s for at_s, _, _ in order) == sorted(at_s for each in streams for at_s in each)


@given(instants=INSTANTS, window=st.tuples(st.floats(0, 900), st.floats(0.001, 500)))
def test_window_is_cut_and_starts_at_zero(instants: list[float], window: tuple[float, float]) -> None:
    start_s, end_s = window[0], window[0] + window[1]
    kept = [(at_s - start_s, index + 1) for index, at_s in enumerate(instants) if start_s <= at_s < end_s]
    stream = Stream(source(instants), window_s=(start_s, end_s))
    if kept:
        assert played(stream) == kept
        assert measure(stream).arrivals == len(kept)
    else:
        with pytest.raises(ValueError, match="no arrivals between"):
            played(stream)


@given(instants=INSTANTS, requests_per_s=st.floats(0.01, 100))
def test_absolute_rate_is_met_over_the_window(instants: list[float], requests_per_s: float) -> None:
    stream = Stream(source(instants), window_s=(0.0, 1001.0), requests_per_s=requests_per_s, repeat=2)
    found = played(stream)
    assert len(found) == 2 * len(instants)
    length_s = len(instants) / requests_per_s
    assert found[len(instants)][0] - found[0][0] == pytest.approx(length_s, rel=1e-9)


def test_steps_come_in_their_order() -> None:
    """Cut, rotated, repeated, scaled, put later, limited."""
    stream = Stream(source([0, 1, 2, 5, 9, 20]), window_s=(1, 11), rotate_s=4, repeat=2, rate=2, offset_s=100, limit=6)
    assert played(stream) == [(100, 4), (102, 5), (103, 2), (103.5, 3), (105, 4), (107, 5)]


def test_class_is_fixed_banded_or_the_traces_own() -> None:
    instants = [0.0, 1.0, 2.0, 3.0]
    bands = (Band(2, "short"), Band(3, "middle"))
    assert {job.service_class for job in mix([Stream(source(instants), service_class="fixed")])} == {"fixed"}
    assert {job.service_class for job in mix([Stream(source(instants))])} == {"own"}
    classes = [job.service_class for job in mix([Stream(source(instants), bands=bands)])]
    assert classes == ["short", "short", "middle", "middle"]


def test_session_keeps_its_class_and_its_pauses() -> None:
    def last(ended_s: float) -> Job | None:
        return None

    def second(ended_s: float) -> Job:
        return Job(ended_s + 5, 900, 1, "", (), last)

    stream = Stream(lambda seed: [Job(10.0, 1, 1, "", (), second)], bands=(Band(2, "short"), Band(inf, "long")), rate=2)
    (job,) = mix([stream])
    assert job.follow_up is not None
    following = job.follow_up(8.0)
    assert following is not None
    assert (job.at_s, following.at_s, following.service_class) == (5.0, 13.0, "short")
    assert following.follow_up is not None
    assert following.follow_up(20.0) is None


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"rate": 0.0}, "rate = 0.0: more than 0"),
        ({"requests_per_s": 0.0}, "requests_per_s = 0.0: more than 0"),
        ({"rate": 2.0, "requests_per_s": 1.0}, "rate or requests_per_s, not both"),
        ({"window_s": (5.0, 5.0)}, "window_s"),
        ({"rotate_s": -1.0}, "rotate_s"),
        ({"offset_s": inf}, "offset_s"),
        ({"repeat": 0}, "repeat"),
        ({"limit": 0}, "limit"),
        ({"service_class": "a", "bands": (Band(1, "b"),)}, "service_class or bands"),
        ({"bands": (Band(2, "b"), Band(1, "a"))}, "bands: from short to long"),
    ],
)
def test_wrong_stream_is_refused(wrong: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Stream(source([1.0]), **wrong)  # type: ignore[arg-type]


def test_unordered_generator_is_refused() -> None:
    with pytest.raises(ValueError, match="not in order"):
        played(Stream(source([2.0, 1.0])))


HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def test_bad_rows_count_once_over_all_passes(tmp_path: Path) -> None:
    lines = [f"2023-11-16 18:00:{second:02}.0,{second % 5},7\n" for second in range(60)]
    path = write(tmp_path / "a.csv", HEADER + "".join(lines))
    workload = mix([Stream(path, options=Options(skip_bad=True), rotate_s=30, requests_per_s=2, repeat=2)])
    assert len(list(workload)) == 2 * 48
    assert workload.skipped == 12
    with pytest.raises(TraceError, match="line 2"):
        list(mix([Stream(path)]))


def test_seed_of_a_stream_goes_before_that_of_its_options(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", "num_prefill_tokens,num_decode_tokens\n" + "4,5\n" * 9)
    first, second, third = (
        played(Stream(path, options=Options(arrivals_per_s=1.0, seed=seed), seed=own))
        for seed, own in ((1, None), (0, 1), (0, None))
    )
    assert first == second != third
    assert [job.at_s for job in mix([Stream(lambda seed: [Job(seed, 1, 1, "")], options=Options(seed=3))])] == [3]


def test_repeats_of_a_trace_share_no_prefixes(tmp_path: Path) -> None:
    row = '{"timestamp": 0, "input_length": 512, "output_length": 5, "hash_ids": [1]}\n'
    path = write(tmp_path / "m.jsonl", row)
    first, second = mix([Stream(path, repeat=2)])
    assert not set(first.block_hashes) & set(second.block_hashes)


def test_long_trace_streams_through_little_memory(tmp_path: Path) -> None:
    rows = 200_000
    text = "".join(f"2023-11-16 {i // 36000:02}:{i // 600 % 60:02}:{i % 600 / 10:04.1f},100,7\n" for i in range(rows))
    path = write(tmp_path / "a.csv.gz", HEADER + text)
    tracemalloc.start()
    try:
        last_s = 0.0
        for job in mix([Stream(path, service_class="a")]):
            last_s = job.at_s
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert last_s == pytest.approx((rows - 1) / 10)
    assert peak_bytes < 2 * 2**20
