"""One-sided reads by NIXL on host memory, where it is installed; and that it is never taken where it would be slow."""

from __future__ import annotations

from pathlib import Path

import pytest
from transfer_world import MB, filled

from hyperflexis.transfer import nixl
from hyperflexis.transfer.errors import Revoked
from hyperflexis.transfer.receiver import Receiver
from hyperflexis.transfer.source import Source


def test_host_without_a_fabric_is_not_worth_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nixl, "is_available", lambda: True)
    assert not nixl.is_worthwhile(tmp_path / "none")
    assert not nixl.is_worthwhile(tmp_path)
    (tmp_path / "mlx5_0").touch()
    assert nixl.is_worthwhile(tmp_path)
    monkeypatch.setattr(nixl, "is_available", lambda: False)
    assert not nixl.is_worthwhile(tmp_path)


def test_nobody_uses_it_unasked() -> None:
    with Source() as source, Receiver() as receiver:
        descriptor = source.describe(source.expose(filled(64), 60.0))
        assert "nixl" not in descriptor.media
        assert receiver.pull(descriptor, [(0, 0, 64)], bytearray(64)).result(20.0).medium == "shm"


@pytest.mark.skipif(not nixl.is_available(), reason="nixl is not installed")
def test_ranges_arrive_and_leases_hold() -> None:
    ours, theirs = nixl.NixlAgent(), nixl.NixlAgent()
    memory, target = filled(MB), bytearray(MB)
    with Source(nixl_agent=ours) as source, Receiver(["nixl"], nixl_agent=theirs) as receiver:
        region = source.expose(memory, 60.0)
        descriptor = source.describe(region)
        ranges = [(0, 1000, 5000), (50_000, 10_000, 100_000)]
        for has_checksums in (False, True):
            pulled = receiver.pull(descriptor, ranges, target, has_checksums=has_checksums).result(60.0)
            assert pulled.medium == "nixl"
        assert target[1000:6000] == memory.view[:5000]
        assert target[10_000:110_000] == memory.view[50_000:150_000]
        source.revoke(region)
        with pytest.raises(Revoked):
            receiver.pull(descriptor, ranges, target).result(60.0)
