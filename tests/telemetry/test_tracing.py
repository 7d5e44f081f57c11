"""Spans join the client's trace, say what became of a request, and reach a collector; unsampled ones are nowhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from hyperflexis.adapters.vllm.standin.engine import Traits
from hyperflexis.core.commands import Command, Conclude, Dispatch, Hold, Reason, Reject, Why
from hyperflexis.core.events import Event, InstanceReady, InstanceReported, RequestArrived, RequestFinished
from hyperflexis.core.instance import Capacity, Role
from hyperflexis.core.latency import LatencyModel, StepShape
from hyperflexis.core.slo import ServiceClass, Slo, Timeline, Verdict
from hyperflexis.gateway.backend import ServedModel
from hyperflexis.gateway.server import Gateway
from hyperflexis.policies import create
from hyperflexis.telemetry.tracing import Tracing, exporting
from runtime.attached_world import DEMO_MODEL, TRAITS, AttachedWorld, live

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = ({"traceparent": f"00-{TRACE}-{PARENT}-{flags}"} for flags in ("01", "00"))
NOW_S = 1000.0
"""Of a clock that stands still while nobody looks."""


class Traced:
    """Traces into memory."""

    def __init__(self, sample_share: float = 1.0) -> None:
        self._memory = InMemorySpanExporter()
        self.tracing = Tracing(SimpleSpanProcessor(self._memory), sample_share=sample_share, clock=lambda: NOW_S)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._memory.get_finished_spans()}


@pytest.fixture
def traced() -> Iterator[Traced]:
    made = Traced()
    yield made
    made.tracing.close()


def length_s(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return round((span.end_time - span.start_time) / 1e9, 6)


def is_sampled(traceparent: str) -> bool:
    """The lowest of its flags."""
    return bool(int(traceparent[-2:], 16) & 1)


def play(tracing: Tracing, name: str) -> None:
    """A request that is held for a second, waits half of one, is prefilled for another half and decodes for two."""
    slo = Slo(ttft_s=3.0)
    times = Timeline(900.0, 901.0, 901.5, 902.0, 904.0, 20, 1.8, None)
    verdict = Verdict("chat", 1, slo, times, "i0")
    model, shape = LatencyModel(0, 0, 0, 0, 0, 0), StepShape(5, 5, 0, 0)
    sent = Dispatch(7, 0, Reason(Why.FEASIBLE, (("ttft_s", 1.8),)))
    lines: list[tuple[float, Event, list[Command], str]] = [
        (900.0, RequestArrived(7, 5, 20, slo, 1, "chat"), [Hold(7, Reason(Why.NO_INSTANCE))], name),
        (901.0, InstanceReady(0, Capacity(9, 16, 4), model), [sent], ""),
        (902.0, InstanceReported(0, shape, 0.5, started=[7], began=[7]), [], ""),
        (904.0, RequestFinished(0, 7, 20), [Conclude(7, verdict, Reason(Why.ENDED))], ""),
    ]
    for line in lines:
        tracing.lives.observe(*line)


def test_spans_are_the_clients_and_say_where_the_time_went(traced: Traced) -> None:
    trace = traced.tracing.begin("POST", "/v1/completions", SAMPLED)
    trace.follow("cmpl-1")
    play(traced.tracing, "cmpl-1")
    trace.end(200, {"hyperflexis.class": "chat"})
    spans = traced.spans
    server, request = spans["POST /v1/completions"], spans["request"]
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE}
    assert server.kind is SpanKind.SERVER
    assert server.parent is not None
    assert server.parent.span_id == int(PARENT, 16)
    assert server.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "hyperflexis.class": "chat",
    }
    assert request.parent == server.context
    assert {name: length_s(span) for name, span in spans.items() if span.parent == request.context} == {
        "hold": 1.0,
        "queue": 0.5,
        "prefill": 0.5,
        "decode": 2.0,
    }
    assert length_s(request) == 4.0
    assert request.attributes is not None
    assert request.attributes["hyperflexis.attained"] is True
    assert request.attributes["hyperflexis.predicted_ttft_s"] == 1.8
    assert request.attributes["gen_ai.usage.output_tokens"] == 20
    (dispatch,) = request.events
    assert dispatch.attributes == {
        "hyperflexis.instance": "i0",
        "hyperflexis.reason": "fits every promise there",
        "hyperflexis.ttft_s": 1.8,
    }


def test_engines_are_told_of_the_span_that_theirs_are_in(traced: Traced) -> None:
    trace = traced.tracing.begin("POST", "/v1/completions", SAMPLED)
    version, trace_id, span_id, flags = trace.traceparent.split("-")
    trace.end(200, {})
    (server,) = traced.spans.values()
    assert (version, trace_id, flags) == ("00", TRACE, "01")
    assert int(span_id, 16) == server.context.span_id


@pytest.mark.parametrize(
    ("headers", "sample_share", "is_traced"),
    [
        (SAMPLED, 0.0, True),
        (UNSAMPLED, 1.0, False),
        ({}, 0.0, False),
        ({}, 1.0, True),
        ({"traceparent": "?"}, 0.0, False),
    ],
)
def test_the_parent_decides_and_without_one_the_share(
    headers: dict[str, str], sample_share: float, is_traced: bool
) -> None:
    traced = Traced(sample_share)
    trace = traced.tracing.begin("POST", "/v1/completions", headers)
    trace.follow("cmpl-1")
    play(traced.tracing, "cmpl-1")
    trace.end(200, {})
    assert bool(traced.spans) == is_traced
    assert is_sampled(trace.traceparent) == is_traced
    if headers is UNSAMPLED:
        assert TRACE in trace.traceparent
    assert not traced.tracing.lives._wanted


def test_refusals_and_failures_are_errors(traced: Traced) -> None:
    trace = traced.tracing.begin("POST", "/v1/completions", {})
    trace.follow("cmpl-1")
    refusal = Reject(7, Reason(Why.START_FAILS))
    traced.tracing.lives.observe(900.0, RequestArrived(7, 5, 20, Slo()), [refusal], "cmpl-1")
    trace.end(503, {})
    assert set(traced.spans) == {"POST /v1/completions", "request"}
    for span in traced.spans.values():
        assert span.status.status_code is StatusCode.ERROR


# From a client's request to a collector, over HTTP.


class Collector:
    """Takes what exporters send."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.url = ""

    async def _take(self, request: web.Request) -> web.Response:
        told = ExportTraceServiceRequest.FromString(await request.read())
        for resource in told.resource_spans:
            names = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.services.add(names["service.name"])
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return web.Response()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Collector]:
        app = web.Application()
        app.add_routes([web.post("/v1/traces", self._take)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield self
        await runner.cleanup()


@contextlib.asynccontextmanager
async def gateway_to(world: AttachedWorld, tracing: Tracing | None) -> AsyncIterator[str]:
    gateway = Gateway(
        world.driver,
        DEMO_MODEL,
        models=[ServedModel("demo", 0, 4096)],
        service_classes={"default": ServiceClass("default", Slo(ttft_s=10.0))},
        port=0,
        tracer=tracing,
    )
    port = await gateway.start()
    yield f"http://127.0.0.1:{port}"
    await gateway.stop()


BODY = {"prompt": [5, 6, 7], "max_tokens": 12, "temperature": 0, "ignore_eos": True}


async def ask(url: str, headers: dict[str, str], **more: object) -> None:
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/completions", json={**BODY, **more}, headers=headers) as answer,
    ):
        assert answer.status == 200, await answer.text()
        await answer.read()


@pytest.mark.parametrize("stream", [False, True])
@live
async def test_a_request_is_one_trace_from_its_client_to_the_servers_behind(stream: bool) -> None:
    connected: Traits = replace(TRAITS, has_connector=True, root="/models/demo")
    stack = contextlib.ExitStack()
    async with Collector().running() as collector:
        tracing = stack.enter_context(exporting(collector.url, 0.0))
        async with AttachedWorld(
            [connected] * 2,
            roles=[Role.PREFILL, Role.DECODE],
            policy=create("hyperflexis", 2048, roles="fixed"),
            observers=[tracing.lives.observe],
            passes_kv=True,
        ) as world:
            await world.ready()
            async with gateway_to(world, tracing) as url:
                await ask(url, {}, n=1, stream=stream)
                await ask(url, SAMPLED, n=2, stream=stream)
                told = [each["headers"]["traceparent"] for server in world.servers for each in server.requests]
        await asyncio.to_thread(stack.close)  # Waits for the collector, which runs on this loop.
    spans = collector.spans
    assert collector.services == {"hyperflexis"}
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    (server,) = [span for span in spans if span.name == "POST /v1/completions"]
    assert server.parent_span_id.hex() == PARENT
    requests = [span for span in spans if span.name == "request"]
    assert [span.parent_span_id for span in requests] == [server.span_id] * 2
    for request in requests:
        inner = {span.name for span in spans if span.parent_span_id == request.span_id}
        assert inner >= {"queue", "prefill", "transfer", "decode"}
        assert server.start_time_unix_nano <= request.start_time_unix_nano
        assert request.end_time_unix_nano <= server.end_time_unix_nano
    joined = [each for each in told if each == f"00-{TRACE}-{server.span_id.hex()}-01"]
    assert len(joined) == 4
    others = set(told) - set(joined)
    assert [is_sampled(each) for each in others] == [False]


@live
async def test_a_clients_trace_is_passed_on_by_who_traces_nothing() -> None:
    async with AttachedWorld(1) as world:
        await world.ready()
        async with gateway_to(world, None) as url:
            for header in (SAMPLED["traceparent"], "rubbish", f"ff-{TRACE}-{PARENT}-01"):
                await ask(url, {"traceparent": header})
            await ask(url, {})
        told = [each["headers"].get("traceparent") for each in world.servers[0].requests]
    assert told == [SAMPLED["traceparent"], None, None, None]
