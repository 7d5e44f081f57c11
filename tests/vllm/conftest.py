"""Servers that are started once and kept, and the model that they serve."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Server, pair, serving, why_not

BUILD = Path(__file__).parent.parent.parent / "build"
PLUGIN_FLAGS = (
    *("--scheduling-policy", "priority", "--enable-scale-out", "--max-num-queued-reqs", "64"),
    *("--scheduler-cls", "hyperflexis.vllm_plugin.scheduler.SloScheduler"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_not()
    # Servers that pass KV keep a core busy each, also when idle: what needs them comes last.
    items.sort(key=lambda item: item.path.name.startswith("test_attached"))
    for item in items:
        if reason and item.get_closest_marker("vllm") is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def tiny_llama() -> Path:
    from tiny_model import make

    return make(BUILD / "tiny-llama")


@pytest.fixture(scope="session")
def plugin_server(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Priorities, tokens in and out, the routes of developers, and our plugin."""
    folder = tmp_path_factory.mktemp("plugin")
    with serving(tiny_llama, folder, PLUGIN_FLAGS, {"VLLM_SERVER_DEV_MODE": "1"}) as server:
        yield server


@pytest.fixture(scope="session")
def pd_pair(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """One that prefills, one that decodes."""
    with pair(tiny_llama, tmp_path_factory.mktemp("pair")) as servers:
        yield servers
