"""A real server writes its journal, is killed, and all that it had decided is there and comes about again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from e2e.conftest import Serving
from hyperflexis.core.events import RequestFinished
from hyperflexis.journal.entries import JournalError
from hyperflexis.journal.reading import open_all
from hyperflexis.journal.recorder import FLUSH_S


def ask(url: str, prompt: str) -> str:
    """The id of its answer."""
    body = json.dumps({"prompt": prompt, "max_tokens": 12, "temperature": 0, "n": 1}).encode()
    headers = {"Content-Type": "application/json", "x-slo-ttft-ms": "2000"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", body, headers), timeout=60) as answer:
        assert answer.headers["x-request-id"] == json.loads(answer.read())["id"]
        return str(answer.headers["x-request-id"])


def hyperflexis(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hyperflexis", *words], capture_output=True, text=True, timeout=60, check=False
    )


def has_ended(folder: Path, name: str) -> bool:
    try:
        journal = open_all(folder)[0]
    except JournalError:  # Its first part has no header yet.
        return False
    entries = [entry for number in journal.named(name) for entry in journal.of_request(number)]
    return any(isinstance(entry.event, RequestFinished) for entry in entries)


@pytest.mark.slow
def test_journal_survives_a_kill_and_is_decided_alike(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    serving = Serving("--instances", "1", "--journal", str(folder))
    try:
        url = serving.wait_ready()
        names = [ask(url, f"import os  # {number}") for number in range(5)]
        deadline_s = time.monotonic() + 30 * FLUSH_S
        while not has_ended(folder, names[-1]):
            assert time.monotonic() < deadline_s, "nothing was written"
            time.sleep(0.05)
    finally:
        serving.kill()
    replayed = hyperflexis("replay", str(folder))
    assert (replayed.returncode, replayed.stderr) == (0, "")
    assert replayed.stdout.endswith("all the same again\n")
    for name in names:
        told = hyperflexis("explain", str(folder), name)
        assert told.returncode == 0
        assert f"({name})" in told.stdout
        assert "done: 12 tokens after" in told.stdout
        assert "promised ttft 2.00 s" in told.stdout
    (journal,) = open_all(folder)
    assert all(b"import" not in frame.body() for frame in journal.frames())
