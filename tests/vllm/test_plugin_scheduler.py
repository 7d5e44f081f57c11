"""Our scheduler inside real vLLM: the same tokens in another order, and promises that come over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from inprocess import ENVIRONMENT_INPROCESS
from servers import Server

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

HERE = Path(__file__).parent


def play(scene: str, *words: str) -> Any:
    """One scene of `inprocess.py`, in a process of its own: an engine is not given back by the one that has had it."""
    done = subprocess.run(
        [sys.executable, str(HERE / "inprocess.py"), scene, *words],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT_INPROCESS,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def scheduled(tiny_llama: Path) -> Any:
    return play("scheduler", str(tiny_llama))


def test_tokens_are_those_of_vllms_own_scheduler(scheduled: Any) -> None:
    assert scheduled["ours"] == scheduled["stock"]
    assert len(scheduled["ours"]) == 40


def test_urgent_request_overtakes_what_came_before(scheduled: Any) -> None:
    """Two long prompts have begun and four wait; the urgent one is not behind those."""
    assert scheduled["first_tokens_stock"][-1] == "urgent"
    assert scheduled["first_tokens_ours"].index("urgent") <= 2


def test_decodes_with_a_pace_bound_the_prefill_beside_them(scheduled: Any) -> None:
    assert scheduled["most_prefill_beside_paced"] < scheduled["most_prefill_beside_others"] // 2


def test_too_little_memory_for_all_ends_nobody(scheduled: Any) -> None:
    """With KV for a few only, some lose their blocks and begin anew: all answers are complete, and the same."""
    assert scheduled["tight_preemptions"] > 0
    assert scheduled["tight"] == scheduled["stock"]


def test_broken_promise_is_one_clients_mistake(scheduled: Any) -> None:
    assert scheduled["bad_promise_tokens"] == 4


def test_step_times_are_learnt(scheduled: Any) -> None:
    assert scheduled["prefill_token_s"] > 0
    assert scheduled["decode_base_s"] > 0


# -- over HTTP


def complete(server: Server, prompt: list[int], tokens: int, **fields: Any) -> Any:
    body = {"model": model_of(server), "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{server.url}/v1/completions",
        json.dumps(body | {"return_token_ids": True} | fields).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


def model_of(server: Server) -> str:
    with urllib.request.urlopen(f"{server.url}/v1/models", timeout=30) as response:
        return str(json.load(response)["data"][0]["id"])


def test_promises_travel_in_the_body(plugin_server: Server) -> None:
    prompts = [[100 + 7 * each + index for index in range(60)] for each in range(8)]
    promises = {"hyperflexis_ttft_s": 5.0, "hyperflexis_tpot_s": 0.5, "hyperflexis_deadline_s": 60.0}

    def ask(index: int) -> list[int]:
        fields = {"vllm_xargs": promises} if index % 2 else {"priority": index}
        return complete(plugin_server, prompts[index], 12, **fields)["choices"][0]["token_ids"]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(8)))
    assert together == [ask(index) for index in range(8)]
    assert "SloScheduler" in plugin_server.log.read_text(encoding="utf-8", errors="replace")
