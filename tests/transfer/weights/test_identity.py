"""Every difference is a reason to decline, in words."""

from __future__ import annotations

import msgspec
import pytest
from weights_world import IDENTITY

from hyperflexis.transfer.weights.identity import Identity

OTHERS = {
    "model": ("another model", {"model": "other"}),
    "dtype": ("another dtype", {"dtype": "bfloat16"}),
    "layout": ("another layout", {"layout": "other"}),
    "size": ("another layout", {"size_bytes": 1}),
    "rank": ("another part (rank 1 of 2, not 0 of 1)", {"rank": 1, "ranks": 2}),
    "ranks": ("another part", {"ranks": 2}),
}


@pytest.mark.parametrize("field", OTHERS)
def test_difference_is_named(field: str) -> None:
    words, changes = OTHERS[field]
    other = msgspec.structs.replace(IDENTITY, **changes)
    assert other.unlike(IDENTITY).startswith(words)
    assert IDENTITY.unlike(other)


def test_equal_ones_are_alike() -> None:
    assert not IDENTITY.unlike(IDENTITY)


def test_whoever_has_no_checkpoint_takes_any_model_of_that_shape() -> None:
    nameless: Identity = msgspec.structs.replace(IDENTITY, model="")
    assert not IDENTITY.unlike(nameless)
    assert nameless.unlike(IDENTITY), "who asks for one model does not get one without a name"
