"""How much is not in a server's journal, for `/metrics`. Knows nothing of files, and not why."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class JournalLoss(Collector):
    """Asks whenever it is looked at."""

    def __init__(self, lost_events: Callable[[], int]) -> None:
        self._lost_events = lost_events

    def collect(self) -> Iterator[Metric]:
        """The one counter."""
        told = "Events that the journal does not have, because its disk was full or too slow; where one is written."
        yield CounterMetricFamily("hyperflexis_journal_lost_events", told, value=self._lost_events())
