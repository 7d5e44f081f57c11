"""Packed products equal plain ones, and are done without where they do not."""

from __future__ import annotations

import pytest
import torch
from engine_models import random_runner, tiny_config
from engine_player import Job, Player, mixed_prompts

from hyperflexis.engine import linear as linear_module
from hyperflexis.engine import model as model_module
from hyperflexis.engine.linear import (
    Linear,
    PackedLinear,
    PlainLinear,
    WidenedLinear,
    can_multiply,
    can_pack,
    padded_rows,
)

NEEDS_PACKING = pytest.mark.skipif(not can_pack(torch.float32), reason="this torch has no packed products")


@NEEDS_PACKING
@pytest.mark.parametrize("rows", [0, 1, 7, 32, 33, 100, 256])
@pytest.mark.parametrize("has_bias", [False, True])
def test_packed_products_equal_plain_ones(rows: int, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight, x, base = (torch.randn(shape, generator=generator) for shape in ((40, 24), (rows, 24), (rows, 40)))
    bias = torch.randn(40, generator=generator) if has_bias else None
    ways: list[Linear] = [PlainLinear(weight, bias), PackedLinear(weight, bias)]
    plain, packed = (torch.stack((way(x), way.add_to(x, base.clone()))) for way in ways)
    torch.testing.assert_close(packed, plain)
    torch.testing.assert_close(plain[1], plain[0] + base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 8, 100])
@pytest.mark.parametrize("has_bias", [False, True])
def test_widened_products_are_the_exact_ones_rounded_once(
    dtype: torch.dtype, rows: int, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_module, "_WIDENED_WEIGHTS", 24 * 7)  # Several pieces, and the last one smaller.
    generator = torch.Generator().manual_seed(rows)
    shapes = ((40, 24), (rows, 24), (rows, 40), (40,))
    weight, x, base, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    way = WidenedLinear(weight, bias if has_bias else None)
    exact = x.double() @ weight.double().t() + (bias.double() if has_bias else 0)
    ulps = {torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(way(x).double(), exact, rtol=ulps, atol=ulps)
    torch.testing.assert_close(way.add_to(x, base.clone()).double(), exact + base.double(), rtol=ulps, atol=2 * ulps)
    assert way(x).dtype == way.add_to(x, base.clone()).dtype == dtype


def test_products_are_widened_where_the_cpu_has_none_of_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which changes no token of a model in float32."""
    assert can_multiply(torch.float32)
    config, prompts = tiny_config(qkv_bias=True), mixed_prompts(6, 97, seed=1)
    outputs = []
    for can in (True, False):
        monkeypatch.setattr(model_module, "can_multiply", lambda _, can=can: can)
        runner = random_runner(config=config, packed_bytes_max=0)
        assert isinstance(runner._model.logits, WidenedLinear) is not can
        outputs.append(Player(runner, chunk_tokens_max=9).play([Job(i, p, 8) for i, p in enumerate(prompts)]))
    assert outputs[0] == outputs[1]


def test_few_numbers_of_rows_are_multiplied_and_little_is_padding() -> None:
    padded = [padded_rows(rows) for rows in range(1025)]
    assert padded[:33] == list(range(33))
    assert all(rows <= to <= rows * 9 / 8 + 1 for rows, to in enumerate(padded))
    assert all(padded_rows(to) == to for to in padded)
    assert padded == sorted(padded)
    assert len(set(padded[1:])) == 32 + 5 * 8


@NEEDS_PACKING
def test_both_ways_emit_the_same_tokens() -> None:
    config = tiny_config(qkv_bias=True, o_bias=True, mlp_bias=True)
    prompts = mixed_prompts(6, 97, seed=1)
    outputs = []
    for limit in (0, 1 << 28):
        runner = random_runner(config=config, packed_bytes_max=limit)
        assert runner.is_packed == (limit > 0)
        outputs.append(Player(runner, chunk_tokens_max=9).play([Job(i, p, 8) for i, p in enumerate(prompts)]))
    assert outputs[0] == outputs[1]


def test_a_torch_without_the_operators_multiplies_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing(PlainLinear):
        def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
            raise AttributeError("no such operator")

    class Wrong(PlainLinear):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return super().__call__(x) * 1.5

    for way in (Missing, Wrong):
        monkeypatch.setattr(linear_module, "PackedLinear", way)
        assert not can_pack(torch.float32)
    assert not random_runner().is_packed
