"""Measures how long steps of various shapes take on this engine, for the latency model to be fitted to.

A handful of steps before the first request: enough for budgets of the right size, which the steps of real requests then
correct. Runs with throw-away sequences on the instance's own KV blocks, before anything else uses them. Everything that
times a step does so here, with `time_trial`. Knows of the engine only what a step takes, and imports no torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from hyperflexis.core.latency import Sample, StepShape, chunk_pairs
from hyperflexis.engine.batch import SequenceSlice
from hyperflexis.wire.messages import Sampling

if TYPE_CHECKING:
    from hyperflexis.engine.runner import Runner

TIME_BUDGET_S = 0.25
"""Further trials are skipped once this is spent: a start must stay short, and large models are slow."""
_REPEATS = 2
_GREEDY = Sampling(temperature=0.0)

Clock = Callable[[], float]


class Trial(NamedTuple):
    """A step to be timed: chunks of prompts that are all alike, decodes that are all alike, or both."""

    chunk_seqs: int = 0
    chunk_tokens: int = 0
    prior_tokens: int = 0
    """Of each chunk's prompt, in KV already."""
    decode_seqs: int = 0
    context_tokens: int = 0
    """Of each decode, with the token that is computed: at least two."""

    @property
    def shape(self) -> StepShape:
        return StepShape(
            prefill_tokens=self.chunk_seqs * self.chunk_tokens,
            prefill_pairs=self.chunk_seqs * chunk_pairs(self.chunk_tokens, self.prior_tokens),
            decode_seqs=self.decode_seqs,
            context_tokens=self.decode_seqs * self.context_tokens,
        )

    def blocks(self, block_tokens: int) -> int:
        """KV blocks that it takes."""
        return sum(-(-(prior + tokens) // block_tokens) for prior, tokens in self._pieces())

    def slices(self, block_tokens: int) -> list[SequenceSlice]:
        """What the engine is given, on the first blocks of its pool."""
        made: list[SequenceSlice] = []
        block = 0
        for index, (prior, tokens) in enumerate(self._pieces()):
            end = block - (-(prior + tokens) // block_tokens)
            blocks = list(range(block, end))
            made.append(SequenceSlice(-1 - index, tokens=[1] * tokens, start=prior, blocks=blocks, sample=True))
            block = end
        return made

    def _pieces(self) -> list[tuple[int, int]]:
        """(tokens before, tokens computed) of each sequence."""
        chunks = [(self.prior_tokens, self.chunk_tokens)] * self.chunk_seqs
        return chunks + [(self.context_tokens - 1, 1)] * self.decode_seqs


_TRIALS = (
    Trial(1, 16),
    Trial(decode_seqs=1, context_tokens=16),
    Trial(1, 64),
    Trial(decode_seqs=4, context_tokens=64),
    Trial(1, 256),
    Trial(decode_seqs=8, context_tokens=128),
    Trial(1, 128, 256),
    Trial(decode_seqs=16, context_tokens=256),
    Trial(1, 512),
)
"""Cheapest first."""


def measure(runner: Runner, blocks: int, block_tokens: int) -> list[Sample]:
    """Time as many of the trials as fit into the pool and the time."""
    samples: list[Sample] = []
    deadline_s = time.perf_counter() + TIME_BUDGET_S
    for trial in _TRIALS:
        if trial.blocks(block_tokens) > blocks:
            break
        # The shortest: the first touches fresh memory, and any may be disturbed.
        samples.append((trial.shape, min(time_trial(runner, trial, block_tokens, _REPEATS))))
        if time.perf_counter() > deadline_s and len(samples) >= 2:
            break
    return samples


def warm_up(runner: Runner, blocks: int, block_tokens: int) -> None:
    """Compute a first chunk and a first decode, for an instance that is told what a sibling measured.

    They take many times as long as the next ones, and nobody should have to wait for that, least of all the client of
    a request that comes from elsewhere in the middle of its answer.
    """
    for trial in _TRIALS[:2]:
        if trial.blocks(block_tokens) <= blocks:
            time_trial(runner, trial, block_tokens, 1)


def time_trial(
    runner: Runner, trial: Trial, block_tokens: int, repeats: int, clock: Clock = time.perf_counter
) -> list[float]:
    """Compute the step `repeats` times; return how long each took, seconds."""
    slices = trial.slices(block_tokens)
    for piece in slices:
        runner.open(piece.sequence, _GREEDY, [1] * (piece.start + len(piece.tokens)), [])
    durations_s = [_timed(runner, slices, clock) for _ in range(repeats)]
    for piece in slices:
        runner.close(piece.sequence)
    return durations_s


def _timed(runner: Runner, slices: list[SequenceSlice], clock: Clock) -> float:
    started_s = clock()
    runner.step(slices)
    return clock() - started_s


def phases(marks: list[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """Durations between named instants: each name stands for the time up to it."""
    for (_, before_s), (name, after_s) in pairwise(marks):
        yield name, after_s - before_s
