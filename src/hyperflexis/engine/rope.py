"""Rotary position embedding: frequencies, their scaling, and tables of cosine and sine grown as contexts do.

Formulas as in transformers' `modeling_rope_utils` (default, linear, llama3), in float32 as there. The sine is stored
with its first half negated, so that rotating is `x * cos + roll(x, half) * sin`: three kernels instead of six.
"""

from __future__ import annotations

import math

import torch

from hyperflexis.engine.config import ModelConfig, RopeScaling


def inverse_frequencies(config: ModelConfig) -> torch.Tensor:
    """Return the angle per token of each pair of dimensions, float32 `[head_dim / 2]`."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    plain = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    return _llama3(plain, scaling)


def _llama3(plain: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Long waves are stretched by the factor, short ones kept, those between interpolated."""
    original = scaling.original_context_tokens
    wavelength = 2 * math.pi / plain
    stretched = plain / scaling.factor
    smooth = (original / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    between = (1 - smooth) * stretched + smooth * plain
    is_long = wavelength > original / scaling.low_freq_factor
    is_short = wavelength < original / scaling.high_freq_factor
    return torch.where(is_long, stretched, torch.where(is_short, plain, between))


class RopeTable:
    """Cosine and signed sine of every position met so far, doubled when a longer context comes."""

    TOKENS_FIRST = 4096

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._frequencies = inverse_frequencies(config)
        self._dtype = dtype
        self._device = device
        self._grow(min(self.TOKENS_FIRST, config.context_tokens_max))

    def _grow(self, tokens: int) -> None:
        angles = torch.outer(torch.arange(tokens, dtype=torch.float32), self._frequencies)  # [tokens, head_dim / 2]
        cos, sin = angles.cos(), angles.sin()
        # [tokens, 2, head_dim]: one lookup per step yields both.
        table = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), 1)
        self._table = table.to(dtype=self._dtype, device=self._device)

    def at(self, positions: torch.Tensor, position_max: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (cosine, signed sine) for positions `[N]`, each `[N, 1, head_dim]` to broadcast over heads."""
        if position_max >= self._table.shape[0]:
            self._grow(1 << position_max.bit_length())
        rows = self._table.index_select(0, positions)  # [N, 2, head_dim]
        return rows[:, :1], rows[:, 1:]
