"""One Hypothesis profile for all tests: same examples each run, no time limit per example (the machine is shared)."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "shared",
    deadline=None,
    derandomize=True,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("shared")
