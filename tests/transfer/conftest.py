"""A source, and a receiver for each medium that works everywhere, under one clock that only tests move."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from transfer_world import MEDIA, HandClock

from hyperflexis.transfer.receiver import Receiver
from hyperflexis.transfer.source import Source


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def source(clock: HandClock) -> Iterator[Source]:
    with Source(clock=clock) as source:
        yield source


@pytest.fixture(params=MEDIA)
def medium(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def receiver(medium: str, clock: HandClock) -> Iterator[Receiver]:
    with Receiver([medium], clock=clock) as receiver:
        yield receiver
