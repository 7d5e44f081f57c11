"""What the operator says to the scheduler inside vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hyperflexis.core.latency import StepShape
from hyperflexis.vllm_plugin.settings import KEY, settings


def test_engines_own_bound_is_kept_and_the_rest_has_defaults() -> None:
    rules, samples = settings(None, 512)
    assert (rules.prefill_tokens_max, rules.patience_s, rules.order, samples) == (512, 60.0, "fewest_late", [])


def test_profile_is_read(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_text(json.dumps({"name": "x", "samples": [[[16, 256, 0, 0], 0.01], [[0, 0, 1, 16], 0.005]]}))
    rules, samples = settings({KEY: {"profile": str(file), "patience_s": 5}, "other": 1}, 512)
    assert rules.patience_s == 5
    assert samples == [(StepShape(16, 256), 0.01), (StepShape(0, 0, 1, 16), 0.005)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"patience": 5}, "unknown field `patience`"),
        ({"patience_s": "5"}, "patience_s"),
        ({"prefill_tokens_floor": 0}, "prefill_tokens_floor must be at least 1"),
        ({"profile": "/nowhere/at/all"}, "is no profile"),
    ],
)
def test_mistake_is_told_where_it_was_made(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"additional_config\['{KEY}'\]: .*{message}"):
        settings({KEY: given}, 512)


def test_profile_without_steps_is_none(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_text("{}")
    with pytest.raises(ValueError, match="holds no measured steps"):
        settings({KEY: {"profile": str(file)}}, 512)
