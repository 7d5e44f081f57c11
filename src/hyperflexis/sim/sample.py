"""A workload of our own: code completions in bursts beside steady chat, generated from a seed.

Its numbers are chosen to look like published services (long prompts and short answers in bursts; shorter prompts and
longer answers, nearly Poisson), not fitted to one. Bursts: time goes on and off by turns, and arrivals come several
times faster while it is on. Lengths are log-normal, cut at both ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hyperflexis.sim.job import Job
from hyperflexis.sim.traces.arrivals import renewal


@dataclass(frozen=True, slots=True)
class Lengths:
    """A log-normal length, cut to a range."""

    median_tokens: float
    sigma: float
    """Of the logarithm."""
    max_tokens: int
    min_tokens: int = 1

    def draw(self, count: int, rng: np.random.Generator) -> list[int]:
        drawn = rng.lognormal(np.log(self.median_tokens), self.sigma, count)
        found: list[int] = np.clip(np.rint(drawn), self.min_tokens, self.max_tokens).astype(int).tolist()
        return found


@dataclass(frozen=True, slots=True)
class Recipe:
    """One class of requests."""

    service_class: str
    requests_per_s: float
    """Mean over all time."""
    cv: float
    """Of the gaps, bursts aside."""
    prompt: Lengths
    output: Lengths
    on_s: float = 1.0
    off_s: float = 0.0
    """How long a burst and the calm after it last on average; no calm, no bursts."""
    burst_factor: float = 1.0
    """How many times faster arrivals come in a burst than in the calm."""


CODE = Recipe(
    "code",
    requests_per_s=3.0,
    cv=1.5,
    prompt=Lengths(1500, 0.8, 8192, 16),
    output=Lengths(20, 1.0, 1024),
    on_s=8.0,
    off_s=32.0,
    burst_factor=12.0,
)
CHAT = Recipe("chat", requests_per_s=3.7, cv=1.1, prompt=Lengths(600, 1.0, 8192, 8), output=Lengths(150, 0.8, 2048))

CHUNK = 256


def generate(recipe: Recipe, duration_s: float, seed: int) -> Iterator[Job]:
    """The jobs of one class, in order of arrival, up to an instant."""
    # The class is part of the seed: what is mixed under one seed is still independent.
    for_lengths, for_bursts, for_gaps = np.random.default_rng([seed, *recipe.service_class.encode()]).spawn(3)
    lengths, clock = _lengths(recipe, for_lengths), _bursts(recipe, for_bursts)
    # Arrivals are a plain process on a clock of expected requests; bursts are stretches where that clock runs fast.
    began_s, rate_per_s, began, ends = next(clock)
    for at in renewal(1.0, recipe.cv, for_gaps):
        while at >= ends:
            began_s, rate_per_s, began, ends = next(clock)
        at_s = began_s + (at - began) / rate_per_s
        if at_s >= duration_s:
            return
        prompt_tokens, output_tokens = next(lengths)
        yield Job(at_s, prompt_tokens, output_tokens, recipe.service_class)


def _bursts(recipe: Recipe, rng: np.random.Generator) -> Iterator[tuple[float, float, float, float]]:
    """Stretches of one rate: start in seconds, rate, then start and end counted in expected requests."""
    share_on = recipe.on_s / (recipe.on_s + recipe.off_s)
    calm_per_s = recipe.requests_per_s / (1 + share_on * (recipe.burst_factor - 1))
    began_s = began = 0.0
    is_on = not recipe.off_s
    while True:
        mean_s, rate_per_s = (recipe.on_s, calm_per_s * recipe.burst_factor) if is_on else (recipe.off_s, calm_per_s)
        length_s = mean_s * (0.5 + rng.random())
        ends = began + length_s * rate_per_s
        yield began_s, rate_per_s, began, ends
        began_s, began = began_s + length_s, ends
        is_on = not is_on or not recipe.off_s


def _lengths(recipe: Recipe, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    while True:
        yield from zip(recipe.prompt.draw(CHUNK, rng), recipe.output.draw(CHUNK, rng), strict=True)
