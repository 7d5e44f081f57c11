"""What `/metrics` shows: promises kept and broken, times, tokens, and the instances as they are now.

Everything about a request is accounted once, at its end. Labels are service classes and status codes, never what a
client wrote. What was decided meanwhile is counted elsewhere, and shown here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from hyperflexis.core.slo import Verdict
from hyperflexis.gateway.backend import Fleet
from hyperflexis.telemetry.labels import Capped

NO_CLASS = "none"
"""For requests that failed before their class was known."""

_SLOS = ("ttft", "tpot", "e2e")
_TTFT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0, 80.0)
_TPOT_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
_E2E_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """The gateway's own registry; several gateways in one process do not meet in it."""

    def __init__(self, backend: Fleet, in_flight: Callable[[], int], others: Iterable[Collector] = ()) -> None:
        self.registry = CollectorRegistry()
        self._label = Capped()
        registry, by_class = self.registry, ("class",)
        self._requests = Counter(
            "hyperflexis_requests", "Generation requests answered.", ("class", "code"), registry=registry
        )
        self._ttft = Histogram(
            "hyperflexis_ttft_seconds", "Time to first token.", by_class, buckets=_TTFT_S, registry=registry
        )
        self._tpot = Histogram(
            "hyperflexis_tpot_seconds", "Time per output token.", by_class, buckets=_TPOT_S, registry=registry
        )
        self._e2e = Histogram(
            "hyperflexis_e2e_seconds", "Arrival to last token.", by_class, buckets=_E2E_S, registry=registry
        )
        self._predicted_ttft = Histogram(
            "hyperflexis_predicted_ttft_seconds",
            "Time to first token as predicted at dispatch.",
            by_class,
            buckets=_TTFT_S,
            registry=registry,
        )
        self._predicted_tpot = Histogram(
            "hyperflexis_predicted_tpot_seconds",
            "Time per output token as predicted at dispatch.",
            by_class,
            buckets=_TPOT_S,
            registry=registry,
        )
        self._queued = Histogram(
            "hyperflexis_queue_seconds",
            "Arrival to the beginning of the prefill.",
            by_class,
            buckets=_TTFT_S,
            registry=registry,
        )
        by_slo = ("class", "slo")
        self._attained = Counter("hyperflexis_slo_attained", "Targets met.", by_slo, registry=registry)
        self._missed = Counter("hyperflexis_slo_missed", "Targets missed.", by_slo, registry=registry)
        self._prompt = Counter("hyperflexis_prompt_tokens", "Prompt tokens served.", by_class, registry=registry)
        self._completion = Counter(
            "hyperflexis_completion_tokens", "Completion tokens served.", by_class, registry=registry
        )
        self._by_class: dict[str, _OfClass] = {}
        live = Gauge("hyperflexis_requests_in_flight", "Generation requests being answered.", registry=registry)
        live.set_function(in_flight)
        registry.register(_Instances(backend))
        for other in others:
            registry.register(other)

    def expose(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)

    def account_refused(self, service_class: str, code: int) -> None:
        """Count a request that brought no answer."""
        self._requests.labels(self._label(service_class), str(code)).inc()

    def account_served(
        self, service_class: str, prompt_tokens: int, completion_tokens: int, verdicts: Sequence[Verdict]
    ) -> None:
        """Count a request that was answered in full."""
        of_class = self._by_class.get(service_class)
        if of_class is None:
            of_class = self._by_class[service_class] = self._children(self._label(service_class))
        of_class.served.inc()
        of_class.prompt_tokens.inc(prompt_tokens)
        of_class.completion_tokens.inc(completion_tokens)
        for verdict in verdicts:
            of_class.judge(verdict)

    def _children(self, service_class: str) -> _OfClass:
        return _OfClass(
            served=self._requests.labels(service_class, "200"),
            prompt_tokens=self._prompt.labels(service_class),
            completion_tokens=self._completion.labels(service_class),
            ttft=self._ttft.labels(service_class),
            tpot=self._tpot.labels(service_class),
            e2e=self._e2e.labels(service_class),
            queued=self._queued.labels(service_class),
            predicted_ttft=self._predicted_ttft.labels(service_class),
            predicted_tpot=self._predicted_tpot.labels(service_class),
            attained={slo: self._attained.labels(service_class, slo) for slo in _SLOS},
            missed={slo: self._missed.labels(service_class, slo) for slo in _SLOS},
        )


@dataclass(frozen=True, slots=True)
class _OfClass:
    """One class's share of each metric; looking labels up costs more than counting."""

    served: Counter
    prompt_tokens: Counter
    completion_tokens: Counter
    ttft: Histogram
    tpot: Histogram
    e2e: Histogram
    queued: Histogram
    predicted_ttft: Histogram
    predicted_tpot: Histogram
    attained: dict[str, Counter]
    missed: dict[str, Counter]

    def judge(self, verdict: Verdict) -> None:
        times = verdict.timeline
        self.ttft.observe(times.ttft_s)
        self.e2e.observe(times.e2e_s)
        if times.tpot_s is not None:
            self.tpot.observe(times.tpot_s)
        self.queued.observe(times.prefill_started_s - times.arrived_s)
        if times.predicted_ttft_s is not None:
            self.predicted_ttft.observe(times.predicted_ttft_s)
        if times.predicted_tpot_s is not None:
            self.predicted_tpot.observe(times.predicted_tpot_s)
        for slo, met in zip(_SLOS, (verdict.ttft_met, verdict.tpot_met, verdict.e2e_met), strict=True):
            if met is not None:
                (self.attained if met else self.missed)[slo].inc()


class _Instances(Collector):
    """Reads the fleet when asked, so that instances that left leave the metrics too."""

    def __init__(self, backend: Fleet) -> None:
        self._backend = backend

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Without this the registry would call `collect` at registration."""
        return self._families()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        state, running, waiting, blocks, blocks_free = families = self._families()
        for instance in self._backend.instances():
            labels = (instance.name, instance.role)
            state.add_metric((*labels, instance.state), 1)
            running.add_metric(labels, instance.running_seqs)
            waiting.add_metric(labels, instance.waiting_seqs)
            blocks.add_metric(labels, instance.blocks)
            blocks_free.add_metric(labels, instance.blocks_free)
        return families

    def _families(self) -> list[GaugeMetricFamily]:
        labels = ("instance", "role")
        return [
            GaugeMetricFamily("hyperflexis_instance_state", "1 for its state.", labels=(*labels, "state")),
            GaugeMetricFamily("hyperflexis_instance_running_seqs", "Sequences in its steps.", labels=labels),
            GaugeMetricFamily("hyperflexis_instance_waiting_seqs", "Sequences in its queue.", labels=labels),
            GaugeMetricFamily("hyperflexis_instance_blocks", "KV blocks it has.", labels=labels),
            GaugeMetricFamily("hyperflexis_instance_blocks_free", "KV blocks not in use.", labels=labels),
        ]
