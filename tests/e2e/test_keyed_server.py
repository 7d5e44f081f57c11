"""A real server with keys: who has one is served, and the file may change while it serves."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from e2e.conftest import START_S, Serving
from hyperflexis.cli.api_keys import entry_of
from hyperflexis.cli.main import main

BODY = b'{"prompt": "import os", "max_tokens": 4, "temperature": 0}'


def status_of(url: str, key: str | None) -> int:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, BODY, headers), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_address_of_all_is_refused_without_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "there are no API keys" in capsys.readouterr().err


@pytest.mark.slow
def test_keys_let_in_and_may_change(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    one, entry_of_one = entry_of("one", None, is_admin=False)
    two, entry_of_two = entry_of("two", None, is_admin=False)
    file.write_text(f"keys:\n{entry_of_one}")
    serving = Serving("--instances", "1", "--set", f"auth.keys_file={file}")
    try:
        url = serving.wait_ready() + "/v1/completions"
        assert [status_of(url, key) for key in (None, two, one)] == [401, 401, 200]
        file.write_text(f"keys:\n{entry_of_two}")
        until_s = time.monotonic() + START_S
        while status_of(url, one) == 200:
            assert time.monotonic() < until_s
            time.sleep(0.1)
        assert status_of(url, two) == 200
    finally:
        serving.stop()
