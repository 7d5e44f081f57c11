"""Offers as bytes: what is none is refused in words."""

from __future__ import annotations

import msgspec
import pytest

from hyperflexis.transfer.errors import BadDescriptor
from hyperflexis.transfer.place import here
from hyperflexis.transfer.weights.offer import VERSION, Offer, offer_at, read_offer

OFFER = Offer(VERSION, "process 1 on host", b"secret", here(), "name", ("127.0.0.1", 9000))


def test_offer_crosses() -> None:
    assert read_offer(OFFER.to_bytes()) == OFFER
    at = offer_at("host", 9000, b"token")
    assert read_offer(at.to_bytes()) == at
    assert not here().shares_memory_with(at.place)


BAD = {
    "garbage": b"\xc1",
    "empty": b"",
    "too long": bytes(5000),
    "another version": msgspec.structs.replace(OFFER, version=VERSION + 1).to_bytes(),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_offer_is_refused(bad: str) -> None:
    with pytest.raises(BadDescriptor):
        read_offer(BAD[bad])
