"""What a real server shows of itself."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from e2e.conftest import Serving

pytestmark = pytest.mark.slow


def fetched(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_answer_is_found_by_its_id_and_its_instance_is_shown(served: tuple[Serving, str]) -> None:
    _, url = served
    answer = fetched(f"{url}/v1/completions", {"prompt": "import os\n", "max_tokens": 5, "temperature": 0})
    (story,) = fetched(f"{url}/dashboard/requests/{answer['id']}")
    assert story["ending"].startswith("done: 5 tokens")
    snapshot = fetched(f"{url}/dashboard/snapshot")
    names = {f"i{each['id']}" for each in snapshot["instances"] if each["state"] == "ready"}
    assert answer["hyperflexis"]["instance"] in names
    assert sum(each["ended_total"] for each in snapshot["classes"]) >= 1
    assert snapshot["is_blind"] is False
