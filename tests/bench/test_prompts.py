"""Prompts are as long as asked, and begin alike exactly where the trace's do."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.bench.prompts import CHAT, IDS, TEXT, TOKEN_IDS, Prompts

BLOCK_TOKENS = 16
PROMPTS = Prompts(IDS, BLOCK_TOKENS, 0)
LONG_WORDS = Prompts(replace(TEXT, tokens_per_unit=1.4, tokens_besides=30), BLOCK_TOKENS, 0)
HASHES = st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=6).map(tuple)


def decoded(member: bytes) -> Any:
    return json.loads(b"{" + member + b"}")


def ids(prompts: Prompts, number: int, tokens: int, hashes: tuple[bytes, ...] = ()) -> list[int]:
    found: list[int] = decoded(prompts.of(number, tokens, hashes))["prompt"]
    return found


@given(tokens=st.integers(1, 3000), hashes=HASHES)
def test_ids_are_as_many_as_asked(tokens: int, hashes: tuple[bytes, ...]) -> None:
    found = ids(PROMPTS, 1, tokens, hashes[: tokens // BLOCK_TOKENS])
    assert len(found) == tokens
    assert set(found) <= set(TOKEN_IDS)


@given(one=HASHES, other=HASHES)
def test_prompts_begin_alike_where_their_hashes_do(one: tuple[bytes, ...], other: tuple[bytes, ...]) -> None:
    first, second = ids(PROMPTS, 1, 100, one), ids(PROMPTS, 2, 100, other)
    shared = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    alike = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
    assert shared * BLOCK_TOKENS <= alike < (shared + 1) * BLOCK_TOKENS


def test_seeds_give_other_prompts_and_equal_ones_the_same() -> None:
    one, same, other = (ids(Prompts(IDS, BLOCK_TOKENS, seed), 3, 500) for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("form", [TEXT, CHAT])
def test_words_come_to_the_tokens_that_they_are_said_to(form: Any) -> None:
    prompts = Prompts(replace(form, tokens_per_unit=1.25, tokens_besides=10), BLOCK_TOKENS, 0)
    told = decoded(prompts.of(1, 510, (b"a", b"b")))
    text = told["prompt"] if form is TEXT else told["messages"][0]["content"]
    assert len(text.split()) == 400
    assert text.isprintable()


@given(tokens=st.integers(1, 60), hashes=HASHES)
def test_no_prompt_is_empty_however_short(tokens: int, hashes: tuple[bytes, ...]) -> None:
    text = decoded(LONG_WORDS.of(1, tokens, hashes))["prompt"]
    assert text.split()
    assert "  " not in text
