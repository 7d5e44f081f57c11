"""Published traces, where they lie beside the repository: rows, rates and percentiles as their notes give them."""

from __future__ import annotations

import numpy as np
import pytest

from hyperflexis.sim.traces import Options, open_trace
from sim.traces.files import shared

NOTED = {
    "azure_llm_2023_code_part1.csv.gz": (6621, 3.18, 12.8, (1463, 5009, 7436), (13, 55, 251)),
    "azure_llm_2023_conv_part1.csv.gz": (12861, 5.92, 1.08, (1019, 4076, 4123), (114, 422, 598)),
    "mooncake_conversation_part1.jsonl.gz": (7851, 3.28, 2.97, (7284, 27991, 89868), (356, 606, 1168)),
    "lmsys_arena_vtc_part1.csv.gz": (955, 2.39, 1.13, (44, 432, 877), (196, 513, 799)),
}


@pytest.mark.parametrize("name", NOTED)
def test_published_trace_reads_as_noted(name: str) -> None:
    rows, rate_per_s, cv, prompts, outputs = NOTED[name]
    # Blocks as large as the trace's: what is read is the same, and sooner.
    columns = [job[:3] for job in open_trace(shared(name), options=Options(block_tokens=512, spread=False))]
    at_s, prompt_tokens, output_tokens = np.array(columns).T
    gaps = np.diff(at_s)
    assert len(columns) == rows
    assert 1 / gaps.mean() == pytest.approx(rate_per_s, rel=0.005)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.005)
    assert np.percentile(prompt_tokens, [50, 90, 99]) == pytest.approx(prompts, abs=1)
    assert np.percentile(output_tokens, [50, 90, 99]) == pytest.approx(outputs, abs=1)


def test_ticks_of_the_published_trace_are_spread() -> None:
    name = "mooncake_conversation_part1.jsonl.gz"
    at_s = [job.at_s for job in open_trace(shared(name), options=Options(block_tokens=512))]
    assert len(set(at_s)) == len(at_s)
    assert np.std(np.diff(at_s)) / np.mean(np.diff(at_s)) < 1
    assert max(at_s) < 2400


def test_published_sessions_follow_up() -> None:
    path = shared("agentic_coding_sessions_part1.jsonl.zst")
    trace = open_trace(path, options=Options(arrivals_per_s=0.1, block_tokens=64, skip_bad=True))
    job = next(trace)
    assert (job.prompt_tokens, job.output_tokens, len(job.block_hashes)) == (71175, 169, 1112)
    assert job.follow_up is not None
    following = job.follow_up(100.0)
    assert following is not None
    assert (following.at_s, following.prompt_tokens) == (112.0, 72762)


@pytest.mark.parametrize(
    ("name", "rows"),
    [("lengths_sharegpt_8k_llama2tok.csv.gz", 30731), ("lengths_arxiv_summarization_llama2tok.csv.gz", 28257)],
)
def test_published_lengths_are_all_read(name: str, rows: int) -> None:
    trace = open_trace(shared(name), options=Options(arrivals_per_s=10.0))
    assert sum(1 for _ in trace) == rows
