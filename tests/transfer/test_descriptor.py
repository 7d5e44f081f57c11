"""Descriptors survive being carried, and what is none is said to be none."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transfer_world import filled

from hyperflexis.transfer.descriptor import DESCRIPTOR_BYTES_MAX, Descriptor, read_descriptor
from hyperflexis.transfer.errors import BadDescriptor
from hyperflexis.transfer.source import Source


def test_descriptor_survives_being_carried(source: Source) -> None:
    descriptor = source.describe(source.expose(filled(64), 10.0, "n" * 500))
    assert read_descriptor(descriptor.to_bytes()) == descriptor
    assert len(descriptor.to_bytes()) < 1000
    assert descriptor.size_bytes == 64
    assert descriptor.tcp is not None
    assert descriptor.tcp[0] == "127.0.0.1"


@given(st.binary(max_size=100))
def test_random_bytes_are_no_descriptor(data: bytes) -> None:
    with pytest.raises(BadDescriptor):
        read_descriptor(data)


def test_huge_and_foreign_descriptors_are_refused(source: Source) -> None:
    with pytest.raises(BadDescriptor, match="at most"):
        read_descriptor(bytes(DESCRIPTOR_BYTES_MAX + 1))
    descriptor = source.describe(source.expose(filled(64), 10.0))
    with pytest.raises(BadDescriptor, match="version 2, not 1"):
        read_descriptor(msgspec.structs.replace(descriptor, version=2).to_bytes())


def test_tokens_differ_between_regions_and_sources(source: Source) -> None:
    def token(of: Source) -> bytes:
        return of.describe(of.expose(filled(64), 10.0)).token

    with Source() as other:
        tokens = {token(source), token(source), token(other)}
    assert len(tokens) == 3
    assert all(len(each) == 16 for each in tokens)
    assert isinstance(source.describe(source.expose(b"x", 1.0)), Descriptor)
