"""The smaller routes: probes, metrics, tokenising; and chat templates."""

from __future__ import annotations

import datetime
from types import SimpleNamespace
from typing import cast

import pytest
from gateway_fakes import CHAT, CLASSES, COMPLETION, FakeBackend, Script, codec, on_loop, served
from prometheus_client.parser import text_string_to_metric_families

from hyperflexis.gateway.backend import End, EndReason, ServedModel
from hyperflexis.gateway.chat_template import ChatTemplate
from hyperflexis.gateway.errors import ApiError

USER = [{"role": "user", "content": "Hi"}]


@on_loop
async def test_probes() -> None:
    async with served() as it:
        for path in ("/health", "/live"):
            async with it.http.get(it.url + path) as response:
                assert (response.status, await response.json()) == (200, {"status": "ok"})
        async with it.http.get(it.url + "/ready") as response:
            told = await response.json()
            assert (response.status, told["ready"], told["draining"]) == (200, True, False)
            assert told["instances"][0] == {
                "name": "tiny-0",
                "state": "ready",
                "role": "mixed",
                "waiting_seqs": 1,
                "running_seqs": 2,
                "blocks": 100,
                "blocks_free": 40,
            }
        it.backend.ready = False
        assert (await it.http.get(it.url + "/ready")).status == 503
        assert (await it.http.get(it.url + "/health")).status == 200


@on_loop
async def test_metrics() -> None:
    async with served() as it:
        await it.post("/v1/completions", COMPLETION | {"service_tier": "interactive"})
        await it.events("/v1/chat/completions", CHAT | {"service_tier": "batch"})
        await it.post("/v1/completions", COMPLETION | {"slo": {"ttft_ms": 10, "tpot_ms": 500}})
        await it.post("/v1/completions", {"prompt": ""})
        await it.post("/v1/completions", {"prompt": "x", "service_tier": "gold"})
        it.backend.script = Script(end=End(EndReason.REJECTED, status=429))
        await it.post("/v1/completions", COMPLETION | {"service_tier": "batch"})
        async with it.http.get(it.url + "/metrics") as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=")
            text = await response.text()
    values = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }

    def value(name: str, **labels: str) -> float | None:
        return values.get((f"hyperflexis_{name}", tuple(sorted({k.rstrip("_"): v for k, v in labels.items()}.items()))))

    assert value("requests_total", class_="interactive", code="200") == 1
    assert value("requests_total", class_="batch", code="200") == 1
    assert value("requests_total", class_="batch", code="429") == 1
    assert value("requests_total", class_="default", code="200") == 1
    assert value("requests_total", class_="default", code="400") == 1
    assert value("requests_total", class_="none", code="400") == 1
    assert value("slo_attained_total", class_="interactive", slo="ttft") == 1
    assert value("slo_attained_total", class_="interactive", slo="tpot") == 1
    assert value("slo_missed_total", class_="default", slo="ttft") == 1
    assert value("slo_attained_total", class_="default", slo="tpot") == 1
    assert value("slo_attained_total", class_="batch", slo="e2e") == 1
    for name in ("ttft_seconds", "tpot_seconds", "e2e_seconds", "predicted_ttft_seconds"):
        assert value(f"{name}_count", class_="interactive") == 1, name
    assert value("ttft_seconds_sum", class_="interactive") == pytest.approx(0.04)
    assert value("prompt_tokens_total", class_="interactive") == len(codec().encode("Hello"))
    assert (value("completion_tokens_total", class_="interactive") or 0) > 20
    assert value("requests_in_flight") == 0
    assert value("instance_state", instance="tiny-0", role="mixed", state="ready") == 1
    assert value("instance_running_seqs", instance="tiny-0", role="mixed") == 2
    assert value("instance_waiting_seqs", instance="tiny-0", role="mixed") == 1
    assert value("instance_blocks", instance="tiny-0", role="mixed") == 100
    assert value("instance_blocks_free", instance="tiny-0", role="mixed") == 40


@on_loop
async def test_tokenize_and_back() -> None:
    async with served() as it:
        status, answer, _ = await it.post("/tokenize", {"prompt": "Hello text", "return_token_strs": True})
        assert status == 200
        assert answer["tokens"] == codec().encode("Hello text")
        assert answer["count"] == len(answer["tokens"])
        assert answer["max_model_len"] == 2048
        assert "".join(answer["token_strs"]) == "Hello text"
        status, back, _ = await it.post("/detokenize", {"tokens": answer["tokens"]})
        assert (status, back) == (200, {"prompt": "Hello text"})
        status, answer, _ = await it.post("/tokenize", {"messages": USER, "add_generation_prompt": False})
        assert codec().decode(answer["tokens"], False) == "<|bos|><|start|>user\nHi<|end|>\n"
        assert answer["token_strs"] is None
        for path, body, param in (
            ("/tokenize", {}, "prompt"),
            ("/tokenize", {"prompt": ""}, "prompt"),
            ("/tokenize", {"messages": []}, "messages"),
            ("/detokenize", {"tokens": [-1]}, "tokens"),
            ("/detokenize", {}, "tokens"),
        ):
            status, answer, _ = await it.post(path, body)
            assert (status, answer["error"]["param"]) == (400, param)


@on_loop
async def test_answers_tell_what_was_granted() -> None:
    async with served(priority_max=3) as it:
        body = COMPLETION | {"priority": 9, "slo": {"ttft_ms": 250}}
        _, answer, headers = await it.post("/v1/completions", body)
        assert headers["x-hyperflexis-granted"] == "class=default, priority=3, ttft-ms=250"
        assert answer["hyperflexis"]["priority"] == 3
        async with it.http.post(it.url + "/v1/completions", json=body | {"stream": True}) as response:
            assert response.headers["x-hyperflexis-granted"].startswith("class=default, priority=3")
            assert response.headers["Content-Type"] == "text/event-stream"


@on_loop
async def test_without_a_verdict_the_promise_is_told() -> None:
    script = Script(tokens=[1], end=End(EndReason.LENGTH))
    async with served(FakeBackend(script)) as it:
        _, answer, _ = await it.post("/v1/completions", COMPLETION | {"service_tier": "interactive"})
    assert answer["hyperflexis"] == {
        "class": "interactive",
        "priority": 5,
        "slo": {"ttft_ms": 200.0, "tpot_ms": 30.0, "e2e_ms": None},
    }


# Chat templates.


def test_template_has_the_names_that_templates_use() -> None:
    source = """{% generation %}{{ messages | tojson }}{% endgeneration %}
{%- for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{% endfor -%}
|{{ strftime_now('%Y') }}|{{ eos_token }}|{{ tools is none }}|{{ mood }}"""
    template = ChatTemplate(source, {"eos_token": "<e>"})
    text = template.render([{"role": "user", "content": "<é>"}], extra={"mood": "glad", "messages": "no"})
    year = datetime.datetime.now().astimezone().year
    assert text == f'[{{"role": "user", "content": "<é>"}}]|{year}|<e>|True|glad'


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages[5].role }}",
        "{{ nothing.at.all }}",
        "{{ range(10000000000) | list }}",
        "{{ 1 + 'a' }}",
    ],
)
def test_template_that_fails_or_breaks_out_refuses_the_messages(source: str) -> None:
    with pytest.raises(ApiError) as caught:
        ChatTemplate(source).render(USER)
    assert caught.value.param == "messages"


def test_developer_is_system_unless_the_template_knows_it() -> None:
    messages = [{"role": "developer", "content": "x"}]
    assert ChatTemplate("{{ messages[0].role }}").render(messages) == "system"
    assert ChatTemplate("{# developer #}{{ messages[0].role }}").render(messages) == "developer"


def test_continuing_a_message_that_is_not_in_the_prompt_is_refused() -> None:
    with pytest.raises(ApiError, match="no text to continue"):
        ChatTemplate("nothing").render(USER, continue_final_message=True)


# Whoever knows no gateway fulfils its protocol.


@pytest.mark.parametrize(("reason", "status"), [("stop", 200), ("length", 200), ("failed", 500), ("cancelled", 503)])
@on_loop
async def test_a_fleet_may_speak_plain_words(reason: str, status: int) -> None:
    """Its ends need the fields only, and what is offered may come from elsewhere."""
    end = SimpleNamespace(reason=reason, verdict=None, message="", status=200, retry_after_s=None, cached_tokens=0)
    backend = FakeBackend(Script(tokens=[1], end=cast("End", end)), models=(), service_classes={})
    offered = {"models": [ServedModel("m", 1, 100)], "service_classes": CLASSES, "default_class": "batch"}
    async with served(backend, **offered) as it:
        got, answer, _ = await it.post("/v1/completions", {"prompt": "x"})
    assert got == status
    assert backend.requests[0].service_class == "batch"
    if status == 200:
        assert answer["choices"][0]["finish_reason"] == reason


# Instances that come and go by request.


class Members:
    """A membership that knows one instance."""

    def __init__(self) -> None:
        self.attached: list[tuple[str, str]] = []

    def attach(self, url: str, role: str) -> None:
        if not url.startswith("http"):
            raise ValueError("it is no address")
        self.attached.append((url, role))

    def detach(self, name: str) -> bool:
        if name == "i0":
            raise ValueError("it is the last one")
        return name == "i1"


@on_loop
async def test_instances_are_attached_and_detached_where_that_is_allowed() -> None:
    members = Members()
    async with served(membership=members) as it:
        for body, status in (({"url": "http://a"}, 202), ({"url": "x"}, 400), ({}, 400)):
            async with it.http.post(it.url + "/instances", json=body) as response:
                assert response.status == status, await response.text()
        for name, status in (("i1", 202), ("i0", 409), ("i7", 404)):
            async with it.http.delete(f"{it.url}/instances/{name}") as response:
                assert response.status == status, await response.text()
    assert members.attached == [("http://a", "mixed")]


@on_loop
async def test_nobody_attaches_anything_otherwise() -> None:
    async with served() as it:
        async with it.http.post(it.url + "/instances", json={"url": "http://a"}) as response:
            assert response.status == 404
        assert (await it.http.delete(it.url + "/instances/i0")).status == 404
