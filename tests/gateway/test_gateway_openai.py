"""The routes as the OpenAI client uses them, against a scripted backend."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from gateway_fakes import ANSWER, MODEL, FakeBackend, Script, Served, answer_script, codec, eos, on_loop, served

from hyperflexis.gateway.backend import End, EndReason

MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


@contextlib.asynccontextmanager
async def client_of(
    backend: FakeBackend | None = None, **options: Any
) -> AsyncIterator[tuple[openai.AsyncOpenAI, Served]]:
    async with (
        served(backend, **options) as it,
        openai.AsyncOpenAI(base_url=it.url + "/v1", api_key="none", max_retries=0) as client,
    ):
        yield client, it


@on_loop
async def test_chat() -> None:
    async with client_of() as (client, it):
        answer = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, service_tier="interactive", user="me", metadata={"a": "b"}, store=False
        )
    (choice,) = answer.choices
    assert choice.message.content == ANSWER
    assert (choice.message.role, choice.finish_reason, choice.logprobs) == ("assistant", "stop", None)
    (request,) = it.backend.requests
    expected = "<|bos|><|start|>system\nBe brief.<|end|>\n<|start|>user\nHello<|end|>\n<|start|>assistant\n"
    assert codec().decode(request.prompt, skip_special_tokens=False) == expected
    assert (request.service_class, request.priority, request.ttft_s, request.tpot_s) == ("interactive", 5, 0.2, 0.03)
    assert request.max_tokens == 2048 - len(request.prompt)
    assert request.sampling.stop_ids == (eos(),)
    assert answer.usage is not None
    tokens = len(it.backend.script.tokens)
    assert answer.usage.prompt_tokens == len(request.prompt)
    assert answer.usage.completion_tokens == tokens
    assert answer.usage.total_tokens == len(request.prompt) + tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    assert answer.service_tier == "interactive"
    assert answer.model_extra is not None
    decode_ms = 20.0 * (tokens - 1)
    assert answer.model_extra["hyperflexis"] == {
        "class": "interactive",
        "priority": 5,
        "slo": {"ttft_ms": 200.0, "tpot_ms": 30.0, "e2e_ms": None},
        "ttft": {"predicted_ms": 35.0, "actual_ms": 40.0, "met": True},
        "tpot": {"predicted_ms": 18.0, "actual_ms": 20.0, "met": True},
        "e2e": {"actual_ms": 40.0 + decode_ms, "met": None},
        "attained": True,
        "instance": "tiny-0",
        "queued_ms": 10.0,
        "prefill_ms": 30.0,
        "decode_ms": decode_ms,
        "migrations": 0,
    }


@on_loop
async def test_chat_stream() -> None:
    async with client_of() as (client, it):
        stream = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    first, *middle, finish, last = chunks
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in middle) == ANSWER
    assert {chunk.choices[0].finish_reason for chunk in middle} == {None}
    assert finish.choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == len(it.backend.script.tokens)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert last.model_extra is not None
    assert last.model_extra["hyperflexis"]["attained"] is True
    assert len({chunk.id for chunk in chunks}) == 1


@on_loop
async def test_without_usage_the_finish_chunk_carries_the_verdict() -> None:
    async with client_of() as (client, _):
        stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["hyperflexis"]["instance"] == "tiny-0"


@on_loop
async def test_completion() -> None:
    async with client_of() as (client, it):
        answer = await client.completions.create(model=MODEL, prompt="Hello")
        whole = await client.completions.create(model=MODEL, prompt="Hello", max_tokens=100)
    assert it.backend.requests[0].max_tokens == 16
    assert answer.choices[0].finish_reason == "length"
    assert ANSWER.startswith(answer.choices[0].text.rstrip("�"))
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (ANSWER, "stop")


@on_loop
async def test_completion_stream() -> None:
    async with client_of() as (client, _):
        stream = await client.completions.create(model=MODEL, prompt="Hello", max_tokens=100, stream=True)
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hello", ["Hello"]),
        (["Hello", "text"], ["Hello", "text"]),
        ([72, 101], ["ids"]),
        ([[72, 101], [73]], ["ids", "ids"]),
    ],
)
@on_loop
async def test_every_shape_of_prompt(prompt: Any, expected: list[str]) -> None:
    async with client_of() as (client, it):
        answer = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=4)
    assert [choice.index for choice in answer.choices] == list(range(len(expected)))
    given = [request.prompt for request in it.backend.requests]
    if expected[0] == "ids":
        assert given == (prompt if isinstance(prompt[0], list) else [prompt])
    else:
        assert given == [codec().encode(text) for text in expected]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(map(len, given))
    assert answer.usage.completion_tokens == 4 * len(given)


@pytest.mark.parametrize("stream", [False, True])
@on_loop
async def test_several_choices(stream: bool) -> None:
    """Each has its seed; the same request gives the same seeds again."""
    async with client_of() as (client, it):
        for _ in range(2):
            answer: Any = await client.chat.completions.create(
                model=MODEL, messages=MESSAGES, n=3, seed=2**63 - 2, max_tokens=5, stream=stream
            )
            if stream:
                chunks = [chunk async for chunk in answer]
                finished = [c.index for chunk in chunks for c in chunk.choices if c.finish_reason]
                last = chunks[-1].model_extra
            else:
                finished = [choice.index for choice in answer.choices]
                last = answer.model_extra
                assert answer.usage.completion_tokens == 15
                assert answer.usage.prompt_tokens == len(it.backend.requests[0].prompt)
            assert sorted(finished) == [0, 1, 2]
            assert len(last["hyperflexis"]) == 3
    seeds = [request.sampling.seed for request in it.backend.requests]
    assert seeds == [2**63 - 2, 2**63 - 1, -(2**63)] * 2


@on_loop
async def test_a_seed_is_drawn_where_none_is_given() -> None:
    async with client_of() as (client, it):
        for _ in range(2):
            await client.completions.create(model=MODEL, prompt="Hello", max_tokens=1)
    first, second = [request.sampling.seed for request in it.backend.requests]
    assert first != second


@on_loop
async def test_sampling_parameters_reach_the_backend() -> None:
    async with client_of() as (client, it):
        await client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            temperature=0,
            top_p=0.5,
            presence_penalty=-2,
            frequency_penalty=2,
            logit_bias={"5": -100, "6": 1},
            max_completion_tokens=7,
            seed=-3,
            extra_body={
                "top_k": 40,
                "min_p": 0.1,
                "repetition_penalty": 1.5,
                "min_tokens": 3,
                "stop_token_ids": [9],
                "ignore_eos": True,
            },
        )
        await client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body={"top_k": -1})
    request, other = it.backend.requests
    sampling = request.sampling
    assert request.max_tokens == 7
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.0, 0.5, 40, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (-2.0, 2.0, 1.5)
    assert (sampling.logit_bias, sampling.seed, sampling.min_tokens) == ({5: -100.0, 6: 1.0}, -3, 3)
    assert (sampling.stop_ids, sampling.logprobs, sampling.prompt_logprobs) == ((9,), None, False)
    assert other.sampling.top_k == 0


@pytest.mark.parametrize("per_call", [1, 3, 100])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("include", [False, True])
@on_loop
async def test_stop_string_ends_text_and_work(per_call: int, stream: bool, include: bool) -> None:
    backend = FakeBackend(answer_script(per_call=per_call, forever=True))
    async with client_of(backend) as (client, _):
        answer: Any = await client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            stop=["not there", "END"],
            stream=stream,
            extra_body={"include_stop_str_in_output": include},
        )
        if stream:
            chunks = [chunk async for chunk in answer]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            last = chunks[-1].choices[0]
            told = chunks[-1].model_extra
        else:
            last, told = answer.choices[0], answer.model_extra
            text = last.message.content
    assert text == ANSWER[: ANSWER.index("END") + 3 * include]
    assert last.finish_reason == "stop"
    assert last.model_extra["stop_reason"] == "END"
    assert told["hyperflexis"]["instance"] == "tiny-0"
    assert backend.cancelled == [1]


@on_loop
async def test_min_tokens_hold_back_stop_strings_too() -> None:
    text = "END END END more"
    tokens = codec().encode(text)
    async with client_of(FakeBackend(Script(tokens=[*tokens, eos()], per_call=4))) as (client, _):
        for min_tokens, stop_at in ((0, 0), (3, text.index("END", 3)), (len(tokens), None)):
            answer = await client.completions.create(
                model=MODEL, prompt="Hello", max_tokens=50, stop="END", extra_body={"min_tokens": min_tokens}
            )
            choice = answer.choices[0]
            held = codec().decode(tokens[:min_tokens])
            assert choice.text == (text if stop_at is None else _cut_behind(text, held))


def _cut_behind(text: str, held: str) -> str:
    """Text up to the first stop string that begins behind what min_tokens let pass."""
    return held + text[len(held) :].split("END", 1)[0]


@pytest.mark.parametrize("include", [False, True])
@on_loop
async def test_stop_ids_are_told_and_hidden(include: bool) -> None:
    tokens = codec().encode("Hello!")
    stop = tokens[-1]
    async with client_of(FakeBackend(Script(tokens=tokens))) as (client, _):
        answer = await client.completions.create(
            model=MODEL,
            prompt="x",
            extra_body={"stop_token_ids": [stop], "include_stop_str_in_output": include},
        )
    choice = answer.choices[0]
    assert choice.text == codec().decode(tokens if include else tokens[:-1])
    assert choice.model_extra is not None
    assert (choice.finish_reason, choice.model_extra["stop_reason"]) == ("stop", stop)


@on_loop
async def test_chat_logprobs() -> None:
    async with client_of() as (client, it):
        answer = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=2, max_tokens=8
        )
        stream = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=2, max_tokens=8, stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert len(content) == 8
    assert b"".join(bytes(each.bytes or []) for each in content).startswith("Grüße!".encode())
    assert [len(each.top_logprobs) for each in content] == [2] * 8
    assert content[0].top_logprobs[1].logprob == -1.5
    streamed = [
        each
        for chunk in chunks
        if chunk.choices[0].logprobs is not None
        for each in chunk.choices[0].logprobs.content or []
    ]
    assert streamed == content
    assert it.backend.requests[0].sampling.logprobs == 2


@on_loop
async def test_completion_logprobs_with_echo() -> None:
    """The columns cover prompt and output, and the offsets point into the text."""
    async with client_of() as (client, it):
        answer = await client.completions.create(model=MODEL, prompt="Hello text", echo=True, logprobs=1, max_tokens=20)
        stream = await client.completions.create(
            model=MODEL, prompt="Hello text", echo=True, logprobs=1, max_tokens=20, stream=True
        )
        chunks = [chunk async for chunk in stream]
        silent = await client.completions.create(model=MODEL, prompt="Hello text", echo=True, logprobs=0, max_tokens=0)
    choice = answer.choices[0]
    columns = choice.logprobs
    assert columns is not None
    assert columns.tokens is not None
    assert columns.text_offset is not None
    assert columns.token_logprobs is not None
    assert columns.top_logprobs is not None
    prompt = it.backend.requests[0].prompt
    assert len(columns.tokens) == len(prompt) + 20
    assert choice.text.startswith("Hello textGrüße!")
    for token, offset in zip(columns.tokens, columns.text_offset, strict=True):
        if not token.startswith("bytes:"):
            assert choice.text[offset:].startswith(token)
    assert columns.token_logprobs[0] is None
    assert columns.token_logprobs[1:] == [-0.5] * (len(prompt) + 19)
    assert columns.top_logprobs[1] == {columns.tokens[1]: -0.5}
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
    offsets = [o for chunk in chunks if (lp := chunk.choices[0].logprobs) is not None for o in lp.text_offset or []]
    assert offsets == columns.text_offset
    request = it.backend.requests[0]
    assert request.sampling.prompt_logprobs is True
    assert silent.choices[0].text == "Hello text"
    assert silent.choices[0].finish_reason == "length"
    assert silent.choices[0].logprobs is not None
    assert len(silent.choices[0].logprobs.tokens or []) == len(prompt)
    assert silent.usage is not None
    assert silent.usage.completion_tokens == 0


@pytest.mark.parametrize(("more", "ends_as"), [({}, "stop"), ({"stop": "END"}, "stop"), ({"max_tokens": 5}, "length")])
@on_loop
async def test_token_ids_of_completions(more: dict[str, Any], ends_as: str) -> None:
    """Those of the prompt with the first event, all of the answer's tokens in the order in which they came."""
    asked: Any = {"model": MODEL, "prompt": "Hello text", "extra_body": {"return_token_ids": True}, "max_tokens": 99}
    async with client_of() as (client, it):
        whole = await client.completions.create(**asked | more)
        chunks = [chunk async for chunk in await client.completions.create(**asked | more, stream=True)]
    (choice,) = whole.choices
    assert choice.finish_reason == ends_as
    assert choice.model_extra is not None
    assert whole.usage is not None
    ids = choice.model_extra["token_ids"]
    assert ids == it.backend.script.tokens[: whole.usage.completion_tokens]
    assert choice.model_extra["prompt_token_ids"] == it.backend.requests[0].prompt
    told = [chunk.choices[0].model_extra or {} for chunk in chunks]
    assert [token for each in told for token in each.get("token_ids", [])] == ids
    assert [each["prompt_token_ids"] for each in told if "prompt_token_ids" in each] == [it.backend.requests[1].prompt]
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text


@on_loop
async def test_token_ids_of_chats() -> None:
    asked: Any = {"model": MODEL, "messages": MESSAGES, "extra_body": {"return_token_ids": True}, "logprobs": True}
    async with client_of() as (client, it):
        whole = await client.chat.completions.create(**asked)
        chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
        unasked = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert whole.model_extra is not None
    assert whole.model_extra["prompt_token_ids"] == it.backend.requests[0].prompt
    assert whole.choices[0].model_extra is not None
    ids = whole.choices[0].model_extra["token_ids"]
    assert ids == it.backend.script.tokens
    assert ids[-1] == eos()
    told = [chunk.choices[0].model_extra or {} for chunk in chunks]
    assert [token for each in told for token in each.get("token_ids", [])] == ids
    assert chunks[0].model_extra is not None
    assert chunks[0].model_extra["prompt_token_ids"] == it.backend.requests[1].prompt
    assert "token_ids" not in (unasked.choices[0].model_extra or {})
    assert "prompt_token_ids" not in (unasked.model_extra or {})


@on_loop
async def test_echo_of_token_ids_is_decoded() -> None:
    async with client_of() as (client, _):
        answer = await client.completions.create(model=MODEL, prompt=codec().encode("Hello"), echo=True, max_tokens=1)
    assert answer.choices[0].text.startswith("HelloGr")


@on_loop
async def test_logprobs_of_a_stop_string_are_cut_with_it() -> None:
    """Tokens that begin before the cut are kept whole, those behind it are not told."""
    async with client_of() as (client, _):
        answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True, stop="END")
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    said = b"".join(bytes(each.bytes or []) for each in logprobs.content or []).decode()
    assert said == (answer.choices[0].message.content or "") + "EN"


@on_loop
async def test_special_tokens_are_shown_if_asked_for() -> None:
    start = codec().encode("<|start|>")
    async with client_of(FakeBackend(Script(tokens=[*start, *codec().encode("x")]))) as (client, _):
        for skip, text in ((True, "x"), (False, "<|start|>x")):
            answer = await client.completions.create(model=MODEL, prompt="x", extra_body={"skip_special_tokens": skip})
            assert answer.choices[0].text == text


@on_loop
async def test_content_parts_are_joined_and_model_may_be_left_out() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    async with served() as it:
        body = {"messages": [{"role": "developer", "content": parts}, {"role": "assistant", "content": None}]}
        status, answer, headers = await it.post("/v1/chat/completions", body | {"unheard_of": {"a": 1}})
    assert status == 200
    assert answer["model"] == MODEL
    assert headers["x-request-id"] == answer["id"]
    assert "<|start|>system\nHello<|end|>" in codec().decode(it.backend.requests[0].prompt, False)


@on_loop
async def test_continuing_the_last_message() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello wor"}]
    async with served() as it:
        body = {"messages": messages, "continue_final_message": True}
        status, _, _ = await it.post("/v1/chat/completions", body)
    assert status == 200
    assert codec().decode(it.backend.requests[0].prompt, False).endswith("<|start|>assistant\nHello wor")


@on_loop
async def test_tools_are_refused_by_name() -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
    async with client_of() as (client, _):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[tool])
    assert (caught.value.param, caught.value.code) == ("tools", "unsupported_parameter")


@pytest.mark.parametrize("stream", [False, True])
@on_loop
async def test_saturation_is_a_429_with_retry_after(stream: bool) -> None:
    end = End(EndReason.REJECTED, message="the queue\nis full", status=429, retry_after_s=2.1)
    async with client_of(FakeBackend(Script(end=end))) as (client, _):
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=stream)
    headers = caught.value.response.headers
    assert headers["Retry-After"] == "3"
    assert headers["x-llm-d-request-dropped-reason"] == "rejected-saturated"
    assert headers["x-hyperflexis-reason"] == "the queue?is full"


@on_loop
async def test_no_instances_is_a_503() -> None:
    end = End(EndReason.REJECTED, status=503)
    async with served(FakeBackend(Script(end=end))) as it:
        status, answer, headers = await it.post("/v1/completions", {"prompt": "x"})
    assert (status, answer["error"]["code"]) == (503, "rejected_no_endpoints")
    assert headers["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints"
    assert "Retry-After" not in headers


@on_loop
async def test_request_that_no_instance_could_hold_is_a_400() -> None:
    end = End(EndReason.REJECTED, message="no instance could hold it (tokens=9)", status=400)
    async with served(FakeBackend(Script(end=end))) as it:
        status, answer, headers = await it.post("/v1/completions", {"prompt": "x"})
    error = answer["error"]
    assert (status, error["code"], error["type"]) == (400, "context_length_exceeded", "invalid_request_error")
    assert headers["x-hyperflexis-reason"] == "no instance could hold it (tokens=9)"
    assert "Retry-After" not in headers


@pytest.mark.parametrize("status", [500, 503])
@on_loop
async def test_failure_before_any_text_is_a_status(status: int) -> None:
    end = End(EndReason.FAILED, message="instance lost", status=status)
    async with served(FakeBackend(Script(end=end))) as it:
        got, answer, _ = await it.post("/v1/completions", {"prompt": "x", "stream": True, "n": 2})
    assert got == status
    assert answer["error"]["message"] == "instance lost"


@on_loop
async def test_failure_inside_a_stream_is_an_event() -> None:
    end = End(EndReason.FAILED, message="instance lost", status=500)
    script = Script(tokens=codec().encode("Hello"), end=end)
    async with client_of(FakeBackend(script)) as (client, it):
        events = await it.events("/v1/completions", {"prompt": "x"})
        assert events[-1] == "[DONE]"
        assert '"error":{"message":"instance lost"' in events[-2]
        stream = await client.completions.create(model=MODEL, prompt="x", stream=True)
        with pytest.raises(openai.APIError, match="instance lost"):
            _ = [chunk async for chunk in stream]


@on_loop
async def test_one_failed_choice_cancels_the_others() -> None:
    scripts = iter([Script(tokens=[1], forever=True), Script(end=End(EndReason.FAILED, status=500))])
    backend = FakeBackend(lambda request: next(scripts))
    async with served(backend) as it:
        status, _, _ = await it.post("/v1/completions", {"prompt": "x", "n": 2})
    assert status == 500
    assert backend.cancelled == [1]


@on_loop
async def test_models() -> None:
    async with client_of() as (client, _):
        listed = [model.id async for model in client.models.list()]
        model = await client.models.retrieve(MODEL)
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("other")
    assert listed == [MODEL]
    assert model.model_extra is not None
    assert (model.id, model.created, model.model_extra["max_model_len"]) == (MODEL, 1_700_000_000, 2048)
    assert caught.value.code == "model_not_found"
