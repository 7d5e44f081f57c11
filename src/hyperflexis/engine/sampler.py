"""From logits to tokens, for many sequences at once, each by its own `Sampling`.

Order of the changes to a row, as in transformers and vLLM: repetition penalty → frequency and presence penalties →
logit bias → stop ids masked before `min_tokens` → (temperature 0: the largest) → temperature → top_k → top_p → min_p
→ draw. Repetition is Hugging Face's formula over prompt and output, frequency and presence are OpenAI's over the
output alone. Log-probabilities are of the raw logits, before any of it.

top_k, top_p and min_p each become a threshold on the scaled logit, and every token that reaches the highest of the
three is kept, ties included: so what is kept depends on the row alone, never on the order in which a kernel sorted
equals.

A draw is a function of (seed, output position, row): one uniform number from an integer hash, turned into a token by
the inverse of the cumulative distribution in token-id order, in float64. There is no generator state to carry, so a
request draws the same tokens in any batch and on any instance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from hyperflexis.engine.errors import EngineError
from hyperflexis.wire.messages import Sampling, TokenLogprobs

NO_TOKEN = -1
"""Stands for the token of a sequence that failed."""

Floats: TypeAlias = npt.NDArray[np.float64]

_NOT_FINITE = "the model's logits are not finite"
_NOTHING_ALLOWED = "no token is allowed by logit_bias and min_tokens"


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> Floats:
    """Return one number in [0, 1) per (seed, position): splitmix64's finaliser, once over each."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    seed = np.array([each & 0xFFFFFFFFFFFFFFFF for each in seeds], dtype=np.uint64)
    position = np.array(positions, dtype=np.uint64)
    mixed = _mix(_mix(seed + golden) + (position + np.uint64(1)) * golden)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class TokenCounts:
    """Which tokens a sequence has met, and how often it emitted each; grows with the distinct tokens, not the vocab."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._ids = np.empty(16, dtype=np.int64)
        self._counts = np.empty(16, dtype=np.float32)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        return self._counts[: len(self._places)]

    def add(self, token: int, count: int) -> None:
        place = self._places.get(token)
        if place is not None:
            self._counts[place] += count
            return
        place = self._places[token] = len(self._places)
        if place == len(self._ids):
            self._ids = np.concatenate((self._ids, np.empty_like(self._ids)))
            self._counts = np.concatenate((self._counts, np.empty_like(self._counts)))
        self._ids[place], self._counts[place] = token, count


class SamplingState:
    """What sampling must remember of one sequence."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], emitted: Sequence[int], vocab_size: int) -> None:
        for name, ids in (("logit_bias", sampling.logit_bias), ("stop_ids", sampling.stop_ids)):
            if any(not 0 <= token < vocab_size for token in ids):
                raise EngineError(f"{name} names a token outside the vocabulary of {vocab_size}")
        self.sampling = sampling
        self.emitted = 0
        self.repeats = sampling.repetition_penalty != 1.0
        self.counts: TokenCounts | None = None
        if self.repeats or sampling.frequency_penalty or sampling.presence_penalty:
            self.counts = TokenCounts()
            for token in prompt if self.repeats else ():
                self.counts.add(token, 0)
        self.bias_ids = np.array(list(sampling.logit_bias), dtype=np.int64)
        self.bias = np.array(list(sampling.logit_bias.values()), dtype=np.float32)
        self.stop_ids = np.array(sampling.stop_ids, dtype=np.int64)
        self._min_tokens = sampling.min_tokens if sampling.stop_ids else 0
        self._is_plain_later = (
            sampling.temperature == 0 and self.counts is None and not sampling.logit_bias and sampling.logprobs is None
        )
        self.is_plain = self._is_plain_later and self._min_tokens == 0
        """Whether the next token is just the largest logit."""
        for token in emitted:
            self.record(token)

    @property
    def is_stop_masked(self) -> bool:
        return self.emitted < self._min_tokens

    def record(self, token: int) -> None:
        """Take note of an emitted token."""
        self.emitted += 1
        if self.counts is not None:
            self.counts.add(token, 1)
        self.is_plain = self._is_plain_later and self.emitted >= self._min_tokens


@dataclass(slots=True)
class Draws:
    """What a step drew; keys are indexes into `tokens`."""

    tokens: list[int]
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)


class Sampler:
    """Draws the next token of each row and records it in the row's state."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._work = torch.empty((0, vocab_size), dtype=torch.float32, device=device)

    def draw(self, logits: torch.Tensor, states: Sequence[SamplingState]) -> Draws:
        """Return a token per row of `[rows, vocab]`; the logits are left as they are."""
        if all(state.is_plain for state in states):
            draws = self._draw_largest(logits)
        else:
            draws = self._draw_any(logits, states)
        for state, token in zip(states, draws.tokens, strict=True):
            if token != NO_TOKEN:
                state.record(token)
        return draws

    def _as_float(self, logits: torch.Tensor) -> torch.Tensor:
        """Copy to the resident float32 buffer."""
        rows = logits.shape[0]
        if rows > self._work.shape[0]:
            self._work = self._work.new_empty((2 * rows, self._vocab_size))
        return self._work[:rows].copy_(logits)

    def _draw_largest(self, logits: torch.Tensor) -> Draws:
        if self._device.type == "cpu":
            # numpy's argmax is vectorised; torch's is 5 times slower in float32 and 20 times in bfloat16.
            rows = (logits if logits.dtype == torch.float32 else self._as_float(logits)).numpy()
            largest = rows.argmax(axis=1)
            values = rows.take(largest + np.arange(0, rows.size, rows.shape[1]))
        else:
            best = logits.max(dim=1)
            largest, values = best.indices.cpu().numpy(), best.values.float().cpu().numpy()
        # A NaN anywhere in a row is that row's maximum.
        tokens: list[int] = largest.tolist()
        if np.isfinite(values).all():
            return Draws(tokens)
        return _with_failures(Draws(tokens), np.flatnonzero(~np.isfinite(values)), _NOT_FINITE)

    def _draw_any(self, logits: torch.Tensor, states: Sequence[SamplingState]) -> Draws:
        work = self._as_float(logits)
        bad = ~work.amax(dim=1).isfinite()
        if bad.any():
            work[bad] = 0.0
        self._change(work, states)
        best = work.max(dim=1)
        blocked = best.values.isneginf()
        tokens = best.indices.clone()
        drawn = [row for row, state in enumerate(states) if state.sampling.temperature > 0]
        if drawn:
            index = torch.tensor(drawn, device=self._device)
            scaled = work if len(drawn) == len(states) else work.index_select(0, index)
            # Blocked rows draw from anything, to be overruled below: one row's trouble must not be the batch's.
            maxima = torch.where(blocked, 0.0, best.values).index_select(0, index)
            scaled = scaled.sub_(maxima[:, None]) if scaled is work else scaled - maxima[:, None]
            tokens[index] = draw_scaled(scaled, [states[row] for row in drawn])
        draws = Draws(tokens.tolist())
        _with_failures(draws, blocked.nonzero()[:, 0].tolist(), _NOTHING_ALLOWED)
        _with_failures(draws, bad.nonzero()[:, 0].tolist(), _NOT_FINITE)
        draws.logprobs = self._logprobs(logits, draws, states)
        return draws

    def _logprobs(
        self, logits: torch.Tensor, draws: Draws, states: Sequence[SamplingState]
    ) -> dict[int, TokenLogprobs]:
        widths = {
            row: state.sampling.logprobs
            for row, state in enumerate(states)
            if state.sampling.logprobs is not None and row not in draws.errors
        }
        if not widths:
            return {}
        raw = logits.index_select(0, torch.tensor(list(widths), device=self._device))
        chosen = [draws.tokens[row] for row in widths]
        return dict(zip(widths, token_logprobs(raw, chosen, list(widths.values())), strict=True))

    def _change(self, work: torch.Tensor, states: Sequence[SamplingState]) -> None:
        """Apply penalties, bias and the mask of stop ids, in place."""
        flat = work.view(-1)
        counted = [(row, state.counts, state.sampling) for row, state in enumerate(states) if state.counts is not None]
        if counted:
            self._penalise(flat, counted)
        biased = [(row, state) for row, state in enumerate(states) if len(state.bias_ids)]
        if biased:
            places = self._places((row, state.bias_ids) for row, state in biased)
            flat.index_add_(0, places, self._floats([state.bias for _, state in biased]))
        masked = [(row, state.stop_ids) for row, state in enumerate(states) if state.is_stop_masked]
        if masked:
            flat.index_fill_(0, self._places(masked), float("-inf"))

    def _penalise(self, flat: torch.Tensor, counted: Sequence[tuple[int, TokenCounts, Sampling]]) -> None:
        places = self._places((row, counts.ids) for row, counts, _ in counted)
        count = self._floats([counts.counts for _, counts, _ in counted])
        # [3, tokens met]: each sequence's penalties beside each of its tokens.
        repetition, frequency, presence = self._floats(
            [
                np.tile(
                    np.array([[s.repetition_penalty], [s.frequency_penalty], [s.presence_penalty]], dtype=np.float32),
                    len(counts.ids),
                )
                for _, counts, s in counted
            ]
        )
        value = flat.index_select(0, places)
        value = torch.where(value > 0, value / repetition, value * repetition)
        value -= frequency * count + presence * (count > 0)
        flat.index_copy_(0, places, value)

    def _places(self, rows: Iterable[tuple[int, npt.NDArray[np.int64]]]) -> torch.Tensor:
        """Return indexes into the flattened rows."""
        return torch.from_numpy(np.concatenate([ids + row * self._vocab_size for row, ids in rows])).to(self._device)

    def _floats(self, parts: list[npt.NDArray[np.float32]]) -> torch.Tensor:
        """Join along the last axis."""
        return torch.from_numpy(np.concatenate(parts, axis=-1)).to(self._device)


def _with_failures(draws: Draws, rows: Iterable[int], reason: str) -> Draws:
    for row in rows:
        draws.tokens[int(row)] = NO_TOKEN
        draws.errors[int(row)] = reason
    return draws


def token_logprobs(raw: torch.Tensor, tokens: Sequence[int], widths: Sequence[int]) -> list[TokenLogprobs]:
    """Return the log-probability of each row's token and of its `width` most likely ones."""
    rows = raw.float()
    normaliser = rows.logsumexp(dim=1)
    chosen = rows.gather(1, torch.tensor(tokens, device=raw.device)[:, None])[:, 0] - normaliser
    top = rows.topk(min(max(widths), rows.shape[1]), dim=1)
    top_ids: list[list[int]] = top.indices.tolist()
    top_values: list[list[float]] = (top.values - normaliser[:, None]).tolist()
    return [
        TokenLogprobs(token, logprob, ids[:width], values[:width])
        for token, logprob, ids, values, width in zip(tokens, chosen.tolist(), top_ids, top_values, widths, strict=True)
    ]


def draw_scaled(rows: torch.Tensor, states: Sequence[SamplingState]) -> torch.Tensor:
    """Draw a token for each row of logits (its maximum already 0) with temperature above 0."""
    samplings = [state.sampling for state in states]
    uniform = uniforms([each.seed for each in samplings], [state.emitted for state in states])
    temperature = np.array([each.temperature for each in samplings], dtype=np.float32)
    scaled = rows / torch.from_numpy(temperature).to(rows.device)[:, None]
    weights = scaled.double().exp_()
    filtered = [row for row, each in enumerate(samplings) if each.top_k or each.top_p < 1 or each.min_p]
    if filtered:
        index = torch.tensor(filtered, device=rows.device)
        threshold = torch.full((len(samplings), 1), -math.inf, dtype=torch.float64, device=rows.device)
        threshold[index] = _thresholds(scaled.index_select(0, index), [samplings[row] for row in filtered])
        weights.masked_fill_(scaled < threshold, 0.0)
    return _invert(weights, torch.from_numpy(uniform).to(rows.device))


def _thresholds(scaled: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """Return the logit that a kept token reaches, float64 `[rows, 1]`."""

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=scaled.device)[:, None]

    threshold = column([math.log(each.min_p) if each.min_p > 0 else -math.inf for each in samplings])
    if not any(each.top_k or each.top_p < 1 for each in samplings):
        return threshold
    vocab_size = scaled.shape[1]
    has_share = any(each.top_p < 1 for each in samplings)
    width = min(max(each.top_k for each in samplings), vocab_size)
    values = (_descending(scaled) if has_share else scaled.topk(width, dim=1).values).double()
    top_k = torch.tensor([each.top_k for each in samplings], dtype=torch.int64, device=scaled.device)[:, None]
    kth = values.gather(1, top_k.clamp(1, values.shape[1]) - 1)
    by_top_k = torch.where((top_k > 0) & (top_k < vocab_size), kth, -math.inf)
    threshold = torch.maximum(threshold, by_top_k)
    if has_share:
        # top_p counts shares of what top_k left; a token counts while the more likely ones hold less than top_p.
        top_p = column([each.top_p for each in samplings])
        mass = torch.where(values >= by_top_k, values.exp(), 0.0)
        before = mass.cumsum(1) - mass
        kept = ((before < top_p * mass.sum(1, keepdim=True)) & (mass > 0)).sum(1, keepdim=True).clamp_(min=1)
        threshold = torch.maximum(threshold, torch.where(top_p < 1, values.gather(1, kept - 1), -math.inf))
    return threshold


def _descending(rows: torch.Tensor) -> torch.Tensor:
    """Sort each row. numpy's sort is vectorised: on a CPU it takes a twentieth of torch's time."""
    if rows.device.type == "cpu":
        return torch.from_numpy(np.negative(np.sort(np.negative(rows.numpy()), axis=1)))
    return rows.sort(dim=1, descending=True).values


def _invert(weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Return for each row the first index whose cumulative weight exceeds u times the total."""
    cumulative = weights.cumsum(dim=1)
    total = cumulative[:, -1:]
    # Rounding may bring u * total up to the total itself, which no index exceeds.
    target = torch.minimum(u[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    # A row without any weight, whose draw is overruled, must still yield an index.
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=weights.shape[1] - 1)
