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


@pytest.fixture(params=["modelled", "vllm", pytest.param("native", marks=pytest.mark.slow)])
def fleet(request: pytest.FixtureRequest) -> Fleet:
    if request.param == "modelled":
        return ModelledFleet()
    if request.param == "vllm":
        return StandInFleet()
    native: NativeFleet = request.getfixturevalue("native_fleet")
    return native
