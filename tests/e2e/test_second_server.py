"""A second server that starts from the first one's weights, in a directory that has none."""

from __future__ import annotations

import json
import socket
import urllib.request
from pathlib import Path

import pytest

from e2e.conftest import Serving

pytestmark = pytest.mark.slow


def completion(url: str, model: str) -> str:
    body = {"model": model, "prompt": "def fibonacci(n):", "max_tokens": 16, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        text: str = json.loads(answer.read())["choices"][0]["text"]
        return text


def test_server_starts_from_anothers_weights_alone(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a secret that both servers share", encoding="utf-8")
    empty = tmp_path / "empty"
    empty.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = ("--dtype", "float32", "--instances", "1", "--set", f"weights.token_file={token}")
    first = Serving(*common, "--set", f"weights.lend_on={address}")
    second = None
    try:
        url = first.wait_ready()
        second = Serving(str(empty), *common, "--set", f"weights.donors={address}")
        other = second.wait_ready()
        assert any("weights from process" in line for line in second.errors)
        assert completion(other, "empty") == completion(url, "demo")
    finally:
        for serving in (first, second):
            if serving is not None:
                assert serving.stop() == 0
