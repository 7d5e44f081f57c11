"""Sampling against a slow reference that says the same in plain numpy, and properties that hold in any batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hyperflexis.engine.errors import EngineError
from hyperflexis.engine.sampler import NO_TOKEN, Draws, Sampler, SamplingState, uniforms
from hyperflexis.wire.messages import Sampling

VOCAB = 24
CPU = torch.device("cpu")


def _draw(logits: np.ndarray | torch.Tensor, samplings: list[Sampling], **state: list[int]) -> Draws:
    rows = torch.as_tensor(logits, dtype=torch.float32)
    states = [
        SamplingState(each, state.get("prompt", []), state.get("emitted", []), rows.shape[1]) for each in samplings
    ]
    return Sampler(rows.shape[1], CPU).draw(rows, states)


def reference_weights(logits: np.ndarray, sampling: Sampling, prompt: list[int], emitted: list[int]) -> np.ndarray:
    """The distribution that the next token is drawn from, step by step; one-hot for greedy."""
    x = logits.astype(np.float64)
    for token in set(prompt) | set(emitted):
        x[token] = x[token] / sampling.repetition_penalty if x[token] > 0 else x[token] * sampling.repetition_penalty
    for token in set(emitted):
        x[token] -= sampling.frequency_penalty * emitted.count(token) + sampling.presence_penalty
    for token, bias in sampling.logit_bias.items():
        x[token] += bias
    if len(emitted) < sampling.min_tokens:
        x[list(sampling.stop_ids)] = -np.inf
    if sampling.temperature == 0:
        return np.eye(len(x))[x.argmax()]
    x = x / sampling.temperature
    if 0 < sampling.top_k < len(x):
        x = np.where(x < np.sort(x)[-sampling.top_k], -np.inf, x)
    p = np.exp(x - x.max())
    p /= p.sum()
    if sampling.top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.concatenate(([0.0], np.cumsum(p[order])[:-1]))
        last = max(int((before < sampling.top_p).sum()), 1) - 1
        p = np.where(p < p[order[last]], 0.0, p)
    p = np.where(p < sampling.min_p * p.max(), 0.0, p)
    return p / p.sum()


def reference_token(weights: np.ndarray, seed: int, position: int) -> int:
    return int((np.cumsum(weights) > uniforms([seed], [position])[0] * weights.sum()).argmax())


tokens = st.integers(0, VOCAB - 1)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.1]),
    top_k=st.sampled_from([0, 1, 2, 7, VOCAB - 1, VOCAB, 1000]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    seed=st.integers(-(2**63), 2**64),
    presence_penalty=st.sampled_from([0.0, 1.5, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.7, -2.0]),
    repetition_penalty=st.sampled_from([1.0, 1.4, 0.6]),
    logit_bias=st.dictionaries(tokens, st.sampled_from([-100.0, 100.0, 1.5]), max_size=3),
    stop_ids=st.lists(tokens, max_size=2, unique=True).map(tuple),
    min_tokens=st.integers(0, 6),
)


def _separated(weights: np.ndarray, seed: int, position: int) -> bool:
    """Whether float32 rounding of the logits could not have changed the token."""
    edges = np.cumsum(weights)
    return bool(np.abs(edges - uniforms([seed], [position])[0]).min() > 1e-5)


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(
        st.tuples(samplings, st.lists(tokens, max_size=8), st.lists(tokens, max_size=8)), min_size=1, max_size=5
    ),
    seed=st.integers(0, 10**6),
)
def test_any_batch_draws_what_the_reference_draws(rows: list[tuple[Sampling, list[int], list[int]]], seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(len(rows), VOCAB)).astype(np.float32) * 3
    weights = [reference_weights(logits[i], *row) for i, row in enumerate(rows)]
    assume(all(_separated(each, row[0].seed, len(row[2])) for each, row in zip(weights, rows, strict=True)))
    states = [SamplingState(sampling, prompt, emitted, VOCAB) for sampling, prompt, emitted in rows]
    draws = Sampler(VOCAB, CPU).draw(torch.from_numpy(logits), states)
    assert not draws.errors
    for row, token, each in zip(rows, draws.tokens, weights, strict=True):
        assert token == reference_token(each, row[0].seed, len(row[2]))
    assert [state.emitted for state in states] == [len(row[2]) + 1 for row in rows]


def test_a_seeded_request_draws_the_same_alone_and_in_company() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn((6, 7000), generator=generator) * 2
    kinds = [
        Sampling(seed=1),
        Sampling(seed=2, top_p=0.9),
        Sampling(temperature=0.0),
        Sampling(seed=3, top_k=50, min_p=0.01),
        Sampling(seed=4, top_p=0.999),
        Sampling(seed=5, repetition_penalty=1.2, temperature=0.7),
    ]
    together = _draw(logits, kinds, prompt=[1, 2], emitted=[3]).tokens
    for row, kind in enumerate(kinds):
        assert _draw(logits[row : row + 1], [kind], prompt=[1, 2], emitted=[3]).tokens == [together[row]]
    backwards = _draw(logits.flip(0), kinds[::-1], prompt=[1, 2], emitted=[3]).tokens
    assert backwards == together[::-1]


def test_a_large_flat_vocabulary_is_drawn_rightly() -> None:
    logits = np.random.default_rng(0).normal(size=(8, 6000)).astype(np.float32) * 0.01
    kinds = [Sampling(seed=seed, top_p=0.9) for seed in range(8)]
    for row, token in enumerate(_draw(logits, kinds).tokens):
        assert token == reference_token(reference_weights(logits[row], kinds[row], [], []), row, 0)


def test_the_drawn_frequencies_are_the_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5]])
    draws = 4000
    counts = np.bincount(_draw(logits.expand(draws, 5), [Sampling(seed=i) for i in range(draws)]).tokens, minlength=5)
    expected = logits[0].double().softmax(0).numpy() * draws
    # Chi-square with 4 degrees of freedom: 18.5 is exceeded once in a thousand, and the seeds are fixed.
    assert float(((counts - expected) ** 2 / expected).sum()) < 18.5


@pytest.mark.parametrize("axis", ["seeds", "positions", "strided"])
def test_the_hash_is_uniform_and_uncorrelated(axis: str) -> None:
    count = 20000
    if axis == "seeds":
        values = uniforms(list(range(count)), [0] * count)
    elif axis == "positions":
        values = uniforms([7] * count, list(range(count)))
    else:
        values = uniforms([index << 32 for index in range(count)], [index % 16 for index in range(count)])
    assert values.min() >= 0
    assert values.max() < 1
    histogram = np.histogram(values, bins=50, range=(0, 1))[0]
    # 49 degrees of freedom: 85.4 is exceeded once in a thousand.
    assert float(((histogram - count / 50) ** 2 / (count / 50)).sum()) < 85.4
    for lag in (1, 2, 16):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 4 / math.sqrt(count)
    assert len(np.unique(values)) == count


def test_the_hash_is_part_of_the_promise() -> None:
    """A request resumed by a newer version must go on alike: these numbers never change."""
    pinned = [
        0.6524484863740322,
        0.7743991716672016,
        0.9269618291063265,
        0.9269618291063265,
    ]
    assert uniforms([0, 1, -1, 2**64 - 1], [0, 5, 3, 3]).tolist() == pinned


def test_greedy_takes_the_first_of_equals() -> None:
    assert _draw([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], [Sampling(temperature=0.0)] * 2).tokens == [1, 0]


@pytest.mark.parametrize("top_p", [0.0, 1e-12, 1e-3])
def test_top_p_near_zero_keeps_one_token(top_p: float) -> None:
    logits = np.random.default_rng(1).normal(size=(20, VOCAB))
    kinds = [Sampling(seed=seed, top_p=top_p) for seed in range(20)]
    assert _draw(logits, kinds).tokens == logits.argmax(1).tolist()


def test_a_tiny_temperature_is_nearly_greedy_and_does_not_overflow() -> None:
    logits = np.random.default_rng(2).normal(size=(20, VOCAB)) * 50
    kinds = [Sampling(seed=seed, temperature=1e-30) for seed in range(20)]
    assert _draw(logits, kinds).tokens == logits.argmax(1).tolist()


def test_equals_are_kept_together() -> None:
    """The second and third most likely are equal: top_k = 2 keeps both, whichever a sort would have put first."""
    logits = [[5.0, 1.0, 4.0, 4.0]]
    drawn = {_draw(logits, [Sampling(seed=seed, top_k=2)]).tokens[0] for seed in range(100)}
    assert drawn == {0, 2, 3}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bias_of_a_hundred_forces_and_forbids(temperature: float) -> None:
    logits = np.random.default_rng(3).normal(size=(20, VOCAB)) * 4
    forced = [Sampling(seed=seed, temperature=temperature, logit_bias={7: 100.0}) for seed in range(20)]
    assert set(_draw(logits, forced).tokens) == {7}
    best = logits.argmax(1).tolist()
    forbidden = [Sampling(seed=seed, temperature=temperature, logit_bias={best[seed]: -100.0}) for seed in range(20)]
    assert all(token != banned for token, banned in zip(_draw(logits, forbidden).tokens, best, strict=True))


def test_no_stop_id_is_drawn_before_min_tokens() -> None:
    state = SamplingState(Sampling(temperature=0.0, stop_ids=(2, 4), min_tokens=2), [0], [], 5)
    logits = torch.tensor([[0.0, 1.0, 9.0, 2.0, 8.0]])
    sampler = Sampler(5, CPU)
    assert not state.is_plain
    assert [sampler.draw(logits, [state]).tokens[0] for _ in range(3)] == [3, 3, 2]
    assert state.is_plain


def test_penalties_grow_with_what_is_emitted() -> None:
    """Each emission costs the token 1.0, so equal neighbours take turns."""
    state = SamplingState(Sampling(temperature=0.0, frequency_penalty=1.0), [0, 0, 0], [], 3)
    logits = torch.tensor([[2.5, 2.0, 0.0]])
    sampler = Sampler(3, CPU)
    assert [sampler.draw(logits, [state]).tokens[0] for _ in range(6)] == [0, 1, 0, 1, 0, 1]
    resumed = SamplingState(Sampling(temperature=0.0, frequency_penalty=1.0), [0, 0, 0], [0, 1, 0], 3)
    assert [sampler.draw(logits, [resumed]).tokens[0] for _ in range(3)] == [1, 0, 1]


def test_only_repetition_minds_the_prompt() -> None:
    logits = [[2.0, 1.9]]
    repetition = Sampling(temperature=0.0, repetition_penalty=1.5)
    presence = Sampling(temperature=0.0, presence_penalty=1.5)
    assert _draw(logits, [repetition], prompt=[0]).tokens == [1]
    assert _draw(logits, [presence], prompt=[0]).tokens == [0]
    assert _draw(logits, [presence], emitted=[0]).tokens == [1]


def test_log_probabilities_are_of_the_raw_logits() -> None:
    logits = np.random.default_rng(4).normal(size=(2, VOCAB))
    kind = Sampling(temperature=0.5, seed=3, top_k=2, logprobs=3, logit_bias={1: 100.0}, repetition_penalty=1.5)
    draws = _draw(logits, [kind, Sampling(temperature=0.0)], emitted=[1, 5])
    assert set(draws.logprobs) == {0}
    expected = logits[0] - np.log(np.exp(logits[0]).sum())
    actual = draws.logprobs[0]
    assert actual.token == draws.tokens[0] == 1
    assert actual.logprob == pytest.approx(expected[1], abs=1e-5)
    assert actual.top_tokens == np.argsort(-expected)[:3].tolist()
    assert actual.top_logprobs == pytest.approx(np.sort(expected)[::-1][:3].tolist(), abs=1e-5)


def test_zero_log_probabilities_name_the_token_alone() -> None:
    actual = _draw([[0.0, 1.0]], [Sampling(temperature=0.0, logprobs=0)]).logprobs[0]
    assert (actual.token, actual.top_tokens, actual.top_logprobs) == (1, [], [])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", [Sampling(temperature=0.0), Sampling(seed=1), Sampling(seed=1, top_p=0.5, logprobs=2)])
def test_logits_that_are_not_finite_fail_their_row_alone(bad: float, kind: Sampling) -> None:
    logits = np.zeros((3, VOCAB))
    logits[:, 3] = 50.0
    logits[1, 5] = bad
    draws = _draw(logits, [kind] * 3)
    assert draws.tokens == [3, NO_TOKEN, 3]
    assert list(draws.errors) == [1]
    assert "not finite" in draws.errors[1]
    assert 1 not in draws.logprobs


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_a_row_with_nothing_left_fails_alone(temperature: float, top_p: float) -> None:
    blocked = Sampling(temperature=temperature, top_p=top_p, stop_ids=tuple(range(VOCAB)), min_tokens=1)
    draws = _draw(np.eye(VOCAB)[[4, 4]] * 60, [blocked, Sampling(temperature=temperature, top_p=top_p)])
    assert draws.tokens == [NO_TOKEN, 4]
    assert list(draws.errors) == [0]


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    for kind in (Sampling(logit_bias={VOCAB: 1.0}), Sampling(stop_ids=(-1,))):
        with pytest.raises(EngineError, match="outside the vocabulary"):
            SamplingState(kind, [0], [], VOCAB)
