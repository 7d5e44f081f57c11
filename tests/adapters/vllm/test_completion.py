"""Every sampling parameter in vLLM's words, and what comes back in ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hyperflexis.adapters.vllm import completion
from hyperflexis.adapters.vllm.completion import OVERDUE_S, PREFILL_ONLY, Choice, Events, body_of, fault_of, headers_of
from hyperflexis.core.slo import Slo
from hyperflexis.vllm_plugin.promises import promised
from hyperflexis.wire.messages import Sampling, Submit, TokenLogprobs
from hyperflexis.wire.promises import DEADLINE, TPOT, TTFT


def submit(emitted: list[int] | None = None, priority: int = 0, **sampling: Any) -> Submit:
    return Submit(7, [1, 2, 3], emitted or [], 20, Sampling(**{"temperature": 0.5, "seed": 9, **sampling}), priority)


def body(given: Submit, since: int | None = None, transfer: Any = None) -> dict[str, Any]:
    return body_of(given, "m", len(given.emitted) if since is None else since, transfer)


def test_plain_request_says_no_more_than_it_must() -> None:
    assert body(submit()) == {
        "model": "m",
        "prompt": [1, 2, 3],
        "max_tokens": 20,
        "stream": True,
        "return_token_ids": True,
        "temperature": 0.5,
        "top_p": 1.0,
        "seed": 9,
        "ignore_eos": True,
        "stop_token_ids": [],
        "add_special_tokens": False,
    }


def test_what_is_left_of_promises_goes_along_for_a_server_that_reads_them() -> None:
    given = Submit(7, [1], [], 20, Sampling(), ttft_s=0.5, tpot_s=0.05, e2e_s=9.0, waited_s=0.1)
    assert body(given)["vllm_xargs"] == {TTFT: 0.4, DEADLINE: 8.9, TPOT: 0.05}
    begun = Submit(7, [1], [2], 20, Sampling(), ttft_s=0.5, tpot_s=0.05, waited_s=0.1)
    assert body(begun)["vllm_xargs"] == {TPOT: 0.05}
    late = Submit(7, [1], [], 20, Sampling(), ttft_s=0.5, waited_s=0.7)
    assert body(late)["vllm_xargs"] == {TTFT: OVERDUE_S}
    assert promised(body(late)["vllm_xargs"]) == Slo(OVERDUE_S)


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"top_p": 0.9}, {"top_p": 0.9}),
        ({"top_k": 40}, {"top_k": 40}),
        ({"min_p": 0.1}, {"min_p": 0.1}),
        ({"presence_penalty": 0.5}, {"presence_penalty": 0.5}),
        ({"frequency_penalty": -0.5}, {"frequency_penalty": -0.5}),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"logit_bias": {5: 3.0}}, {"logit_bias": {"5": 3.0}}),
        ({"stop_ids": (0, 8)}, {"stop_token_ids": [0, 8]}),
        ({"min_tokens": 4}, {"min_tokens": 4}),
        ({"logprobs": 0}, {"logprobs": 0, "return_tokens_as_token_ids": True}),
        ({"logprobs": 3}, {"logprobs": 3, "return_tokens_as_token_ids": True}),
        (
            {"prompt_logprobs": True, "logprobs": 2},
            {"logprobs": 2, "prompt_logprobs": 2, "return_tokens_as_token_ids": True, "stream": False},
        ),
    ],
)
def test_each_parameter_in_vllms_words(sampling: dict[str, Any], said: dict[str, Any]) -> None:
    assert body(submit(**sampling)) == {**body(submit()), **said}


def test_resumed_request_brings_what_was_emitted_as_prompt() -> None:
    resumed = body(submit([30, 31, 30], min_tokens=5))
    assert (resumed["prompt"], resumed["max_tokens"], resumed["min_tokens"]) == ([1, 2, 3, 30, 31, 30], 17, 2)
    assert resumed["seed"] != 9, "its generator would draw again what it drew at the beginning"
    assert resumed["seed"] == body(submit([40, 41, 42]))["seed"]
    assert -(2**63) <= resumed["seed"] < 2**63


def test_penalties_on_what_was_emitted_become_biases() -> None:
    """vLLM counts its own output only. Prompt logprobs were told with the first token."""
    resumed = body(submit([30, 31, 30], presence_penalty=0.5, frequency_penalty=1.0, logit_bias={31: 2.0}))
    assert resumed["logit_bias"] == {"30": -2.5, "31": 0.5}
    extreme = body(submit([30] * 15, frequency_penalty=2.0, logit_bias={30: -99.0}))
    assert extreme["logit_bias"] == {"30": -100.0}
    assert "prompt_logprobs" not in body(submit([30], prompt_logprobs=True))


def test_prefill_alone_is_one_token_in_one_piece() -> None:
    prefill = body(submit(min_tokens=5), transfer=PREFILL_ONLY)
    assert (prefill["max_tokens"], prefill["stream"], prefill["min_tokens"]) == (1, False, 1)
    assert prefill["kv_transfer_params"]["do_remote_decode"] is True


def test_decode_of_a_transfer_has_the_same_prompt_and_seed() -> None:
    """Otherwise it would fetch KV of another text, and draw another first token."""
    params = {"do_remote_prefill": True, "remote_block_ids": [[1, 2]]}
    decode = body(submit([30]), since=0, transfer=params)
    assert (decode["prompt"], decode["max_tokens"], decode["seed"]) == ([1, 2, 3], 20, 9)
    assert decode["kv_transfer_params"] is params


def test_higher_priority_is_a_lower_number_there() -> None:
    assert headers_of(submit(priority=3), "x") == {"X-Request-Id": "x", "X-Vllm-Priority": "-3"}
    assert headers_of(submit(), "x") == {"X-Request-Id": "x"}


# What comes back.


def event(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"id": "cmpl-x", "choices": [{"index": 0, "text": "a", **choice}]}).encode() + b"\n\n"


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_events_are_found_wherever_the_stream_is_cut(line_end: bytes) -> None:
    stream = event(token_ids=[5]) + event(token_ids=[6, 7], finish_reason="length") + b"data: [DONE]\n\n"
    stream = stream.replace(b"\n", line_end)
    for cut in range(len(stream)):
        events = Events()
        found = [*events.take(stream[:cut]), *events.take(stream[cut:])]
        assert [each.choices[0].token_ids for each in found] == [[5], [6, 7]]
        assert found[-1].choices[0].finish_reason == "length"


def test_what_is_no_event_is_skipped_and_what_is_no_json_is_told() -> None:
    assert list(Events().take(b": ping\n\n")) == []
    with pytest.raises(ValueError, match="truncated"):
        list(Events().take(b"data: {\n\n"))


def test_logprobs_are_those_of_the_tokens() -> None:
    told = {
        "tokens": ["token_id:5", "token_id:6"],
        "token_logprobs": [-0.5, -2.0],
        "top_logprobs": [{"token_id:5": -0.5, "token_id:9": -1.0}, {"token_id:6": -2.0, "token_id:8": -0.1}],
    }
    (chunk,) = Events().take(event(token_ids=[5, 6], logprobs=told))
    assert completion.logprobs_of(chunk.choices[0], [5, 6], 1) == [
        TokenLogprobs(5, -0.5, [5], [-0.5]),
        TokenLogprobs(6, -2.0, [8], [-0.1]),
    ]
    assert completion.logprobs_of(Choice(), [5], 1) is None


def test_prompt_logprobs_begin_at_the_second_token() -> None:
    position = {"2": {"logprob": -1.5, "rank": 2, "decoded_token": "x"}, "4": {"logprob": -0.5, "rank": 1}}
    (chunk,) = Events().take(event(token_ids=[5], prompt_logprobs=[None, position]))
    assert completion.prompt_logprobs_of(chunk.choices[0], [1, 2], 1) == [TokenLogprobs(2, -1.5, [4], [-0.5])]


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b'{"error": {"message": "too long", "code": 400}}', "too long"),
        (b'{"object": "error", "message": "too long"}', "too long"),
        (b'{"error": "Unauthorized"}', "Unauthorized"),
        (b'{"detail": "Not Found"}', "{'detail': 'Not Found'}"),
        (b"<html>", "<html>"),
        (b"[1]", "[1]"),
    ],
)
def test_message_of_a_refusal_is_found_whatever_its_shape(sent: bytes, said: str) -> None:
    assert fault_of(sent) == said
