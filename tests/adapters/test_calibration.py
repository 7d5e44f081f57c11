"""What an instance computes before it says that it is ready."""

from __future__ import annotations

import pytest

from hyperflexis.adapters.native import calibration
from hyperflexis.engine.batch import SequenceSlice
from hyperflexis.wire.messages import Sampling


class FakeRunner:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.open_ids: set[int] = set()
        self.steps: list[list[tuple[int, int]]] = []

    def open(self, sequence: int, sampling: Sampling, prompt: list[int], emitted: list[int]) -> None:
        self.open_ids.add(sequence)

    def close(self, sequence: int) -> None:
        self.open_ids.remove(sequence)

    def step(self, slices: list[SequenceSlice]) -> None:
        assert {each.sequence for each in slices} == self.open_ids
        self.steps.append([(each.start, len(each.tokens)) for each in slices])


@pytest.mark.parametrize(("blocks", "steps"), [(100, [[(0, 16)], [(15, 1)]]), (1, [[(0, 16)], [(15, 1)]]), (0, [])])
def test_warming_up_is_a_chunk_and_a_decode_as_far_as_they_fit(blocks: int, steps: list[list[tuple[int, int]]]) -> None:
    runner = FakeRunner()
    calibration.warm_up(runner, blocks, 16)  # type: ignore[arg-type]  # the part of a runner that is used
    assert runner.steps == steps
    assert not runner.open_ids
