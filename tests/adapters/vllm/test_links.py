"""Which servers may pass KV to which, by what they tell of themselves."""

from __future__ import annotations

from typing import Any

import pytest

from hyperflexis.adapters.vllm.links import Described, unlike


def described(url: str = "http://a", **fields: Any) -> Described:
    values = {"version": "0.32.0", "model": "m", "root": "/m", "block_tokens": 16, "cache_dtype": "auto"}
    return Described(url, **{**values, "transfers": True, **fields})


def test_servers_that_are_alike_are_linked() -> None:
    assert unlike(described(), described("http://b")) == ""


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("version", "0.33.0", "vLLM version is 0.32.0 at http://a and 0.33.0 at http://b"),
        ("root", "/n", "model path is /m at http://a and /n at http://b"),
        ("block_tokens", 32, "block size is 16 at http://a and 32 at http://b"),
        ("cache_dtype", "fp8", "KV number format is auto at http://a and fp8 at http://b"),
    ],
)
def test_what_connectors_would_refuse_is_refused(field: str, value: object, word: str) -> None:
    assert unlike(described(), described("http://b", **{field: value})) == f"KV cannot pass: {word}"
    assert unlike(described(transfers=False), described("http://b", **{field: value})) == "", "nothing is to pass"


def test_what_a_server_does_not_tell_is_not_held_against_it() -> None:
    assert unlike(described(version="", cache_dtype=""), described("http://b")) == ""


def test_other_model_is_refused_even_without_kv() -> None:
    said = "http://a serves m and http://b serves n"
    assert unlike(described(transfers=False), described("http://b", model="n", transfers=False)) == said
