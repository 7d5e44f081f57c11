"""Chunks that are small, so that weights of some KiB have many; room for a recipient."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from weights_world import CHUNK, PIECE, Room

from hyperflexis.transfer.weights import filling, manifest, recipient


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (manifest, recipient):
        monkeypatch.setattr(module, "PIECE_BYTES", PIECE)
    for module in (manifest, filling):
        monkeypatch.setattr(module, "CHUNK_BYTES", CHUNK)


@pytest.fixture
def room() -> Iterator[Room]:
    made = Room()
    yield made
    made.close()
