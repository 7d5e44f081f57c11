"""`hyperflexis serve` in front of servers that answer like vLLM: processes, loopback, and a kill in between."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from e2e.conftest import START_S, Serving
from hyperflexis.adapters.vllm.standin.engine import hash_of, next_token
from hyperflexis.gateway.tokenizer import TextCodec
from hyperflexis.runtime.checkpoint import demo_directory

pytestmark = pytest.mark.slow

TOKENS = 600
"""Long enough that a server dies in the middle of its answers, whatever else this machine does."""


class Standing:
    """A stand-in's process."""

    def __init__(self, *words: str, port: int = 0) -> None:
        command = [sys.executable, "-m", "hyperflexis.adapters.vllm.standin", str(demo_directory())]
        command += ["--port", str(port), "--served-model-name", "demo", "--step-ms", "4", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def servers() -> Iterator[list[Standing]]:
    started = [Standing(), Standing()]
    yield started
    for each in started:
        each.kill()


def ask(url: str, prompt: list[int], max_tokens: int) -> Any:
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def expected(prompt: list[int], count: int) -> list[int]:
    value, tokens = hash_of(prompt), []
    for _ in range(count):
        tokens.append(next_token(value, 3072))
        value = hash_of([tokens[-1]], value)
    return tokens


def test_answers_are_the_servers_whoever_of_them_dies(servers: list[Standing]) -> None:
    serving = Serving(*(word for each in servers for word in ("--attach", each.url)))
    try:
        url = serving.wait_ready()
        prompts = [[50 + number, 60, 70] for number in range(16)]
        with ThreadPoolExecutor(16) as threads:
            asked = [threads.submit(ask, url, prompt, TOKENS) for prompt in prompts]
            ask(url, [99, 98], 20)
            servers[0].kill()
            answers = [each.result() for each in asked]
        codec = TextCodec.load(demo_directory())
        for prompt, answer in zip(prompts, answers, strict=True):
            (choice,) = answer["choices"]
            assert (choice["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", TOKENS)
            assert choice["text"] == codec.decode(expected(prompt, TOKENS))
    finally:
        assert serving.stop() == 0


def running(server: Standing) -> float:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as told:
        (row,) = [line for line in told if line.startswith(b"vllm:num_requests_running")]
        return float(row.split()[-1])


def test_what_a_dead_server_asked_for_ends_there_and_the_next_one_finds_it() -> None:
    slow = Standing("--step-ms", "100")  # Minutes, if nobody ended it.
    try:
        first = Serving("--attach", slow.url)
        url = first.wait_ready()
        body = {"prompt": [5, 6, 7], "max_tokens": 1900, "ignore_eos": True, "stream": True}
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.readline()
            until_running(slow, 1)
            first.kill()
        until_running(slow, 0)
        second = Serving("--attach", slow.url)
        assert len(ask(second.wait_ready(), [5, 6, 7], 4)["choices"]) == 1
        assert second.stop() == 0
    finally:
        slow.kill()


def until_running(server: Standing, count: int) -> None:
    deadline_s = time.monotonic() + START_S
    while running(server) != count:
        assert time.monotonic() < deadline_s, f"{running(server)} requests run there"
        time.sleep(0.01)


def test_prefill_and_decode_are_told_apart() -> None:
    keeping = [Standing("--kv-transfer-config", "{}") for _ in range(2)]
    try:
        attach = f"attach=[{{url: '{keeping[0].url}', role: prefill}}, {{url: '{keeping[1].url}', role: decode}}]"
        serving = Serving("--set", attach, "--set", "vllm.passes_kv=true")
        try:
            answer = ask(serving.wait_ready(), [50, 60, 70], 30)
            assert (answer["hyperflexis"]["instance"], answer["hyperflexis"]["migrations"]) == ("i1", 1)
        finally:
            assert serving.stop() == 0
    finally:
        for each in keeping:
            each.kill()


def test_wrong_server_is_an_error_that_names_it(servers: list[Standing]) -> None:
    attach = f"attach=[{{url: '{servers[0].url}', model: other}}]"
    serving = Serving("--set", attach)
    said = serving.stderr.read()
    assert serving.process.wait(60) == 3
    serving.stderr.close()
    assert f"error: {servers[0].url} serves demo, not other" in said
