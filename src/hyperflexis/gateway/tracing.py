"""What the gateway needs of whoever traces requests, and W3C's header that joins their traces. Knows no exporter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

HEADER = "traceparent"
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


class Trace(Protocol):
    """Of one HTTP request, from its begin."""

    @property
    def traceparent(self) -> str:
        """What engines are to be told, so that what they trace joins it."""

    def follow(self, name: str) -> None:
        """Its work has this name from now on."""

    def end(self, code: int, told: Mapping[str, str | int | float | bool]) -> None:
        """It was answered, with this status."""


class Tracer(Protocol):
    """Begins traces."""

    def begin(self, method: str, route: str, headers: Mapping[str, str]) -> Trace: ...


def passed_on(headers: Mapping[str, str]) -> str:
    """What a client says of its trace, for whoever traces behind us; empty where it says nothing that can be read."""
    given = headers.get(HEADER)
    return given if given is not None and _TRACEPARENT.fullmatch(given) else ""
