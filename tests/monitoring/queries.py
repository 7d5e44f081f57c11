"""PromQL, read by a parser that is not ours: which metrics a query asks for, and by which of their labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import promql_parser

from telemetry.exposition import shown

SCRAPED = frozenset({"job", "instance"})
"""Labels that Prometheus adds."""


class Asked(NamedTuple):
    """One metric in a query."""

    name: str
    labels: frozenset[str]
    """By which it is selected or summed."""


def asked(query: str) -> list[Asked]:
    """All metrics in a query, which raises ValueError where it is none."""
    return list(_asked(promql_parser.parse(query), frozenset()))


def _asked(node: Any, by: frozenset[str]) -> Iterator[Asked]:
    if isinstance(node, promql_parser.VectorSelector):
        yield Asked(node.name, by | {matcher.name for matcher in node.matchers.matchers})
    if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
        by = frozenset(node.modifier.labels)
    for part in ("lhs", "rhs", "expr", "vector_selector"):
        if (inner := getattr(node, part, None)) is not None:
            yield from _asked(inner, by)
    for inner in getattr(node, "args", ()):
        yield from _asked(inner, by)


def wrong(query: str, recorded: frozenset[str] = frozenset()) -> list[str]:
    """One line for each metric, or label of one, that there is not. `recorded` are those that rules make of others."""
    found = []
    for name, labels in asked(query):
        known = frozenset({"job", "class"}) if name in recorded else known_labels(name)
        if known is None:
            found.append(f"there is no metric {name}")
        else:
            found += [f"{name} has no label {label}" for label in sorted(labels - known - SCRAPED)]
    return found


def known_labels(name: str) -> frozenset[str] | None:
    """Of a metric by the name that queries call it; None if there is none."""
    metric, _, part = name.rpartition("_")
    if part in ("bucket", "sum", "count") and (histogram := shown().get(metric)) and histogram.kind == "histogram":
        return histogram.labels | ({"le"} if part == "bucket" else frozenset())
    plain = shown().get(name)
    return None if plain is None or plain.kind == "histogram" else plain.labels
