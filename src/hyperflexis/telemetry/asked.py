"""Metrics of what is asked for: where requests wait, what is decided about them, and whether promises are kept.

A request is judged once, at its end. It counts as kept if no promise was broken; as broken, refused or failed
otherwise. Not judged is what no instance could ever hold, which is its client's mistake, and what a client gives up
before its first token is due.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from hyperflexis.core.commands import Conclude, Dispatch, Hold, Reject, Why
from hyperflexis.core.events import RequestArrived
from hyperflexis.core.slo import ServiceClass
from hyperflexis.telemetry.attainment import WINDOWS_S, Attainment
from hyperflexis.telemetry.labels import OTHER, Capped
from hyperflexis.telemetry.tally import Tally

OUTCOMES = ("kept", "broken", "refused", "failed")
_HOLD_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_SLOS = ("ttft", "tpot", "e2e")


@dataclass(slots=True)
class _Live:
    """One request that has not ended."""

    service_class: str
    first_due_s: float | None
    """When its first token (or, failing that, its last) was promised."""
    held_since_s: float | None = None


class Asked:
    """All requests, of all classes."""

    def __init__(self, classes: Mapping[str, ServiceClass], attainment_min: Mapping[str, float]) -> None:
        self._classes = classes
        self._attainment_min = attainment_min
        self._label = Capped(known=classes)
        self.live: dict[int, _Live] = {}
        """Those that have not ended."""
        self._attainment: dict[str, Attainment] = {}
        by_reason = ("class", "reason")
        self.dispatches = Tally("hyperflexis_dispatches", "Requests sent to an instance.", by_reason)
        self.holds = Tally("hyperflexis_holds", "Requests kept back, as no instance could take them.", by_reason)
        self.rejections = Tally("hyperflexis_rejections", "Requests refused.", by_reason)
        self.judged = Tally(
            "hyperflexis_judged_requests",
            "Requests that have ended, by what became of their promises: kept, broken, refused or failed.",
            ("class", "outcome"),
        )
        self._hold_s = Histogram(
            "hyperflexis_hold_seconds",
            "Time for which requests were kept back, of those that were.",
            ("class",),
            buckets=_HOLD_S,
            registry=None,
        )
        for name in classes:
            self._begin(self._label(name))

    def _begin(self, label: str) -> None:
        """Show that a class is there: a counter that appears with its first event would hide that event."""
        self._attainment[label] = Attainment()
        for outcome in OUTCOMES:
            self.judged.add(label, outcome, by=0)

    # -- what happens

    def arrived(self, event: RequestArrived, now: float) -> None:
        dues_s = [now + each for each in (event.slo.ttft_s, event.slo.e2e_s) if each is not None]
        self.live[event.request_id] = _Live(self._label(event.service_class), min(dues_s, default=None))

    def held(self, command: Hold, now: float) -> None:
        request = self._of(command.request_id)
        self.holds.add(request.service_class, command.reason.why)
        if request.held_since_s is None:
            request.held_since_s = now

    def dispatched(self, command: Dispatch, now: float) -> None:
        request = self._of(command.request_id)
        self.dispatches.add(request.service_class, command.reason.why)
        self._release(request, now)

    def rejected(self, command: Reject, now: float) -> None:
        request = self._end(command.request_id, now)
        self.rejections.add(request.service_class, command.reason.why)
        if command.reason.why is not Why.TOO_LARGE:
            self._judge(request, "refused", now)

    def concluded(self, command: Conclude, now: float) -> None:
        request = self._end(command.request_id, now)
        verdict = command.verdict
        if command.reason.why is Why.FAILED:
            self._judge(request, "failed", now)
        elif verdict is not None:
            self._judge(request, "kept" if verdict.attained else "broken", now)
        elif request.first_due_s is not None and now > request.first_due_s:
            self._judge(request, "broken", now)

    def _of(self, request_id: int) -> _Live:
        """Of a request whose arrival was not seen, as in a journal without its beginning, no class is known."""
        return self.live.get(request_id) or self.live.setdefault(request_id, _Live(OTHER, None))

    def _end(self, request_id: int, now: float) -> _Live:
        request = self._of(request_id)
        del self.live[request_id]
        self._release(request, now)
        return request

    def _release(self, request: _Live, now: float) -> None:
        if request.held_since_s is not None:
            self._hold_s.labels(request.service_class).observe(now - request.held_since_s)
            request.held_since_s = None

    def _judge(self, request: _Live, outcome: str, now: float) -> None:
        label = request.service_class
        if label not in self._attainment:
            self._begin(label)
        self.judged.add(label, outcome)
        self._attainment[label].judge(outcome == "kept", now)

    # -- what is told

    def families(self, now: float) -> Iterator[Metric]:
        for tally in (self.dispatches, self.holds, self.rejections, self.judged):
            yield tally.family()
        yield from self._hold_s.collect()
        yield self._waiting()
        yield from self._shares(now)
        yield from self._promised()

    def _waiting(self) -> Metric:
        waiting = GaugeMetricFamily("hyperflexis_queue_requests", "Requests that are kept back now.", labels=("class",))
        counts = Counter(each.service_class for each in self.live.values() if each.held_since_s is not None)
        for label in self._attainment.keys() | counts.keys():
            waiting.add_metric([label], counts[label])
        return waiting

    def _shares(self, now: float) -> Iterator[Metric]:
        labels = ("class", "window")
        attained = GaugeMetricFamily(
            "hyperflexis_attainment", "Share of the judged requests that were kept, over windows.", labels=labels
        )
        burn = GaugeMetricFamily(
            "hyperflexis_error_budget_burn",
            "How fast the error budget is used: 1 uses it up exactly, 10 ten times too fast.",
            labels=labels,
        )
        for label, attainment in self._attainment.items():
            spare = 1.0 - self._attainment_min[label] if label in self._attainment_min else None
            for window, window_s in WINDOWS_S.items():
                share = attainment.share(window_s, now)
                if share is not None:
                    attained.add_metric([label, window], share)
                    if spare is not None:
                        burn.add_metric([label, window], (1.0 - share) / spare)
        yield from (attained, burn)

    def _promised(self) -> Iterator[Metric]:
        targets = GaugeMetricFamily(
            "hyperflexis_slo_target_seconds", "What a class promises, where it does.", labels=("class", "slo")
        )
        least = GaugeMetricFamily(
            "hyperflexis_attainment_min", "Share of a class's requests that are to be kept.", labels=("class",)
        )
        for name, each in self._classes.items():
            if self._label(name) == OTHER:
                continue
            for slo, target_s in zip(_SLOS, (each.slo.ttft_s, each.slo.tpot_s, each.slo.e2e_s), strict=True):
                if target_s is not None:
                    targets.add_metric([name, slo], target_s)
            if name in self._attainment_min:
                least.add_metric([name], self._attainment_min[name])
        yield from (targets, least)
