"""Traces of what is served, where somebody is to have them: OpenTelemetry is loaded then, and not before."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hyperflexis.cli.deployment import Deployment
from hyperflexis.cli.errors import StartError

if TYPE_CHECKING:
    from hyperflexis.telemetry.tracing import Tracing

VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""OpenTelemetry's own, by which it finds its collector."""


@contextlib.contextmanager
def tracing(deployment: Deployment) -> Iterator[Tracing | None]:
    """What traces requests while the block runs; None where nobody is to have traces.

    Raises:
        StartError: somebody is, and OpenTelemetry is not installed.
    """
    given = deployment.tracing
    if given.endpoint is None and not any(os.environ.get(name) for name in VARIABLES):
        yield None
        return
    try:
        from hyperflexis.telemetry.tracing import exporting
    except ImportError as error:
        raise StartError(
            f"traces need OpenTelemetry, which is not installed ({error})", "pip install 'hyperflexis[otel]'"
        ) from error
    with exporting(given.endpoint, given.sample_share) as made:
        yield made
