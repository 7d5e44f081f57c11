"""Measures an engine over a grid of steps, for a latency profile that is worth keeping in a file.

Where a calibration has a quarter of a second, this takes what it needs: every step is warmed up, then timed in several
rounds over the whole grid, so that what disturbs the machine for a while disturbs all kinds of steps alike; the median
counts. Grids can be read without torch; only `load_engine` needs it. Knows nothing of files or tables.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from hyperflexis.adapters.native.calibration import Clock, Trial, time_trial
from hyperflexis.adapters.native.host import StartError
from hyperflexis.adapters.native.messages import Load, Loaded, LoadFailed
from hyperflexis.core.latency import Sample

if TYPE_CHECKING:
    from hyperflexis.adapters.native.loading import Model
    from hyperflexis.engine.runner import Runner

REPEATS = 2
"""Timed steps per trial and round, after one that warms up."""
PROMPTS = 4
"""So many whole prompts share a step where several do."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Quantities to combine, each in rising order."""

    prefill_tokens: tuple[int, ...]
    """New tokens of a chunk."""
    prior_tokens: tuple[int, ...]
    """Of a chunk's prompt, in KV already."""
    decode_seqs: tuple[int, ...]
    context_tokens: tuple[int, ...]
    """Of each decode."""
    rounds: int

    def trials(self) -> Iterator[Trial]:
        """Chunks alone, whole prompts side by side, decodes alone, and both together on a coarser grid."""
        for tokens, prior in product(self.prefill_tokens, self.prior_tokens):
            yield Trial(1, tokens, prior)
        for tokens in _every_second(self.prefill_tokens):
            yield Trial(PROMPTS, tokens)
        for seqs, context in product(self.decode_seqs, self.context_tokens):
            yield Trial(decode_seqs=seqs, context_tokens=context)
        chunks = product(_every_second(self.prefill_tokens), self.prior_tokens[:2])
        decodes = product(_every_second(self.decode_seqs), _every_second(self.context_tokens))
        for (tokens, prior), (seqs, context) in product(chunks, decodes):
            yield Trial(1, tokens, prior, seqs, context)


FULL = Grid(
    prefill_tokens=(16, 32, 64, 128, 256, 512, 1024, 2048),
    prior_tokens=(0, 512, 2048, 8192),
    decode_seqs=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    context_tokens=(16, 64, 256, 1024, 8192),
    rounds=5,
)
QUICK = Grid(
    prefill_tokens=(16, 64, 256, 1024),
    prior_tokens=(0, 512),
    decode_seqs=(1, 4, 16, 64),
    context_tokens=(32, 128, 512),
    rounds=2,
)


def _every_second(values: tuple[int, ...]) -> tuple[int, ...]:
    """From the last one backwards, so that one is always left."""
    return values[::-2][::-1]


@dataclass(frozen=True, slots=True)
class Limits:
    """What an instance can hold, and what it is allowed to do in one step."""

    blocks: int
    block_tokens: int
    context_tokens_max: int
    seqs_max: int
    prefill_tokens_max: int

    def allow(self, trial: Trial) -> bool:
        """Whether an instance could come to compute such a step."""
        return (
            trial.blocks(self.block_tokens) <= self.blocks
            and trial.chunk_seqs + trial.decode_seqs <= self.seqs_max
            and trial.chunk_seqs * trial.chunk_tokens <= self.prefill_tokens_max
            and max(trial.prior_tokens + trial.chunk_tokens, trial.context_tokens) <= self.context_tokens_max
        )


class Engine(NamedTuple):
    """A loaded model that steps in this process."""

    runner: Runner
    loaded: Loaded
    torch_version: str
    hardware: str


def load_engine(order: Load, threads: int) -> Engine:
    """Load a model to step in this process, as an instance would.

    Raises:
        StartError: torch is not installed, or the model cannot be loaded; says why and what may help.
    """
    try:
        import torch

        from hyperflexis.adapters.native import loading
    except ModuleNotFoundError as error:
        raise StartError(f"{error.name} is not installed", "pip install 'hyperflexis[engine]'") from error
    # Before torch computes here: this forks a child, which would not survive its thread pools.
    outcome = loading.load(order)
    if isinstance(outcome, LoadFailed):
        raise StartError(outcome.reason, outcome.hint)
    model, loaded, _ = outcome
    torch.set_num_threads(threads)
    hardware = torch.cuda.get_device_name(loaded.device) if loaded.device.startswith("cuda") else loaded.device
    return Engine(_runner(model, loaded, order.block_tokens), loaded, torch.__version__, hardware)


def _runner(model: Model, loaded: Loaded, block_tokens: int) -> Runner:
    import torch

    from hyperflexis.engine.runner import Runner

    device = torch.device(loaded.device)
    weights = model.layout.views(memoryview(model.memory.map_for_reading()))
    if device.type != "cpu":
        weights = {name: weight.to(device) for name, weight in weights.items()}
    return Runner(
        model.config, weights, blocks=loaded.blocks, block_tokens=block_tokens, device=device, dtype=model.dtype
    )


class Measured(NamedTuple):
    """What the trials took."""

    samples: list[Sample]
    """One for each trial, in order."""
    spread: float
    """Between the quartiles of the times of one and the same step, as a share of the median; of all steps, the median.
    Above some hundredths the machine was not quiet, and no model can do better than that."""


def measure(
    runner: Runner,
    trials: Sequence[Trial],
    block_tokens: int,
    rounds: int,
    *,
    on_trial: Callable[[], None] = lambda: None,
    clock: Clock = time.perf_counter,
) -> Measured:
    """Time every trial. `on_trial` is called trials x rounds times."""
    durations_s: list[list[float]] = [[] for _ in trials]
    for _ in range(rounds):
        for trial, seen_s in zip(trials, durations_s, strict=True):
            _, *timed_s = time_trial(runner, trial, block_tokens, 1 + REPEATS, clock)
            seen_s.extend(timed_s)
            on_trial()
    quartiles_s = [statistics.quantiles(seen_s, n=4, method="inclusive") for seen_s in durations_s]
    samples = [(trial.shape, median_s) for trial, (_, median_s, _) in zip(trials, quartiles_s, strict=True)]
    return Measured(samples, statistics.median((high_s - low_s) / median_s for low_s, median_s, high_s in quartiles_s))
