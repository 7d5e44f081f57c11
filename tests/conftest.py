"""One Hypothesis profile for all tests: same examples each run, no time limit per example (the machine is shared).

When it soaks: other examples each run, and no time limit per test either.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from helpers.soak import FACTOR, FIRST_SEED, examples

settings.register_profile(
    "shared",
    deadline=None,
    derandomize=FACTOR == 1,
    print_blob=FACTOR > 1,
    max_examples=examples(100),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("shared")


def pytest_report_header() -> str:
    return f"soaks: SOAK={FACTOR} SOAK_FROM={FIRST_SEED}" if FACTOR > 1 else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if FACTOR > 1:
        for item in items:
            if item.get_closest_marker("soak") is not None:
                item.add_marker(pytest.mark.timeout(0), append=False)
