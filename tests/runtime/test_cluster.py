"""The gateway's side of a cluster, without one: what cannot be started says so, in words for an operator."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
from typing import Any

import pytest

from hyperflexis.adapters.native.host import StartError
from hyperflexis.runtime.launchers import cluster
from hyperflexis.runtime.launchers.cluster import RayLauncher, RaySpec


def refusal(**spec: Any) -> StartError:
    with pytest.raises(StartError) as caught:
        asyncio.run(RayLauncher.start(RaySpec("", **spec)))
    return caught.value


def test_without_ray_it_says_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    error = refusal()
    assert str(error) == "ray is not installed"
    assert error.hint == "pip install 'hyperflexis[ray]'"


@pytest.mark.ray
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_address_without_a_cluster() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    error = refusal(address=address)
    assert str(error).startswith(f"there is no Ray cluster at {address}: ")
    assert "refused" in str(error)
    assert "ray start" in error.hint


@pytest.mark.ray
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_cluster_that_never_answers_is_given_up() -> None:
    """It accepts connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        error = refusal(address=address, start_timeout_s=2.0)
    assert str(error).startswith("no node of the Ray cluster could begin with an instance within 2 s")
