"""A key is found by its digest, and nothing else is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.gateway import access
from hyperflexis.gateway.access import KEY_CHARS_MAX, Allowance, ApiKey, KeyRing, digest_of, new_key, twins

KEYS = {name: new_key() for name in ("one", "two", "three")}
RING = KeyRing(tuple(ApiKey(name, digest_of(key), "acme") for name, key in KEYS.items()))


def test_new_keys_are_256_random_bits_behind_a_prefix() -> None:
    made = {new_key() for _ in range(50)}
    assert len(made) == 50
    assert all(re.fullmatch(r"hfx-[A-Za-z0-9_-]{43}", key) for key in made)


@pytest.mark.parametrize("name", KEYS)
def test_key_is_found(name: str) -> None:
    found = RING.find(KEYS[name])
    assert found is not None
    assert found.name == name


@given(st.text(max_size=300) | st.sampled_from(list(KEYS.values())).flatmap(lambda key: st.just(key[:-1])))
def test_what_is_no_key_is_not_found(text: str) -> None:
    assert RING.find(text) is None


def test_digest_is_no_key() -> None:
    """Who has read the file of keys has none."""
    assert all(RING.find(key.digest.hex()) is None for key in RING.keys)


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One comparison of whole digests, whether or not there is such a key."""
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(access.hmac, "compare_digest", compare)
    for text in (KEYS["one"], "nobody's", ""):
        RING.find(text)
    assert compared == [(32, 32)] * 3


def test_long_texts_are_not_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "digest_of", lambda key: pytest.fail("hashed"))
    assert RING.find("x" * (KEY_CHARS_MAX + 1)) is None


def test_headers_may_hold_bytes_that_are_no_text() -> None:
    assert RING.find("\udcff\udcfe") is None


def test_twins_are_told() -> None:
    digest = digest_of("same")
    assert twins([ApiKey("a", digest, "t"), ApiKey("b", digest_of("other"), "t"), ApiKey("c", digest, "t")]) == [
        ("a", "c")
    ]


def test_tenants_have_the_allowance_of_all_unless_they_are_listed() -> None:
    ring = KeyRing((), {"acme": Allowance(concurrent_max=3)}, Allowance(concurrent_max=9))
    assert ring.tenant_allowance("acme").concurrent_max == 3
    assert ring.tenant_allowance("other").concurrent_max == 9


def test_repr_of_a_ring_holds_no_table() -> None:
    assert "_by_digest" not in repr(RING)
