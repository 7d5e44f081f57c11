"""The sample: deterministic, bursty where it says so, and what ships is what the script writes."""

from __future__ import annotations

import numpy as np
import pytest

from hyperflexis.sim.catalog import SAMPLE, TRACES, find
from hyperflexis.sim.sample import CHAT, CODE, Recipe, generate
from hyperflexis.sim.traces import FORMATS, open_trace


def per_second_dispersion(recipe: Recipe) -> float:
    counts = np.bincount([int(job.at_s) for job in generate(recipe, 6000.0, 1)], minlength=6000)
    return float(counts.var() / counts.mean())


@pytest.mark.parametrize("recipe", [CODE, CHAT], ids=["code", "chat"])
def test_generated_load_is_as_its_recipe(recipe: Recipe) -> None:
    jobs = list(generate(recipe, 6000.0, 3))
    assert len(jobs) / 6000 == pytest.approx(recipe.requests_per_s, rel=0.1)
    assert [job.at_s for job in jobs] == sorted(job.at_s for job in jobs)
    assert np.median([job.prompt_tokens for job in jobs]) == pytest.approx(recipe.prompt.median_tokens, rel=0.1)
    assert np.median([job.output_tokens for job in jobs]) == pytest.approx(recipe.output.median_tokens, rel=0.1)
    assert jobs == list(generate(recipe, 6000.0, 3))
    assert jobs != list(generate(recipe, 6000.0, 4))


def test_code_comes_in_bursts_and_chat_does_not() -> None:
    assert per_second_dispersion(CODE) > 3 * per_second_dispersion(CHAT)


def test_shipped_sample_is_about_ten_minutes() -> None:
    assert all(path.exists() for path in SAMPLE.paths)
    counts = {}
    for path in SAMPLE.paths:
        jobs = list(open_trace(path))
        assert 580 < jobs[-1].at_s < 600
        (service_class,) = {job.service_class for job in jobs}
        counts[service_class] = len(jobs)
    assert set(counts) == {"code", "chat"}
    assert sum(counts.values()) == pytest.approx(4000, rel=0.1)


def test_catalog_names_are_unique_and_formats_exist() -> None:
    assert len({entry.name for entry in TRACES}) == len(TRACES)
    assert {entry.format for entry in TRACES} <= set(FORMATS)
    assert find("sample") is SAMPLE
    with pytest.raises(ValueError, match=r"unknown trace 'moncake'; did you mean 'mooncake'\?"):
        find("moncake")
