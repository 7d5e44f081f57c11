"""The forward pass of the Llama family (Llama, Qwen2, Qwen3) over packed tokens of many sequences.

It knows tokens, positions and slots, but no sequence: which token attends to which is the attention plan's business.
Formulas as in transformers' `modeling_llama`, `modeling_qwen2` and `modeling_qwen3`; the families differ in biases and
in norms of queries and keys, which are `if`s here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from hyperflexis.engine.attention import Attention
from hyperflexis.engine.config import ModelConfig
from hyperflexis.engine.kv import KvPool
from hyperflexis.engine.linear import Linear, PackedLinear, PlainLinear, WidenedLinear, can_multiply, can_pack
from hyperflexis.engine.rope import RopeTable


@dataclass(slots=True)
class Layer:
    """One layer's weights, bound to the way in which they are used."""

    attention_norm: RmsNorm
    qkv: Linear
    qk_norm: RmsNorm | None
    o: Linear
    mlp_norm: RmsNorm
    gate_up: Linear
    down: Linear


@dataclass(slots=True)
class StepInput:
    """What one forward pass computes. `N` tokens."""

    ids: torch.Tensor
    """[N]"""
    positions: torch.Tensor
    """[N]"""
    position_max: int
    slots: torch.Tensor
    """[N] where keys go (see `KvPool`)."""
    plan: Any
    """Of the attention in use."""
    wanted: torch.Tensor | None
    """Indexes of the tokens whose next-token logits are wanted; None for all of them in order."""


class RmsNorm:
    """x / rms(x) * weight, over the last dimension."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self._weight = weight
        self._eps = eps
        self._eps_scalar = torch.tensor(eps, dtype=torch.float32, device=weight.device)
        self._size = weight.shape[-1]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32:
            # Squares are summed, and the quotient taken, in float32; rounded before the weight, as in transformers.
            return F.rms_norm(x, (self._size,), None, self._eps).mul_(self._weight)
        # Four kernels on one temporary, where `rms_norm` takes seven on three.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.addcmul(self._eps_scalar, length, length, value=1.0 / self._size).rsqrt_()
        return torch.mul(x, scale).mul_(self._weight)


class Model:
    """A decoder bound to its weights, its pool and its way of attention."""

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, torch.Tensor],
        pool: KvPool,
        attention: Attention,
        packed_bytes_max: int,
    ) -> None:
        self._config = config
        self._pool = pool
        self._attention = attention
        self._embed = weights["embed"]
        self._rope = RopeTable(config, self._embed.dtype, self._embed.device)
        linear = _way_to_multiply(weights, packed_bytes_max)
        self.is_packed = linear is PackedLinear
        self._layers = [_layer(config, weights, f"layers.{layer}.", linear) for layer in range(config.layers)]
        self._norm = RmsNorm(weights["norm"], config.rms_norm_eps)
        self.logits = linear(weights.get("lm_head", self._embed), None)
        """`[rows, vocab]` for rows of `forward`'s result."""

    def forward(self, step: StepInput) -> torch.Tensor:
        """Compute the step and return the normed hidden states of the wanted tokens, `[wanted, hidden]`."""
        rope = self._rope.at(step.positions, step.position_max)
        hidden = self._embed.index_select(0, step.ids)  # [N, hidden]
        last, ffn = len(self._layers) - 1, self._config.intermediate_size
        for index, layer in enumerate(self._layers):
            attended = self._attend(index, layer, step, rope, hidden)
            if index == last and step.wanted is not None:
                # Every key is in the pool now; from here on only what becomes logits matters.
                attended, hidden = attended.index_select(0, step.wanted), hidden.index_select(0, step.wanted)
            hidden = layer.o.add_to(attended, hidden)
            gate, up = layer.gate_up(layer.mlp_norm(hidden)).split_with_sizes((ffn, ffn), 1)
            hidden = layer.down.add_to(F.silu(gate).mul_(up), hidden)
        return self._norm(hidden)

    def _attend(
        self, index: int, layer: Layer, step: StepInput, rope: tuple[torch.Tensor, torch.Tensor], hidden: torch.Tensor
    ) -> torch.Tensor:
        heads, kv_heads, head_dim = self._config.heads, self._config.kv_heads, self._config.head_dim
        qkv = layer.qkv(layer.attention_norm(hidden)).view(-1, heads + 2 * kv_heads, head_dim)
        qk, v = qkv.split_with_sizes((heads + kv_heads, kv_heads), 1)
        if layer.qk_norm is not None:
            qk = layer.qk_norm(qk)
        q, k = rotate(qk, *rope).split_with_sizes((heads, kv_heads), 1)
        self._pool.key_slots[index].index_copy_(0, step.slots, k)
        self._pool.value_slots[index].index_copy_(0, step.slots, v)
        return self._attention.attend(step.plan, index, q, k, v)


def rotate(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary embedding to `[N, heads, head_dim]` (see `RopeTable`)."""
    return torch.mul(x, cos).addcmul_(x.roll(x.shape[-1] // 2, -1), signed_sin)


def _way_to_multiply(
    weights: dict[str, torch.Tensor], packed_bytes_max: int
) -> Callable[[torch.Tensor, torch.Tensor | None], Linear]:
    embed = weights["embed"]
    if embed.device.type != "cpu":
        return PlainLinear
    if sum(weight.nbytes for weight in weights.values()) <= packed_bytes_max and can_pack(embed.dtype):
        return PackedLinear
    return PlainLinear if can_multiply(embed.dtype) else WidenedLinear


def _layer(
    config: ModelConfig,
    weights: dict[str, torch.Tensor],
    at: str,
    linear: Callable[[torch.Tensor, torch.Tensor | None], Linear],
) -> Layer:
    def norm(name: str) -> RmsNorm:
        return RmsNorm(weights[at + name], config.rms_norm_eps)

    def product(name: str) -> Linear:
        return linear(weights[at + name], weights.get(f"{at}{name}_bias"))

    qk_norm = None
    if config.qk_norm:
        # One row per head lets queries and keys be normed together: [heads + kv_heads, head_dim].
        q_norm = weights[at + "q_norm"].expand(config.heads, -1)
        k_norm = weights[at + "k_norm"].expand(config.kv_heads, -1)
        qk_norm = RmsNorm(torch.cat((q_norm, k_norm)), config.rms_norm_eps)
    return Layer(
        attention_norm=norm("attention_norm"),
        qkv=product("qkv"),
        qk_norm=qk_norm,
        o=product("o"),
        mlp_norm=norm("mlp_norm"),
        gate_up=product("gate_up"),
        down=product("down"),
    )
