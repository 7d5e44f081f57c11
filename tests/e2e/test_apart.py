"""Prefill and decode apart, through the HTTP API: answers are those of instances that do both, and were really moved.

In float32: with less, who else is in a step already decides between tokens that are nearly as likely.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.conftest import START_S, Serving

pytestmark = pytest.mark.slow

LONG = "".join(f"def f{number}(x):\n    return x + {number}\n\n" for number in range(40))
SAMPLED = {"temperature": 1.2, "seed": 7, "top_p": 0.95}
PENALTIES = {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.3}
ASKS: dict[str, dict[str, Any]] = {
    "greedy": {"prompt": "def fibonacci(n):", "temperature": 0},
    "long prompt": {"prompt": LONG, "temperature": 0},
    "sampled with penalties": {"prompt": "import os\n", **SAMPLED, **PENALTIES},
    "two choices": {"prompt": "class A:\n", "n": 2, **SAMPLED},
    "logprobs": {"prompt": "x = [", "logprobs": 3, "n": 2, **SAMPLED},
    "echo": {"prompt": LONG[:300], "echo": True, "logprobs": 1, "temperature": 0},
    "stop strings": {"prompt": "import os\n", "temperature": 0, "stop": ["(", "\n\n"], "max_tokens": 60},
    "chat": {
        "messages": [{"role": "user", "content": "Write `f(x)`."}],
        "logprobs": True,
        "top_logprobs": 2,
        **SAMPLED,
    },
}


@pytest.fixture(scope="module")
def apart() -> Iterator[str]:
    """The address of one instance that prefills and one that decodes."""
    serving = Serving("--prefill", "1", "--decode", "1", "--dtype", "float32", "--set", "kv_checksums=true")
    try:
        yield serving.wait_ready()
        assert "(1 prefill, 1 decode)" in serving.errors[-1]
    finally:
        serving.stop()


@pytest.fixture(scope="module")
def together() -> Iterator[str]:
    """The address of one instance that does both."""
    serving = Serving("--instances", "1", "--dtype", "float32")
    try:
        yield serving.wait_ready()
    finally:
        serving.stop()


def post(url: str, ask: dict[str, Any], **more: Any) -> bytes:
    path = "chat/completions" if "messages" in ask else "completions"
    body = {"max_tokens": 24, "ignore_eos": True, **ask, **more}
    request = urllib.request.Request(
        f"{url}/v1/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=START_S) as answer:
        told: bytes = answer.read()
    return told


def whole(url: str, ask: dict[str, Any]) -> tuple[list[Any], list[dict[str, Any]]]:
    """The choices of an answer, and its verdicts."""
    told = json.loads(post(url, ask))
    return told["choices"], verdicts(told)


def streamed(url: str, ask: dict[str, Any]) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """Text and end of each choice as they were streamed, and the verdicts."""
    lines = post(url, ask, stream=True).decode().splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    texts, ends = [""] * ask.get("n", 1), [""] * ask.get("n", 1)
    for choice in (choice for event in events for choice in event["choices"]):
        texts[choice["index"]] += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
        ends[choice["index"]] = choice["finish_reason"] or ends[choice["index"]]
    return list(zip(texts, ends, strict=True)), verdicts(events[-1])


def verdicts(told: dict[str, Any]) -> list[dict[str, Any]]:
    given = told["hyperflexis"]
    return given if isinstance(given, list) else [given]


def near(told: Any) -> Any:
    """The same, its logprobs to be compared as numbers that were computed in another order."""
    if isinstance(told, dict):
        return {name: near(value) for name, value in told.items()}
    if isinstance(told, list):
        return [near(value) for value in told]
    return pytest.approx(told, abs=1e-3) if isinstance(told, float) else told


@pytest.mark.parametrize("name", ASKS)
def test_answers_are_those_of_instances_that_do_both(name: str, apart: str, together: str) -> None:
    ask = ASKS[name]
    expected, stayed = whole(together, ask)
    choices, moved = whole(apart, ask)
    assert choices == near(expected)
    assert {verdict["migrations"] for verdict in stayed} == {0}
    assert [(verdict["migrations"], verdict["instance"]) for verdict in moved] == [(1, "i1")] * len(moved)


@pytest.mark.parametrize("name", ASKS)
def test_streams_are_those_of_instances_that_do_both(name: str, apart: str, together: str) -> None:
    ask = ASKS[name]
    expected, _ = streamed(together, ask)
    choices, moved = streamed(apart, ask)
    assert choices == expected
    assert all(text and end for text, end in choices)
    assert [(verdict["migrations"], verdict["instance"]) for verdict in moved] == [(1, "i1")] * len(moved)


def roles(url: str) -> list[str]:
    with urllib.request.urlopen(f"{url}/ready", timeout=START_S) as answer:
        return [instance["role"] for instance in json.load(answer)["instances"]]


def test_operators_see_the_roles(apart: str) -> None:
    assert roles(apart) == ["prefill", "decode"]
    with urllib.request.urlopen(f"{apart}/metrics", timeout=START_S) as answer:
        assert b'hyperflexis_instance_state{instance="i0",role="prefill",state="ready"}' in answer.read()


def test_operators_see_planned_roles_change() -> None:
    """An instance that only decodes is made a mixed one: planned, whoever decodes helps with prefills that are late."""
    serving = Serving("--prefill", "1", "--decode", "1", "--set", "roles=planned")
    try:
        url = serving.wait_ready()
        assert "(1 prefill, 1 decode; roles are planned)" in serving.errors[-1]
        post(url, {"prompt": "x = ", "temperature": 0}, max_tokens=400)
        assert roles(url) == ["prefill", "mixed"]
    finally:
        serving.stop()
