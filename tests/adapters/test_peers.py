"""Links between two pools of this process: what is lent, what is refused, and how a loop sleeps until a copy ends."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

torch = pytest.importorskip("torch")

from adapters.fleets import DEMO_MODEL  # noqa: E402 after the check for torch, without which these do not import
from hyperflexis.adapters.native import peers as module  # noqa: E402
from hyperflexis.adapters.native.peers import Joined, Peers, Pulled  # noqa: E402
from hyperflexis.engine.config import ModelConfig  # noqa: E402
from hyperflexis.engine.kv import KvPool  # noqa: E402
from hyperflexis.transfer.memory import SharedMemory  # noqa: E402
from hyperflexis.transfer.receiver import Receiver  # noqa: E402
from hyperflexis.transfer.source import Source  # noqa: E402

BLOCKS, BLOCK_TOKENS = 40, 4
SHORT_S = 1.0
"""A lease. The machine may be busy: what renews it three times as often must not come late."""


class End:
    """One instance's pool and its links."""

    def __init__(self, **options: object) -> None:
        config = ModelConfig.from_directory(DEMO_MODEL)
        size = BLOCKS * KvPool.block_bytes(config, BLOCK_TOKENS, torch.float32)
        self.memory = SharedMemory(size, "test-kv")
        self.pool = KvPool(
            config,
            blocks=BLOCKS,
            block_tokens=BLOCK_TOKENS,
            dtype=torch.float32,
            device="cpu",
            memory=self.memory.view,
        )
        self.peers = Peers(self.pool, self.memory, **options)

    def next_end(self) -> Joined | Pulled:
        """Sleep as an instance does until something has ended."""
        poll = select.poll()
        poll.register(self.peers.fd, select.POLLIN)
        while not (ended := self.peers.finished()):
            assert poll.poll(10_000), "nothing ended"
        (end,) = ended
        assert not poll.poll(0), "it is still said that something has ended"
        return end

    def pull(self, theirs: list[int], ours: list[int]) -> Pulled:
        self.peers.pull(1, 0, theirs, ours)
        end = self.next_end()
        assert isinstance(end, Pulled)
        return end


@contextmanager
def two(**options: object) -> Iterator[tuple[End, End]]:
    source, target = End(source=Source()), End(**options)
    source.pool.data.copy_(torch.randn(source.pool.data.shape))
    try:
        yield source, target
    finally:
        target.peers.close()
        source.peers.close()


def link(source: End, target: End, version: int = 1) -> Joined:
    target.peers.link(0, version, source.peers.lend(1, version))
    end = target.next_end()
    assert isinstance(end, Joined)
    return end


def test_blocks_come_as_they_are() -> None:
    with two() as (source, target):
        assert link(source, target) == Joined(0, 1)
        done = target.pull([3, 4, 5, 9], [7, 8, 1, 0])
        assert (done.sequence_id, done.why, done.medium) == (1, "", "shm")
        assert done.bytes == 4 * source.pool.bytes_per_block
        for theirs, ours in [(3, 7), (4, 8), (5, 1), (9, 0)]:
            assert torch.equal(source.pool.data[theirs], target.pool.data[ours])
        assert not target.pool.data[2].any()


def test_blocks_come_from_another_host_by_tcp() -> None:
    source, target = End(host="127.0.0.1"), End(receiver=Receiver(media=["tcp"]))
    try:
        source.pool.data.copy_(torch.randn(source.pool.data.shape))
        assert link(source, target) == Joined(0, 1)
        done = target.pull([3, 9], [7, 0])
        assert (done.why, done.medium) == ("", "tcp")
        assert torch.equal(source.pool.data[3], target.pool.data[7])
        assert torch.equal(source.pool.data[9], target.pool.data[0])
    finally:
        target.peers.close()
        source.peers.close()


def test_without_an_address_there_is_no_way_from_another_host() -> None:
    source, target = End(), End(receiver=Receiver(media=["tcp"]))
    try:
        assert link(source, target).why
    finally:
        target.peers.close()
        source.peers.close()


def test_pool_that_lies_in_memory_of_its_owner_is_all_zeros() -> None:
    end, config = End(), ModelConfig.from_directory(DEMO_MODEL)
    assert not end.pool.data.any()
    assert end.pool.bytes == end.memory.size_bytes
    with pytest.raises(ValueError, match="bytes, and"):
        KvPool(config, blocks=1, block_tokens=4, dtype=torch.float32, device="cpu", memory=end.memory.view)


def test_first_pull_pays_for_nothing_but_its_bytes() -> None:
    """Linking has connected and mapped: a small pull is done before it returns."""
    with two() as (source, target):
        link(source, target)
        target.peers.pull(1, 0, [0], [0])
        assert target.peers.has_ended


def test_a_block_is_said_to_take_some_time() -> None:
    with two() as (source, target):
        assert target.peers.block_s(0) == 0.0
        link(source, target)
        assert 0.0 < target.peers.block_s(0) < 0.01


def test_without_a_link_nothing_is_pulled() -> None:
    with two() as (_, target):
        assert "no link" in target.peers.refusal(0, 1)
        assert "no link" in target.pull([0], [0]).why


def test_link_is_of_its_version() -> None:
    with two() as (source, target):
        link(source, target, version=4)
        assert target.peers.refusal(0, 4) == ""
        assert "of version 4, not 3" in target.peers.refusal(0, 3)
        assert "as new" in link(source, target, version=4).why
        assert link(source, target, version=5).why == ""
        target.peers.unlink(0, 4)
        assert target.peers.refusal(0, 5) == "", "an order for an older link ended this one"
        target.peers.unlink(0, 5)
        assert "no link" in target.peers.refusal(0, 5)


def revoke(source: End) -> None:
    source.peers.reclaim(1, 1)


def recycle(source: End) -> None:
    source.peers.lend(1, 2)


def expire(source: End) -> None:
    source.peers._is_closed.set()
    source.peers._renewing.join()  # type: ignore[union-attr]
    time.sleep(SHORT_S)


ENDS = {"was revoked": revoke, "been recycled": recycle, "lease has ended": expire}


@pytest.mark.parametrize("why", ENDS)
def test_bytes_that_are_no_longer_lent_are_refused(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with two() as (source, target):
        source.peers._lease_s = SHORT_S if why == "lease has ended" else 60.0
        link(source, target)
        ends: dict[str, Callable[[End], None]] = ENDS
        ends[why](source)
        target.peers.pull(1, 0, [0], [0])
        (pulled,), (joined,) = target.peers.finished(), target.peers.finished()
        assert isinstance(pulled, Pulled)
        assert why in pulled.why
        assert isinstance(joined, Joined)
        assert why in joined.why, "the link is of no use any more, which is to be told"
        assert "no link" in target.peers.refusal(0, 1)
        if why != "lease has ended":
            assert link(source, target, version=3).why == ""
            assert target.pull([0], [0]).why == ""


def test_lease_is_renewed_as_long_as_its_owner_lives() -> None:
    with two() as (source, target):
        source.peers._lease_s = SHORT_S
        link(source, target)
        time.sleep(2.5 * SHORT_S)
        assert target.pull([0], [0]).why == ""


def test_link_to_what_is_revoked_fails() -> None:
    with two() as (source, target):
        descriptor = source.peers.lend(1, 1)
        source.peers.reclaim(1, 1)
        target.peers.link(0, 1, descriptor)
        end = target.next_end()
        assert isinstance(end, Joined)
        assert "was revoked" in end.why
        assert "no link" in target.peers.refusal(0, 1)


@pytest.mark.parametrize("descriptor", [b"", b"garbage"])
def test_link_by_what_is_no_descriptor_fails(descriptor: bytes) -> None:
    with two() as (_, target):
        target.peers.link(0, 1, descriptor)
        end = target.next_end()
        assert isinstance(end, Joined)
        assert "no descriptor" in end.why


def test_link_that_is_dropped_while_it_is_made_is_not_told() -> None:
    with two() as (source, target):
        target.peers.link(0, 1, source.peers.lend(1, 1))
        target.peers.unlink(0, 1)
        time.sleep(0.3)
        assert target.peers.finished() == []
        assert "no link" in target.peers.refusal(0, 1)


@pytest.mark.parametrize("has_checksums", [True, False])
def test_corrupt_bytes_are_refused_where_they_are_checked(has_checksums: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that turns a bit round on its way."""
    from hyperflexis.transfer import shm

    copy = shm._copy

    def corrupting(view: memoryview, transfer: object) -> None:
        copy(view, transfer)  # type: ignore[arg-type]
        transfer.target[transfer.ranges[0].target] ^= 1  # type: ignore[attr-defined]

    with two(has_checksums=has_checksums) as (source, target):
        link(source, target)
        monkeypatch.setattr(shm, "_copy", corrupting)
        done = target.pull([3], [7])
        assert bool(done.why) == has_checksums
        if has_checksums:
            assert target.peers.refusal(0, 1) == "", "the link is as good as before"


def test_pull_that_is_stopped_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """By sockets, where the owner can keep it waiting."""
    with two(receiver=Receiver(media=["tcp"])) as (source, target):
        link(source, target)
        target.peers.pull(1, 0, list(range(BLOCKS)), list(range(BLOCKS)))
        target.peers.stop_pull(1)
        target.peers.stop_pull(2)
        end = target.next_end()
        assert isinstance(end, Pulled)
        assert end.why == "" or "cancelled" in end.why


def test_other_media_serve_as_well() -> None:
    with two(receiver=Receiver(media=["unix"])) as (source, target):
        assert link(source, target).why == ""
        done = target.pull([3, 4], [7, 8])
        assert (done.why, done.medium) == ("", "unix")
        assert torch.equal(source.pool.data[4], target.pool.data[8])


def test_renewing_ends_with_close() -> None:
    end = End()
    end.peers.lend(1, 1)
    thread = end.peers._renewing
    end.peers.close()
    assert thread is not None
    assert not thread.is_alive()
    assert module.LEASE_S > 0
