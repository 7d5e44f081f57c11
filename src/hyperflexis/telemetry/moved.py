"""Metrics of what goes from one instance to another: moves of requests, what became of each, and the KV copied."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import NamedTuple

from prometheus_client import Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from hyperflexis.core.commands import Migrate, Why
from hyperflexis.core.events import Arrival, InstanceLost, TransferFailed
from hyperflexis.telemetry.tally import Tally

_TRANSFER_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class _Move(NamedTuple):
    target_id: int
    why: Why


class Moved:
    """All moves: each ends with its target's word, or with its target."""

    def __init__(self) -> None:
        self._under_way: dict[int, _Move] = {}
        self.migrations = Tally(
            "hyperflexis_migrations",
            "Moves of requests that have ended: done, failed, target_lost, or needless as the request had ended.",
            ("reason", "outcome"),
        )
        self._tokens = Tally("hyperflexis_kv_transfer_tokens", "Tokens whose KV was copied between instances.", ())
        self._tokens.add(by=0)
        self._seconds = Histogram(
            "hyperflexis_kv_transfer_seconds",
            "Time that copying a request's KV took, waiting not counted.",
            buckets=_TRANSFER_S,
            registry=None,
        )

    def begun(self, command: Migrate) -> None:
        self._under_way[command.request_id] = _Move(command.target_id, command.reason.why)

    def arrived(self, target_id: int, arrival: Arrival, live: Container[int]) -> None:
        self._end(arrival.request_id, target_id, "done" if arrival.request_id in live else "needless")
        if arrival.copied_tokens:
            self._tokens.add(by=arrival.copied_tokens)
            self._seconds.observe(arrival.copied_s)

    def failed(self, event: TransferFailed, live: Container[int]) -> None:
        self._end(event.request_id, event.target_id, "failed" if event.request_id in live else "needless")

    def lost(self, event: InstanceLost) -> None:
        ended = [number for number, move in self._under_way.items() if move.target_id == event.instance_id]
        for number in ended:
            self._end(number, event.instance_id, "target_lost")

    def _end(self, request_id: int, target_id: int, outcome: str) -> None:
        move = self._under_way.get(request_id)
        if move is not None and move.target_id == target_id:
            del self._under_way[request_id]
            self.migrations.add(move.why, outcome)

    def families(self) -> Iterator[Metric]:
        yield self.migrations.family()
        under_way = GaugeMetricFamily("hyperflexis_migrations_under_way", "Moves that have not ended yet.")
        under_way.add_metric((), len(self._under_way))
        yield under_way
        yield self._tokens.family()
        yield from self._seconds.collect()
