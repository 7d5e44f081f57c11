"""Measures how long steps of various shapes take on this engine, for the latency model to be fitted to.

A handful of steps before the first request: enough for budgets of the right size, which the steps of real requests then
correct. Runs with throw-away sequences on the instance's own KV blocks, before anything else uses them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise

from hyperflexis.core.latency import Sample, StepShape, chunk_pairs
from hyperflexis.engine.batch import SequenceSlice
from hyperflexis.engine.runner import Runner
from hyperflexis.wire.messages import Sampling

TIME_BUDGET_S = 0.25
"""Further shapes are skipped once this is spent: a start must stay short, and large models are slow."""
_REPEATS = 2
_GREEDY = Sampling(temperature=0.0)

_SHAPES = (
    ("prefill", 16, 0),
    ("decode", 1, 15),
    ("prefill", 64, 0),
    ("decode", 4, 63),
    ("prefill", 256, 0),
    ("decode", 8, 127),
    ("prefill", 128, 256),
    ("decode", 16, 255),
    ("prefill", 512, 0),
)
"""(kind, new tokens or sequences, tokens before): cheapest first."""


def measure(runner: Runner, blocks: int, block_tokens: int) -> list[Sample]:
    """Time as many of the shapes as fit into the pool and the time."""
    samples: list[Sample] = []
    deadline_s = time.perf_counter() + TIME_BUDGET_S
    for kind, count, prior in _SHAPES:
        slices = _slices(kind, count, prior, block_tokens)
        if sum(len(piece.blocks) for piece in slices) > blocks:
            break
        samples.append((_shape(slices), _best_s(runner, slices)))
        if time.perf_counter() > deadline_s and len(samples) >= 2:
            break
    return samples


def _slices(kind: str, count: int, prior: int, block_tokens: int) -> list[SequenceSlice]:
    seqs, tokens = (1, count) if kind == "prefill" else (count, 1)
    held = -(-(prior + tokens) // block_tokens)
    ranges = pairwise(range(0, (seqs + 1) * held, held))
    return [
        SequenceSlice(sequence=-1 - index, tokens=[1] * tokens, start=prior, blocks=list(range(*span)), sample=True)
        for index, span in enumerate(ranges)
    ]


def _shape(slices: list[SequenceSlice]) -> StepShape:
    if len(slices[0].tokens) > 1:
        tokens, prior = len(slices[0].tokens), slices[0].start
        return StepShape(tokens, chunk_pairs(tokens, prior), 0, 0)
    return StepShape(0, 0, len(slices), sum(piece.start + 1 for piece in slices))


def _best_s(runner: Runner, slices: list[SequenceSlice]) -> float:
    """The shortest of a few runs: the first touches fresh memory, and any may be disturbed."""
    for piece in slices:
        runner.open(piece.sequence, _GREEDY, [1] * (piece.start + len(piece.tokens)), [])
    best_s = min(_timed(runner, slices) for _ in range(_REPEATS))
    for piece in slices:
        runner.close(piece.sequence)
    return best_s


def _timed(runner: Runner, slices: list[SequenceSlice]) -> float:
    started_s = time.perf_counter()
    runner.step(slices)
    return time.perf_counter() - started_s


def phases(marks: list[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """Durations between named instants: each name stands for the time up to it."""
    for (_, before_s), (name, after_s) in pairwise(marks):
        yield name, after_s - before_s
