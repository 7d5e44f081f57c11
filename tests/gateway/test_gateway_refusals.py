"""Bad input of every kind gets a clear answer in OpenAI's shape, and leaves no trace in the log."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import logging
import threading
import time
from typing import Any

import pytest
from gateway_fakes import CHAT, CLASSES, CONTEXT_TOKENS, MODEL, FakeBackend, codec, on_loop, served

from hyperflexis.gateway import Limits, TextCodec
from hyperflexis.gateway.backend import ServedModel

USER = {"role": "user", "content": "Hello"}
VOCAB = codec().vocab_tokens

CHAT_REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("no messages", {"messages": []}, "messages", "invalid_value"),
    ("null messages", {"messages": None}, "messages", "invalid_type"),
    ("messages a string", {"messages": "Hello"}, "messages", "invalid_type"),
    ("unknown role", {"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ("no role", {"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
    ("no content", {"messages": [USER, {"role": "user"}]}, "messages[1].content", "missing_required_parameter"),
    (
        "image",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0]",
        "unsupported_parameter",
    ),
    (
        "audio",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "input_audio"}]}]},
        "messages[0].content[1]",
        "unsupported_parameter",
    ),
    ("template refuses", {"messages": [{"role": "tool", "content": "x"}]}, "messages", "invalid_value"),
    ("tools", {"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    ("tool_choice", {"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
    ("tool_choice object", {"tool_choice": {"type": "function"}}, "tool_choice", "unsupported_parameter"),
    ("functions", {"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
    ("json mode", {"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    ("guided", {"guided_json": {"type": "object"}}, "guided_json", "unsupported_parameter"),
    ("audio out", {"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
    ("audio options", {"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
    ("own template", {"chat_template": "{{ 1 }}"}, "chat_template", "unsupported_parameter"),
    ("top_logprobs alone", {"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ("top_logprobs many", {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ("logprobs a number", {"logprobs": 5}, "logprobs", "invalid_type"),
    ("max_completion_tokens", {"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
    ("two ways to end", {"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message", ""),
    ("too long", {"max_tokens": CONTEXT_TOKENS}, "messages", "context_length_exceeded"),
    (
        "prompt too long",
        {"messages": [{"role": "user", "content": "x y " * 3000}]},
        "messages",
        "context_length_exceeded",
    ),
]

SHARED_REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("unknown model", {"model": "other"}, "model", "model_not_found"),
    ("model a number", {"model": 5}, "model", "invalid_type"),
    *[("temperature", {"temperature": bad}, "temperature", "invalid_value") for bad in (-0.1, 2.1)],
    ("temperature a word", {"temperature": "hot"}, "temperature", "invalid_type"),
    ("temperature a flag", {"temperature": True}, "temperature", "invalid_type"),
    *[("top_p", {"top_p": bad}, "top_p", "invalid_value") for bad in (0, -1, 1.1)],
    *[("top_k", {"top_k": bad}, "top_k", "invalid_value") for bad in (-2, 2**70)],
    *[("min_p", {"min_p": bad}, "min_p", "invalid_value") for bad in (-0.1, 1.1)],
    *[("seed", {"seed": bad}, "seed", "invalid_value") for bad in (2**63, -(2**63) - 1)],
    ("seed a fraction", {"seed": 1.5}, "seed", "invalid_type"),
    *[("presence", {"presence_penalty": bad}, "presence_penalty", "invalid_value") for bad in (-2.1, 2.1)],
    *[("frequency", {"frequency_penalty": bad}, "frequency_penalty", "invalid_value") for bad in (-2.1, 2.1)],
    *[("repetition", {"repetition_penalty": bad}, "repetition_penalty", "invalid_value") for bad in (0, -1, 2.1)],
    *[("max_tokens", {"max_tokens": bad}, "max_tokens", "invalid_value") for bad in (0, -1, 2**70)],
    ("max_tokens a word", {"max_tokens": "16"}, "max_tokens", "invalid_type"),
    ("min_tokens", {"min_tokens": -1}, "min_tokens", "invalid_value"),
    ("min over max", {"min_tokens": 5, "max_tokens": 4}, "min_tokens", "invalid_value"),
    *[("n", {"n": bad}, "n", "invalid_value") for bad in (0, -1, 65)],
    ("empty stop", {"stop": ""}, "stop", "invalid_value"),
    ("empty among stops", {"stop": ["a", ""]}, "stop", "invalid_value"),
    ("many stops", {"stop": ["a"] * 17}, "stop", "invalid_value"),
    ("stop a number", {"stop": 5}, "stop", "invalid_type"),
    *[("stop ids", {"stop_token_ids": [bad]}, "stop_token_ids", "invalid_value") for bad in (-1, VOCAB)],
    *[
        ("bias key", {"logit_bias": {bad: 1}}, "logit_bias", "invalid_value")
        for bad in ("x", "-1", str(VOCAB), "²", "")
    ],
    *[("bias value", {"logit_bias": {"1": bad}}, "logit_bias", "invalid_value") for bad in (-101, 101)],
    ("bias a word", {"logit_bias": {"1": "x"}}, "logit_bias[...]", "invalid_type"),
    ("stream a word", {"stream": "yes"}, "stream", "invalid_type"),
    ("stream_options alone", {"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ("class", {"service_tier": "gold"}, "service_tier", "invalid_value"),
    ("slo", {"slo": {"ttft_ms": -5}}, "slo.ttft_ms", "invalid_value"),
    ("slo a number", {"slo": 5}, "slo", "invalid_type"),
    ("slo a word", {"slo": {"ttft_ms": "fast"}}, "slo.ttft_ms", "invalid_type"),
    ("priority", {"priority": "high"}, "priority", "invalid_type"),
    ("beam search", {"use_beam_search": True}, "use_beam_search", "unsupported_parameter"),
]

COMPLETION_REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("prompt a number", {"prompt": 5}, "prompt", "invalid_type"),
    ("prompt null", {"prompt": None}, "prompt", "invalid_type"),
    *[("empty prompt", {"prompt": bad}, "prompt", "invalid_value") for bad in ("", [], [""], [[]], ["a", ""])],
    *[("mixed prompt", {"prompt": bad}, "prompt", "invalid_value") for bad in (["a", 1], [1, [2]], ["a", [1]])],
    *[("ids", {"prompt": bad}, "prompt", "invalid_value") for bad in ([-1], [VOCAB], [[1], [VOCAB]], [2**70])],
    ("fractions", {"prompt": [1.5]}, "prompt[0]", "invalid_type"),
    ("many prompts", {"prompt": ["a"] * 257}, "prompt", "invalid_value"),
    ("many choices", {"prompt": ["a"] * 5, "n": 64}, "n", "invalid_value"),
    *[("logprobs", {"logprobs": bad}, "logprobs", "invalid_value") for bad in (-1, 21)],
    ("logprobs a flag", {"logprobs": True}, "logprobs", "invalid_type"),
    ("best_of", {"best_of": 2}, "best_of", "unsupported_parameter"),
    ("suffix", {"suffix": "end"}, "suffix", "unsupported_parameter"),
    ("too long", {"max_tokens": CONTEXT_TOKENS}, "prompt", "context_length_exceeded"),
    ("full", {"prompt": [1] * CONTEXT_TOKENS}, "prompt", "context_length_exceeded"),
]

TABLE = [
    *(("/v1/chat/completions", *row) for row in CHAT_REFUSED + SHARED_REFUSED),
    *(("/v1/completions", *row) for row in COMPLETION_REFUSED + SHARED_REFUSED),
]


@on_loop
async def test_bad_fields_are_refused_by_name(caplog: pytest.LogCaptureFixture) -> None:
    """One server for the whole table: a refusal must not harm the next request."""
    caplog.set_level(logging.DEBUG, "hyperflexis")
    wrong = []
    async with served() as it:
        for path, name, fields, param, code in TABLE:
            body = {"messages": [USER]} if "chat" in path else {"prompt": "Hello"}
            status, answer, _ = await it.post(path, {**body, **fields})
            error = answer.get("error", {})
            expected = 404 if code == "model_not_found" else 400
            got = (status, error.get("param"), error.get("type"), error.get("code") if code else "")
            if got != (expected, param, "invalid_request_error", code) or not error.get("message"):
                wrong.append((path, name, fields, got, error.get("message")))
        assert not it.backend.requests
    assert wrong == []
    assert not caplog.records


HARMLESS: list[dict[str, Any]] = [
    {"tools": [], "tool_choice": "none", "functions": None, "response_format": {"type": "text"}},
    {"tool_choice": "auto", "modalities": ["text"], "store": True, "metadata": {"a": "b"}, "user": "me"},
    {"top_p": 1, "temperature": 2, "stop": None, "logit_bias": None, "n": 1, "stream": None, "stream_options": None},
    {
        "top_k": 0,
        "seed": -(2**63),
        "reasoning_effort": "low",
        "parallel_tool_calls": False,
        "top_logprobs": 0,
        "stop": ["a"] * 16,
    },
]


@pytest.mark.parametrize("fields", HARMLESS)
@on_loop
async def test_harmless_fields_are_taken(fields: dict[str, Any]) -> None:
    async with served() as it:
        status, answer, _ = await it.post("/v1/chat/completions", CHAT | fields)
    assert status == 200, answer


RAW: list[tuple[str, bytes, str | None]] = [
    ("empty", b"", "invalid_json"),
    ("no JSON", b"hello", "invalid_json"),
    ("cut", b'{"messages": [', "invalid_json"),
    ("array", b"[]", "invalid_type"),
    ("number", b"5", "invalid_type"),
    ("NaN", b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "invalid_json"),
    ("Infinity", b'{"messages": [{"role": "user", "content": "x"}], "temperature": -Infinity}', "invalid_json"),
    ("overflow", b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}', None),
    ("invalid UTF-8", b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', "invalid_json"),
    ("surrogate", b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "invalid_json"),
    ("deep", b'{"x": ' + b"[" * 200_000, "invalid_json"),
    ("deep messages", b'{"chat_template_kwargs": {"a": ' + b"[" * 200_000, "invalid_json"),
    ("no messages", b"{}", "missing_required_parameter"),
]


@on_loop
async def test_bodies_that_are_no_request(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as it:
        for name, data, code in RAW:
            async with it.http.post(it.url + "/v1/chat/completions", data=data) as response:
                error = (await response.json())["error"]
                assert (response.status, error["type"]) == (400, "invalid_request_error"), name
                assert code is None or error["code"] == code, (name, error)
    assert not caplog.records


@on_loop
async def test_headers_that_are_no_text_are_refused() -> None:
    async with served() as it:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nx-slo-ttft-ms: \xff\xfe\r\nContent-Length: 15\r\n\r\n"
        status, answer = await raw(it.port, head + b'{"prompt": "x"}')
    assert status == 400
    assert json.loads(answer)["error"]["param"] == "x-slo-ttft-ms"


async def raw(port: int, data: bytes) -> tuple[int, bytes]:
    """Send bytes; return status and body of the first answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    body = await reader.readexactly(length)
    writer.close()
    await writer.wait_closed()
    return int(head.split()[1]), body


@on_loop
async def test_broken_http_takes_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as it:
        status, _ = await raw(it.port, b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n")
        assert status == 400
        assert (await it.http.get(it.url + "/health")).status == 200
    assert not any(record.exc_info for record in caplog.records)


@on_loop
async def test_announced_large_body_is_refused_unread() -> None:
    async with served() as it:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n"
        for expect in (b"", b"Expect: 100-continue\r\n"):
            status, body = await raw(it.port, head + expect + b"\r\n")
            assert (status, json.loads(body)["error"]["code"]) == (413, "request_too_large")


@on_loop
async def test_expecting_clients_are_told_to_go_on() -> None:
    async with served() as it:
        status, _, _ = await it.post("/v1/chat/completions", CHAT, expect100=True)
    assert status == 200


@pytest.mark.parametrize("expected", [b"200-maybe", b"\xff\xfe", b""])
@pytest.mark.parametrize("path", [b"/v1/completions", b"/nowhere"])
@on_loop
async def test_other_expectations_are_refused(path: bytes, expected: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Also those that are no text."""
    async with served() as it:
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nExpect: %b\r\n\r\n"
        status, body = await raw(it.port, head % (path, expected))
    assert (status, json.loads(body)["error"]["code"]) == (417, "expectation_failed")
    assert not caplog.records


@on_loop
async def test_unannounced_large_body_is_refused() -> None:
    async def chunks() -> Any:
        for _ in range(100):
            yield b" " * 1000

    async with served(limits=Limits(body_bytes_max=10_000)) as it:
        async with it.http.post(it.url + "/v1/completions", data=chunks()) as response:
            assert response.status == 413
            assert (await response.json())["error"]["code"] == "request_too_large"
        bomb = gzip.compress(b" " * 10**6)
        async with it.http.post(
            it.url + "/v1/completions", data=bomb, headers={"Content-Encoding": "gzip"}
        ) as response:
            assert response.status == 413
        async with it.http.post(
            it.url + "/v1/completions", data=b"no gzip", headers={"Content-Encoding": "gzip"}
        ) as response:
            assert response.status == 400


@on_loop
async def test_slow_body_is_given_up() -> None:
    async with served(limits=Limits(body_s=0.05)) as it:
        status, body = await raw(it.port, b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
    assert (status, json.loads(body)["error"]["code"]) == (408, "body_timeout")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("POST", "/", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", "/health", 405, "method_not_allowed"),
        ("GET", "/v1/models/other/model", 404, "model_not_found"),
    ],
)
@on_loop
async def test_wrong_urls(method: str, path: str, status: int, code: str) -> None:
    async with served() as it, it.http.request(method, it.url + path) as response:
        error = (await response.json())["error"]
        assert (response.status, error["code"], error["type"]) == (status, code, "invalid_request_error")
        assert ("Allow" in response.headers) == (status == 405)


@on_loop
async def test_model_must_be_named_where_there_are_several() -> None:
    models = (ServedModel("a", 1, 100), ServedModel("b", 1, 100))
    async with served(FakeBackend(models=models)) as it:
        status, answer, _ = await it.post("/v1/completions", {"prompt": "x"})
        other, _, _ = await it.post("/v1/completions", {"prompt": "x", "model": "b"})
    assert (status, answer["error"]["code"]) == (400, "missing_required_parameter")
    assert other == 200
    assert it.backend.requests[0].model == "b"


@on_loop
async def test_chat_without_template_points_to_completions() -> None:
    bare = TextCodec(codec()._tokenizer)
    async with served(tokenizer=bare) as it:
        status, answer, _ = await it.post("/v1/chat/completions", CHAT)
    assert (status, answer["error"]["code"]) == (400, "chat_template_missing")


@on_loop
async def test_a_bug_is_a_500_in_the_same_shape_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> int:
        raise RuntimeError("planted")

    backend = FakeBackend()
    backend.submit = broken  # type: ignore[method-assign]
    async with served(backend) as it:
        status, answer, _ = await it.post("/v1/completions", {"prompt": "x"})
    assert (status, answer["error"]["code"]) == (500, "internal_error")
    assert "planted" not in json.dumps(answer)
    assert "planted" in caplog.text


@on_loop
async def test_completion_default_shrinks_to_what_is_left() -> None:
    async with served() as it:
        prompt = [1] * (CONTEXT_TOKENS - 3)
        status, _, _ = await it.post("/v1/completions", {"model": MODEL, "prompt": prompt})
    assert status == 200
    assert it.backend.requests[0].max_tokens == 3


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@on_loop
async def test_long_prompts_do_not_stop_the_loop(path: str) -> None:
    """About 100k tokens are tokenised in a thread, and the loop goes on turning; short ones are not worth a thread."""
    text = "Hello world, the quick brown fox. " * 8000
    stalls: list[float] = []
    threads: list[str] = []

    class Watched(TextCodec):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            threads.append(threading.current_thread().name)
            return super().encode(text, add_special_tokens)

    watched = Watched(codec()._tokenizer, chat_template=codec().chat_template)

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            stalls.append(time.perf_counter() - before)

    models = (ServedModel(MODEL, 1, 1_000_000),)
    async with served(FakeBackend(models=models), tokenizer=watched) as it:
        watcher = asyncio.create_task(watch())
        body = {"messages": [{"role": "user", "content": text}]} if "chat" in path else {"prompt": text}
        status, answer, _ = await it.post(path, body | {"max_tokens": 1})
        watcher.cancel()
        await it.post("/v1/completions", {"prompt": "short", "max_tokens": 1})
    assert status == 200
    assert answer["usage"]["prompt_tokens"] > 50_000
    assert [name.split("_")[0] for name in threads] == ["tokenize", "MainThread"]
    # A loose bound: other load on the machine stalls the loop too.
    assert sorted(stalls)[-2] < 0.5


@on_loop
async def test_hopeless_prompts_are_refused_at_once() -> None:
    async with served() as it:
        start = time.perf_counter()
        data = io.BytesIO(b'{"prompt": "%b"}' % (b"The quick brown fox. " * 500_000))
        async with it.http.post(it.url + "/v1/completions", data=data) as response:
            status, answer = response.status, await response.json()
        took_s = time.perf_counter() - start
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert took_s < 2.0


def test_classes_of_the_fake_are_those_of_the_table() -> None:
    assert "gold" not in CLASSES
