"""Grids of steps, and the time they take on a runner whose times are known, and on the demo model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from adapters.fleets import DEMO_MODEL
from hyperflexis.adapters.fitted import Fitted
from hyperflexis.adapters.native import calibration
from hyperflexis.adapters.native.calibration import Trial
from hyperflexis.adapters.native.profiling import FULL, QUICK, Grid, Limits, measure
from hyperflexis.core.latency import LatencyModel, StepShape, chunk_pairs
from hyperflexis.engine.batch import SequenceSlice

TRUE = LatencyModel(0.002, 0.003, 3e-5, 2e-8, 5e-5, 4e-7)
ROOMY = Limits(blocks=1 << 20, block_tokens=16, context_tokens_max=1 << 20, seqs_max=1024, prefill_tokens_max=1 << 16)


class KnownRunner:
    """Takes the times of a model, on a clock of its own. Each sequence's first step takes ten times as long."""

    def __init__(self, model: LatencyModel) -> None:
        self._model = model
        self._open: dict[int, int] = {}
        self.now = 0.0
        self.steps: Counter[StepShape] = Counter()

    def clock(self) -> float:
        return self.now

    def open(self, sequence: int, sampling: Any, prompt: list[int], emitted: list[int]) -> None:
        assert sequence not in self._open
        self._open[sequence] = 0

    def close(self, sequence: int) -> None:
        del self._open[sequence]

    def step(self, slices: Sequence[SequenceSlice]) -> None:
        shape = shape_of(slices)
        self.steps[shape] += 1
        is_cold = not self._open[slices[0].sequence]
        for piece in slices:
            self._open[piece.sequence] += 1
        self.now += self._model.step_s(shape) * (10 if is_cold else 1)

    def is_clean(self) -> bool:
        return not self._open


def shape_of(slices: Sequence[SequenceSlice]) -> StepShape:
    """As the scheduler counts: one token after others is a decode."""
    decodes = [piece for piece in slices if len(piece.tokens) == 1 and piece.start]
    chunks = [piece for piece in slices if piece not in decodes]
    return StepShape(
        sum(len(piece.tokens) for piece in chunks),
        sum(chunk_pairs(len(piece.tokens), piece.start) for piece in chunks),
        len(decodes),
        sum(piece.start + 1 for piece in decodes),
    )


def test_trial_is_what_its_shape_says() -> None:
    for grid in (FULL, QUICK):
        for trial in grid.trials():
            slices = trial.slices(16)
            assert shape_of(slices) == trial.shape
            blocks = [block for piece in slices for block in piece.blocks]
            assert blocks == list(range(trial.blocks(16)))
            assert all(len(each.blocks) * 16 >= each.start + len(each.tokens) for each in slices)


def test_grids_have_all_kinds_and_nothing_twice() -> None:
    for grid in (FULL, QUICK, Grid((16,), (0,), (1,), (8,), 1)):
        trials = list(grid.trials())
        assert len(set(trials)) == len(trials)
        assert {trial.shape.kind for trial in trials} == {"prefill", "decode", "mixed"}


def test_limits_keep_what_an_instance_could_come_to_compute() -> None:
    assert all(ROOMY.allow(trial) for trial in FULL.trials())
    limits = Limits(blocks=10, block_tokens=16, context_tokens_max=100, seqs_max=3, prefill_tokens_max=64)
    allowed = [
        Trial(1, 64, 36),
        Trial(3, 16, 32),
        Trial(decode_seqs=3, context_tokens=48),
        Trial(1, 32, 0, 2, 64),
    ]
    refused = [
        Trial(1, 65),
        Trial(3, 32),
        Trial(1, 64, 37),
        Trial(4, 4),
        Trial(1, 4, 0, 3, 8),
        Trial(decode_seqs=1, context_tokens=101),
        Trial(decode_seqs=3, context_tokens=64),
    ]
    assert [limits.allow(trial) for trial in allowed] == [True] * 4
    assert [limits.allow(trial) for trial in refused] == [False] * 7


@pytest.mark.parametrize("grid", [FULL, QUICK])
def test_known_times_give_the_known_model(grid: Grid) -> None:
    """Warm-up is not counted, every step is timed as often as it should be, and nothing stays open."""
    runner = KnownRunner(TRUE)
    trials = list(grid.trials())
    calls = []
    samples, spread = measure(runner, trials, 16, grid.rounds, on_trial=lambda: calls.append(None), clock=runner.clock)  # type: ignore[arg-type]
    assert spread == pytest.approx(0, abs=1e-9)
    assert [shape for shape, _ in samples] == [trial.shape for trial in trials]
    assert len(calls) == len(trials) * grid.rounds
    assert all(runner.steps[trial.shape] % (3 * grid.rounds) == 0 for trial in trials)
    assert runner.is_clean()
    model = Fitted.of(samples).model
    for name in LatencyModel.__slots__:
        assert getattr(model, name) == pytest.approx(getattr(TRUE, name), rel=1e-6)


def test_a_moment_of_disturbance_is_outvoted() -> None:
    runner = KnownRunner(TRUE)
    trials = list(QUICK.trials())

    def disturb() -> None:
        runner._model = LatencyModel(0.5, 0.5, 0, 0, 0, 0) if runner.now < 1.0 else TRUE

    samples, _ = measure(runner, trials, 16, 3, on_trial=disturb, clock=runner.clock)  # type: ignore[arg-type]
    assert all(actual_s == pytest.approx(TRUE.step_s(shape)) for shape, actual_s in samples)


def test_spread_is_between_the_quartiles() -> None:
    runner = KnownRunner(TRUE)
    slow = LatencyModel(*(1.2 * getattr(TRUE, name) for name in LatencyModel.__slots__))
    trials = list(QUICK.trials())
    calls = []

    def alternate() -> None:
        calls.append(None)
        runner._model = slow if len(calls) // len(trials) % 2 else TRUE

    _, spread = measure(runner, trials, 16, 4, on_trial=alternate, clock=runner.clock)  # type: ignore[arg-type]
    assert spread == pytest.approx(0.2 / 1.1)


# -- on the engine


@pytest.fixture(scope="module")
def demo_runner() -> Any:
    torch = pytest.importorskip("torch")
    from hyperflexis.engine.arena import ArenaLayout
    from hyperflexis.engine.config import ModelConfig
    from hyperflexis.engine.runner import Runner
    from hyperflexis.engine.weights import load_checkpoint

    config = ModelConfig.from_directory(DEMO_MODEL)
    layout = ArenaLayout.of(config, torch.float32)
    arena = layout.allocate()
    load_checkpoint(DEMO_MODEL, config, layout, arena)
    return Runner(config, layout.views(arena), blocks=64, block_tokens=16, dtype=torch.float32, threads=1)


def test_engine_computes_every_kind_of_step(demo_runner: Any) -> None:
    trials = [
        Trial(1, 16),
        Trial(1, 16, 32),
        Trial(4, 16),
        Trial(decode_seqs=8, context_tokens=2),
        Trial(decode_seqs=2, context_tokens=33),
        Trial(1, 16, 16, 4, 40),
    ]
    samples, spread = measure(demo_runner, trials, 16, 2)
    assert spread >= 0
    assert [shape for shape, _ in samples] == [trial.shape for trial in trials]
    assert all(0 < actual_s < 10 for _, actual_s in samples)
    assert Fitted.of(samples).model.step_s(trials[0].shape) > 0


def test_calibration_times_what_fits(demo_runner: Any) -> None:
    samples = calibration.measure(demo_runner, 8, 16)
    assert [shape for shape, _ in samples] == [
        StepShape(16, 256, 0, 0),
        StepShape(0, 0, 1, 16),
        StepShape(64, 4096, 0, 0),
    ]
    assert len(calibration.measure(demo_runner, 64, 16)) >= 2
