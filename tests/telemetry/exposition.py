"""Everything that `/metrics` can show, of a gateway and of worlds in which all of it happens."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import NamedTuple, cast

from prometheus_client.parser import text_string_to_metric_families

from hyperflexis.core.slo import Slo, Timeline, Verdict
from hyperflexis.gateway.backend import Fleet
from hyperflexis.gateway.metrics import Metrics
from hyperflexis.telemetry.journal_loss import JournalLoss
from telemetry.worlds import WORLDS, counted, play

INSTANCE = SimpleNamespace(
    name="i0", state="ready", role="mixed", running_seqs=1, waiting_seqs=0, blocks=10, blocks_free=5
)


class Shown(NamedTuple):
    """One metric."""

    kind: str
    labels: frozenset[str]
    meaning: str


@functools.cache
def shown() -> dict[str, Shown]:
    """All metrics by the name that queries call them by; a histogram by that without _bucket, _sum and _count."""
    found: dict[str, Shown] = {}
    for world in WORLDS.values():
        decisions = counted()
        play(world, decisions)
        others = [decisions, JournalLoss(lambda: 1)]
        metrics = Metrics(cast("Fleet", SimpleNamespace(instances=lambda: [INSTANCE])), lambda: 0, others)
        times = Timeline(0.0, 0.0, 0.1, 0.2, 0.3, 2, 0.1, 0.1)
        metrics.account_served("chat", 1, 2, [Verdict("chat", 0, Slo(1.0, 1.0, 1.0), times, "i0")])
        for family in text_string_to_metric_families(metrics.expose().decode()):
            if family.name.endswith("_created"):
                continue
            labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
            name = f"{family.name}_total" if family.type == "counter" else family.name
            known = found.get(name)
            found[name] = Shown(family.type, labels | (known.labels if known else frozenset()), family.documentation)
    return found
