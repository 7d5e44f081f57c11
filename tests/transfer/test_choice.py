"""The best medium that leads from one place to another."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
from transfer_world import filled

from hyperflexis.transfer.choice import REACHES, offered, ways
from hyperflexis.transfer.medium import flat_target, is_on_device
from hyperflexis.transfer.place import Place, here
from hyperflexis.transfer.source import Source

HERE = Place("boot", "net", "time", "pid", "ipc")
ELSEWHERE = {
    "another host": msgspec.structs.replace(HERE, boot="other"),
    "another network": msgspec.structs.replace(HERE, network="other"),
    "another clock": msgspec.structs.replace(HERE, time="other"),
    "who knows": Place(""),
}


def test_this_place_is_itself() -> None:
    assert here().shares_memory_with(here())
    assert here().shares_devices_with(here())


@pytest.mark.parametrize("place", ELSEWHERE)
def test_other_places_share_nothing(place: str) -> None:
    assert not HERE.shares_memory_with(ELSEWHERE[place])
    assert not ELSEWHERE[place].shares_memory_with(HERE)
    assert not ELSEWHERE[place].shares_memory_with(Place("")) or place != "who knows"


def test_another_container_of_one_host_shares_memory_but_no_device() -> None:
    other = msgspec.structs.replace(HERE, processes="other")
    assert HERE.shares_memory_with(other)
    assert not HERE.shares_devices_with(other)


def test_best_first_and_only_what_both_have(source: Source) -> None:
    descriptor = source.describe(source.expose(filled(64), 10.0))
    assert ways(descriptor, here(), REACHES) == ["shm", "unix", "tcp"]
    assert ways(descriptor, here(), ["tcp", "shm"]) == ["shm", "tcp"]
    assert ways(descriptor, here(), []) == []


@pytest.mark.parametrize("place", ELSEWHERE)
def test_from_elsewhere_only_the_network_leads(source: Source, place: str) -> None:
    descriptor = source.describe(source.expose(filled(64), 10.0))
    assert ways(descriptor, ELSEWHERE[place], REACHES) == ["tcp"]


def test_offers_follow_from_where_the_bytes_lie() -> None:
    tensor = SimpleNamespace(is_cuda=True)
    assert offered(filled(1), has_nixl=False, has_tcp=True) == ("shm", "unix", "tcp")
    assert offered(filled(1), has_nixl=True, has_tcp=False) == ("shm", "nixl", "unix")
    assert offered(b"x", has_nixl=False, has_tcp=True) == ("unix", "tcp")
    assert offered(tensor, has_nixl=False, has_tcp=True) == ("cuda_ipc",)
    assert offered(tensor, has_nixl=True, has_tcp=True) == ("cuda_ipc", "nixl")
    assert is_on_device(tensor)
    assert flat_target(tensor) is tensor
