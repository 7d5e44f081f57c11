"""`hyperflexis dashboard`: a journal on a port, and what is said where that cannot be."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from journal.recorded import World, play

Run = Callable[..., Any]
"""Words in; (code, out, err) out. A fixture of this folder."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("journal")
    play(World(requests=20), folder)
    return folder


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        body: bytes = answer.read()
    return body


@pytest.mark.slow
def test_journal_is_shown_until_somebody_stops_it(recorded: Path) -> None:
    words = [sys.executable, "-m", "hyperflexis", "dashboard", str(recorded), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found = re.search(r"http://\S+/dashboard", process.stderr.readline())
            assert found is not None
            assert b"<title>HyperFlexis</title>" in fetched(found[0])
            assert json.loads(fetched(f"{found[0]}/source"))["kind"] == "recorded"
            assert json.loads(fetched(f"{found[0]}/requests/3"))[0]["ending"]
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_no_journal(run: Run, tmp_path: Path) -> None:
    code, _, err = run("dashboard", str(tmp_path / "none"))
    assert code == 2
    assert "there is no such journal" in err


def test_port_that_is_taken(run: Run, recorded: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = run("dashboard", str(recorded), "--port", str(taken.getsockname()[1]))
    assert code == 3
    assert "choose another with --port N" in err
