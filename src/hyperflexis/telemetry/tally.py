"""Counts by label, cheap to add to: a dictionary, made into Prometheus' shape when somebody asks. For one thread."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from enum import Enum

from prometheus_client.core import CounterMetricFamily

Label = str | Enum


class Tally:
    """One counter."""

    def __init__(self, name: str, meaning: str, labels: Sequence[str]) -> None:
        self._name, self._meaning, self._labels = name, meaning, labels
        self._counts: defaultdict[tuple[Label, ...], float] = defaultdict(float)

    def add(self, *labels: Label, by: float = 1.0) -> None:
        """Count what has these labels. With `by=0`, show that there has been none."""
        self._counts[labels] += by

    def count(self, *labels: Label) -> float:
        return self._counts.get(labels, 0.0)

    def family(self) -> CounterMetricFamily:
        family = CounterMetricFamily(self._name, self._meaning, labels=self._labels)
        for labels, count in self._counts.items():
            family.add_metric([spelled(label) for label in labels], count)
        return family


def spelled(label: Label) -> str:
    """A label's value; of an enum the member's name, which stays where its words are put better."""
    return label if isinstance(label, str) else label.name.lower()
