"""One zygote for all tests of native instances that leave it alive."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator

import pytest

from adapters.fleets import Fleet, ModelledFleet, NativeFleet
from adapters.standins import StandInFleet


@pytest.fixture(scope="session")
def native_fleet() -> Iterator[NativeFleet]:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    if sys.platform != "linux":
        pytest.skip("instances as processes need Linux")
    fleet = NativeFleet()
    yield fleet
    fleet.close()


ELSEWHERE = {
    "test_moves_between": "moves between vLLM servers are of their own kind: tests/runtime/test_attached_moves.py",
    "test_rest": "a server that is attached is not put to sleep",
}
"""By module, why its clauses are not those of a server that is only spoken to from outside."""


@pytest.fixture(params=["modelled", "vllm", pytest.param("native", marks=pytest.mark.slow)])
def fleet(request: pytest.FixtureRequest) -> Fleet:
    if request.param == "modelled":
        return ModelledFleet()
    if request.param == "vllm":
        why = ELSEWHERE.get(request.path.stem)
        if why:
            pytest.skip(why)
        return StandInFleet()
    native: NativeFleet = request.getfixturevalue("native_fleet")
    return native
