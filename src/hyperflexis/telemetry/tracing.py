"""Traces of requests for OpenTelemetry: spans in the client's own trace, made when a request has ended.

While it runs, nothing is done but to note instants (`life`); a token costs nothing. Whether a request is traced is what
the client's header says; without one, chance by the share that was asked for.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_SERVICE_NAME
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from hyperflexis import __version__
from hyperflexis.core.commands import Why
from hyperflexis.core.slo import Verdict
from hyperflexis.telemetry.life import Life, Lives, Told

log = logging.getLogger(__name__)

PATH = "/v1/traces"
CLOSE_S = 5.0
"""How long the end waits for the collector."""
_SERVER_ERROR = 500


class Tracing:
    """Begins a trace for each request, and gives its spans to a processor."""

    def __init__(
        self, processor: SpanProcessor, *, sample_share: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` is the driver's."""
        name = os.environ.get(OTEL_SERVICE_NAME) or "hyperflexis"
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample_share)),
            resource=Resource.create({SERVICE_NAME: name, SERVICE_VERSION: __version__}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("hyperflexis", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self.clock = clock
        self.lives = Lives()

    def begin(self, method: str, route: str, headers: Mapping[str, str]) -> RequestTrace:
        """A span for an HTTP request, which goes on until the trace is ended."""
        span = self._tracer.start_span(
            f"{method} {route}",
            context=self._propagator.extract(headers, Context()),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": route},
        )
        return RequestTrace(self, span, time.time_ns() - round(self.clock() * 1e9))

    def close(self) -> None:
        """Send what was not sent yet; a collector that does not answer is not waited for."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        if closing.is_alive():
            log.error("the last traces are not sent: their collector does not answer")

    def span(self, name: str, begin_ns: int, parent: Span, told: Told) -> Span:
        """A span within another, from an instant on."""
        context = set_span_in_context(parent, Context())
        return self._tracer.start_span(name, context=context, start_time=begin_ns, attributes=told)


class RequestTrace:
    """Fulfils the gateway's `Trace`."""

    def __init__(self, tracing: Tracing, span: Span, epoch_ns: int) -> None:
        """`epoch_ns` is when the driver's clock was at 0."""
        self._tracing = tracing
        self._span = span
        self._epoch_ns = epoch_ns
        self._name = ""
        self._lives: list[Life] = []

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def follow(self, name: str) -> None:
        if self._span.is_recording():
            self._name = name
            self._lives = self._tracing.lives.follow(name)

    def end(self, code: int, told: Mapping[str, str | int | float | bool]) -> None:
        for life in self._lives:
            self._tell(life)
        self._tracing.lives.forget(self._name)
        self._span.set_attributes({"http.response.status_code": code, **told})
        if code >= _SERVER_ERROR:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()

    def _tell(self, life: Life) -> None:
        tracing, arrival = self._tracing, life.arrival
        told: Told = {
            "hyperflexis.request": arrival.request_id,
            "hyperflexis.class": arrival.service_class,
            "hyperflexis.priority": arrival.priority,
            "gen_ai.usage.input_tokens": arrival.prompt_tokens,
            **(_judged(life.verdict) if life.verdict is not None else {}),
        }
        span = tracing.span("request", self._unix_ns(life.arrived_s), self._span, told)
        for moment in life.moments:
            span.add_event(moment.name, _named(moment.told), self._unix_ns(moment.at_s))
        ended_s = tracing.clock() if life.ended_s is None else life.ended_s
        for phase in life.phases:
            inner = tracing.span(phase.name, self._unix_ns(phase.begin_s), span, _named(phase.told))
            inner.end(self._unix_ns(ended_s if phase.end_s is None else phase.end_s))
        if life.ending is not None:
            span.set_attribute("hyperflexis.ending", life.ending.why.value)
            if life.is_refused or life.ending.why is Why.FAILED:
                span.set_status(StatusCode.ERROR, str(life.ending))
        span.end(self._unix_ns(ended_s))

    def _unix_ns(self, instant_s: float) -> int:
        return self._epoch_ns + round(instant_s * 1e9)


def _named(told: Told) -> Told:
    return {f"hyperflexis.{name}": value for name, value in told.items()}


def _judged(verdict: Verdict) -> Told:
    times, slo = verdict.timeline, verdict.slo
    numbers = {
        "ttft_s": times.ttft_s,
        "tpot_s": times.tpot_s,
        "predicted_ttft_s": times.predicted_ttft_s,
        "predicted_tpot_s": times.predicted_tpot_s,
        "promised_ttft_s": slo.ttft_s,
        "promised_tpot_s": slo.tpot_s,
        "promised_e2e_s": slo.e2e_s,
    }
    return {
        **{f"hyperflexis.{name}": number for name, number in numbers.items() if number is not None},
        "hyperflexis.attained": verdict.attained,
        "hyperflexis.migrations": verdict.migrations,
        "hyperflexis.instance": verdict.instance,
        "gen_ai.usage.output_tokens": times.tokens,
    }


@contextmanager
def exporting(endpoint: str | None, sample_share: float) -> Iterator[Tracing]:
    """Traces that go to a collector, by OTLP over HTTP; without an endpoint to the one that OTEL_* variables name."""
    exporter = OTLPSpanExporter() if endpoint is None else OTLPSpanExporter(endpoint.rstrip("/") + PATH)
    tracing = Tracing(BatchSpanProcessor(exporter), sample_share=sample_share)
    try:
        yield tracing
    finally:
        tracing.close()
