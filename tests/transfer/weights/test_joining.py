"""Proofs: who lacks the secret, or repeats what was said before, is not believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from weights_world import IDENTITY

from hyperflexis.transfer.place import here
from hyperflexis.transfer.weights.joining import Accept, Decline, Join, Unproved, check, prove

SAID = [Join(b"nonce", IDENTITY, True), Accept("me", here(), "name", IDENTITY, {}), Decline("no")]


@pytest.mark.parametrize("message", SAID)
def test_message_crosses(message: Join | Accept | Decline) -> None:
    assert check(prove(message, b"secret", b"n"), b"secret", b"n") == message


@pytest.mark.parametrize(("secret", "nonce"), [(b"other", b"n"), (b"secret", b"m"), (b"", b"n"), (b"secret", b"")])
def test_other_secret_or_number_is_not_believed(secret: bytes, nonce: bytes) -> None:
    with pytest.raises(Unproved, match="another secret"):
        check(prove(SAID[2], b"secret", b"n"), secret, nonce)


@given(st.data())
def test_changed_message_is_not_believed(data: st.DataObject) -> None:
    message = bytearray(prove(SAID[0], b"secret"))
    message[data.draw(st.integers(0, len(message) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Unproved):
        check(bytes(message), b"secret")


@given(st.binary(max_size=200))
def test_garbage_is_not_believed(garbage: bytes) -> None:
    with pytest.raises(Unproved):
        check(garbage, b"secret")
