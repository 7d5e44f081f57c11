"""How an endpoint wants to be asked is found out by asking it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from bench.scripted_server import Script, ScriptedServer
from helpers.virtual_loop import run
from hyperflexis.bench.endpoint import Endpoint, EndpointError, Wanted, meet
from hyperflexis.bench.prompts import CHAT, TEXT

NO = Script(status=400, text='{"error": {"message": "what is this?"}}')


def counting(
    tokens: Callable[[int], int], *, refuses: Callable[[Any], bool] = lambda _: False
) -> Callable[[Any], Script]:
    """A server that says how many tokens so many words are."""

    def script(body: Any) -> Script:
        if refuses(body):
            return NO
        text = body.get("prompt") or body["messages"][0]["content"]
        words = len(text) if isinstance(text, list) else len(text.split())
        return Script(text=json.dumps({"choices": [{"text": "x"}], "usage": {"prompt_tokens": tokens(words)}}))

    return script


def met(server: ScriptedServer, **wanted: Any) -> Endpoint:
    return run(meet(server, Wanted("http://x", **wanted)))  # type: ignore[arg-type]


def test_ids_where_they_are_taken() -> None:
    server = ScriptedServer(counting(lambda words: words))
    endpoint = met(server)
    assert endpoint.has_exact_prompts
    assert (endpoint.address, endpoint.model, len(server.asked)) == ("http://x/v1/completions", "tiny", 1)
    body = json.loads(endpoint.body(endpoint.form.spelled([b"7"]), 9, endpoint.tail({"service_tier": "chat"})))
    assert body == {
        "model": "tiny",
        "prompt": [7],
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "ignore_eos": True,
        "service_tier": "chat",
    }


def test_text_where_they_are_not_and_what_words_come_to() -> None:
    server = ScriptedServer(
        counting(lambda words: 5 + words * 2, refuses=lambda body: isinstance(body["prompt"], list))
    )
    endpoint = met(server)
    assert endpoint.form.units is TEXT.units
    assert (endpoint.form.tokens_per_unit, endpoint.form.tokens_besides) == (2.0, 5.0)


def test_chat() -> None:
    endpoint = met(ScriptedServer(counting(lambda words: 30 + words)), is_chat=True)
    assert endpoint.address == "http://x/v1/chat/completions"
    assert (endpoint.form.before, endpoint.form.count(130)) == (CHAT.before, 100)


def test_fields_that_are_not_taken_are_left_out() -> None:
    endpoint = met(ScriptedServer(counting(lambda words: words, refuses=lambda body: "ignore_eos" in body)))
    assert endpoint.has_exact_prompts
    assert "ignore_eos" not in endpoint.members


def test_words_are_tokens_where_nobody_counts() -> None:
    endpoint = met(ScriptedServer(lambda _: Script(text='{"choices": []}')), is_text=True, model="other")
    assert (endpoint.model, endpoint.form.tokens_per_unit) == ("other", 1.0)


def test_refusal_is_told_in_the_servers_words() -> None:
    with pytest.raises(EndpointError, match=r"http://x/v1/completions answers 400: .*what is this"):
        met(ScriptedServer(lambda _: NO))


def test_server_without_models_is_none() -> None:
    with pytest.raises(EndpointError, match="lists no models"):
        met(ScriptedServer(lambda _: NO, models=()))
