"""Bytes of KV per token, of the models in the shipped table of profiles: what moving a token between instances moves.

Keys and values of every layer, at two bytes each, as the table's own KV memory is computed; fp8 names are of weights.
"""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """What of a model's configuration its KV depends on."""

    layers: int
    kv_heads: int
    head_size: int = 128

    @property
    def token_bytes(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_size * 2


SHAPES = {
    "llama-2-70b": Shape(80, 8),
    "llama-3-70b": Shape(80, 8),
    "llama-3-8b": Shape(32, 8),
    "qwen-72b-mha": Shape(80, 64),
    "qwen2.5-7b": Shape(28, 4),
    "qwen2.5-14b": Shape(48, 8),
    "qwen2.5-32b": Shape(64, 8),
    "qwen2.5-72b": Shape(80, 8),
    "qwen3-32b": Shape(64, 8),
}


def token_bytes(profile: str) -> int | None:
    """By the name of a shipped profile; None for any other."""
    shape = SHAPES.get(profile.partition("/")[0])
    return None if shape is None else shape.token_bytes
