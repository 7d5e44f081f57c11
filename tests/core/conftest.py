"""No test of the core may see it read a clock, sleep or draw from the global generators: that raises here.

Only calls made by modules of the core count, so that pytest and Hypothesis may time and draw as they like. The guard
on imports stands elsewhere; this one also catches what is reached by a longer way.
"""

from __future__ import annotations

import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

FORBIDDEN: list[tuple[Any, str]] = [
    *((time, name) for name in ("time", "monotonic", "perf_counter", "process_time", "time_ns", "sleep")),
    *((random, name) for name in ("random", "randint", "choice", "shuffle", "uniform")),
    *((np.random, name) for name in ("random", "rand", "normal", "randint")),
    (socket, "socketpair"),
    (socket, "create_connection"),
]


def _guarded(real: Callable[..., Any], name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        assert not caller.startswith("hyperflexis.core"), f"{caller} calls {name}: take it as an argument"
        return real(*args, **kwargs)

    return call


@pytest.fixture(autouse=True, scope="package")
def _pure_core() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module, name in FORBIDDEN:
            patch.setattr(module, name, _guarded(getattr(module, name), f"{module.__name__}.{name}"))
        yield
