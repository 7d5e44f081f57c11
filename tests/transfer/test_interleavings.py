"""Whatever owner and reader do in whatever order: what is read was lent at that instant, byte for byte."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_world import MEDIA, HandClock

from helpers import soak
from hyperflexis.transfer.descriptor import Descriptor
from hyperflexis.transfer.errors import LeaseExpired, Recycled, RefusedError, Revoked
from hyperflexis.transfer.memory import SharedMemory
from hyperflexis.transfer.receiver import Receiver
from hyperflexis.transfer.region import Region
from hyperflexis.transfer.source import Source

SIZE = 200
ACTS = ("expose", "renew", "shorten", "recycle", "revoke", "wait", "pull", "pull")


class Lent(NamedTuple):
    """What the model knows of a descriptor."""

    descriptor: Descriptor
    region: int
    generation: int
    content: int


class World:
    """The real thing, and beside it what it should do: end and generation of each region, in plain numbers."""

    def __init__(self, source: Source, receivers: dict[str, Receiver], clock: HandClock) -> None:
        self.source, self.receivers, self.clock = source, receivers, clock
        self.regions: list[Region] = []
        self.memories: list[SharedMemory] = []
        self.ends: list[float | None] = []
        self.generations: list[int] = []
        self.lent: list[Lent] = []

    @property
    def now_s(self) -> float:
        return self.clock.now_ns / 1e9

    def describe(self, index: int) -> None:
        """The region's bytes become a new content, and its descriptor goes out."""
        content = len(self.lent) % 251 + 1
        self.memories[index].view[:] = bytes([content]) * SIZE
        descriptor = self.source.describe(self.regions[index])
        self.lent.append(Lent(descriptor, index, self.generations[index], content))

    def expose(self, lease_s: float) -> None:
        self.memories.append(SharedMemory(SIZE))
        self.regions.append(self.source.expose(self.memories[-1], lease_s))
        self.ends.append(self.now_s + lease_s)
        self.generations.append(0)
        self.describe(len(self.regions) - 1)

    def refusal(self, index: int, generation: int) -> type[RefusedError] | None:
        end = self.ends[index]
        if end is None:
            return Revoked
        if generation != self.generations[index]:
            return Recycled
        return LeaseExpired if self.now_s >= end else None

    def change(self, act: str, index: int, lease_s: float) -> None:
        """Renew or shorten: allowed as long as it is lent."""
        refusal = self.refusal(index, self.generations[index])
        call = self.source.renew if act == "renew" else self.source.shorten
        if refusal is not None:
            with pytest.raises(refusal):
                call(self.regions[index], lease_s)
            return
        call(self.regions[index], lease_s)
        end = self.ends[index]
        assert end is not None
        better = max if act == "renew" else min
        self.ends[index] = better(end, self.now_s + lease_s)

    def recycle(self, index: int, lease_s: float) -> None:
        if self.ends[index] is None:
            with pytest.raises(Revoked):
                self.source.recycle(self.regions[index], lease_s)
            return
        self.source.recycle(self.regions[index], lease_s)
        self.ends[index] = self.now_s + lease_s
        self.generations[index] += 1
        self.describe(index)

    def revoke(self, index: int) -> None:
        self.source.revoke(self.regions[index])
        self.ends[index] = None

    def pull(self, which: int, medium: str) -> None:
        lent = self.lent[which % len(self.lent)]
        target = bytearray(SIZE)
        handle = self.receivers[medium].pull(lent.descriptor, [(0, 0, SIZE)], target)
        refusal = self.refusal(lent.region, lent.generation)
        if refusal is None:
            handle.result(20.0)
            assert target == bytes([lent.content]) * SIZE
        else:
            with pytest.raises(refusal):
                handle.result(20.0)


@pytest.mark.soak
def test_random_interleavings() -> None:
    clock = HandClock()
    receivers = {name: Receiver([name], clock=clock) for name in MEDIA}

    @given(
        st.lists(
            st.tuples(st.sampled_from(ACTS), st.integers(0, 99), st.integers(1, 8).map(float), st.sampled_from(MEDIA)),
            min_size=5,
            max_size=25,
        )
    )
    @settings(max_examples=soak.examples(80))
    def check(acts: list[tuple[str, int, float, str]]) -> None:
        world = World(source, receivers, clock)
        world.expose(4.0)
        for act, which, seconds, medium in acts:
            index = which % len(world.regions)
            if act == "expose":
                world.expose(seconds)
            elif act == "wait":
                clock.advance(seconds / 2)
            elif act == "pull":
                world.pull(which, medium)
            elif act == "revoke":
                world.revoke(index)
            elif act == "recycle":
                world.recycle(index, seconds)
            else:
                world.change(act, index, seconds)
        for region in world.regions:
            source.revoke(region)

    with Source(clock=clock) as source:
        check()
    for receiver in receivers.values():
        receiver.close()
