"""The guard of this folder's conftest bites where it should and nowhere else."""

from __future__ import annotations

import random
import time

import pytest

CALL = "def call():\n    return {}\n"


def as_module(name: str, call: str) -> float:
    names = {"__name__": name, "time": time, "random": random}
    exec(CALL.format(call), names)
    return names["call"]()


@pytest.mark.parametrize("call", ["time.monotonic()", "time.sleep(0)", "random.random()"])
def test_core_that_reads_a_clock_or_chance_is_caught(call: str) -> None:
    with pytest.raises(AssertionError, match=r"hyperflexis.core.step calls \w+\.\w+: take it as an argument"):
        as_module("hyperflexis.core.step", call)


def test_others_may() -> None:
    assert as_module("hypothesis.engine", "time.monotonic()") > 0
