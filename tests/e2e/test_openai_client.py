"""The `openai` package against the real thing: processes, sockets, engines."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from e2e.conftest import Serving

pytestmark = pytest.mark.slow

PROMPT = "def fibonacci(n):\n"


@pytest.fixture(scope="module")
def client(served: tuple[Serving, str]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served[1]}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_completion_is_deterministic_when_greedy(client: openai.OpenAI) -> None:
    texts = {
        client.completions.create(model="demo", prompt=PROMPT, max_tokens=24, temperature=0).choices[0].text
        for _ in range(4)
    }
    assert len(texts) == 1
    assert texts.pop().strip()


def test_stream_carries_the_text_of_the_whole_answer(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="demo", prompt=PROMPT, max_tokens=32, temperature=0)
    chunks = list(
        client.completions.create(
            model="demo",
            prompt=PROMPT,
            max_tokens=32,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage


def test_chat_answers(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Write a function `add(a, b)`."}], max_tokens=32
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 32


def test_chat_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Explain what `os.walk` does."}], max_tokens=24, stream=True
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")


def test_n_choices_differ_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    def choices() -> list[str]:
        answer = client.completions.create(
            model="demo", prompt="import ", max_tokens=24, temperature=1.5, n=2, seed=7, extra_body={"ignore_eos": True}
        )
        return [choice.text for choice in answer.choices]

    first = choices()
    assert first[0] != first[1]
    assert choices() == first


def test_stop_strings_end_the_text_before_them(client: openai.OpenAI) -> None:
    free = client.completions.create(model="demo", prompt=PROMPT, max_tokens=40, temperature=0).choices[0].text
    stop = free[5:8]
    cut = client.completions.create(model="demo", prompt=PROMPT, max_tokens=40, temperature=0, stop=stop).choices[0]
    assert cut.text == free[: free.index(stop)]
    assert cut.finish_reason == "stop"


def test_logprobs_are_those_of_the_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "Write a function `f()`."}],
        max_tokens=6,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    for entry in logprobs.content:
        assert entry.logprob <= 0
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob, abs=1e-4)


def test_tools_are_refused_by_name(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "hi"}], tools=[tool])
    assert caught.value.param == "tools"


def test_verdict_says_what_was_promised_and_kept(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt=PROMPT, max_tokens=8, extra_body={"service_tier": "code"})
    assert answer.model_extra is not None
    verdict = answer.model_extra["hyperflexis"]
    assert verdict["class"] == "code"
    assert verdict["priority"] == 1
    assert verdict["attained"] is True
    assert verdict["ttft"]["actual_ms"] > 0
    assert verdict["instance"] in ("i0", "i1")


def test_equal_prompts_reuse_their_prefix(client: openai.OpenAI) -> None:
    prompt = PROMPT + "    pass\n" * 40
    answers = [client.completions.create(model="demo", prompt=prompt, max_tokens=1) for _ in range(2)]
    usage = answers[1].usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    cached = usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert cached >= 16


def test_requests_at_a_time_share_the_instances(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="demo", prompt="x = ", max_tokens=64, n=8, extra_body={"ignore_eos": True, "slo": {"tpot_ms": 50}}
    )
    assert answer.model_extra is not None
    assert {verdict["instance"] for verdict in answer.model_extra["hyperflexis"]} == {"i0", "i1"}


def test_operators_see_instances_and_metrics(served: tuple[Serving, str]) -> None:
    _, url = served
    with urllib.request.urlopen(f"{url}/ready", timeout=30) as answer:
        told = json.load(answer)
    assert told["ready"] is True
    assert [one["state"] for one in told["instances"]] == ["ready", "ready"]
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        assert b"hyperflexis_requests_total" in answer.read()
