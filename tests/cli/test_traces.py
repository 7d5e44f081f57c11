"""Traces are made where somebody is to have them, and cost nothing, not even an import, where nobody is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hyperflexis.cli import traces
from hyperflexis.cli.deployment import Deployment, TracingSection
from hyperflexis.cli.errors import StartError

NOWHERE = "http://127.0.0.1:1"
WANTED = Deployment(tracing=TracingSection(endpoint=NOWHERE))


@pytest.fixture(autouse=True)
def _nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in traces.VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_nobody_gets_none() -> None:
    code = (
        "import sys; from hyperflexis.cli import serve, traces; from hyperflexis.cli.deployment import Deployment\n"
        "with traces.tracing(Deployment()) as tracing:\n"
        "    print(tracing, [name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None []\n"


@pytest.mark.parametrize("variable", [None, *traces.VARIABLES])
def test_key_and_variables_name_a_collector(variable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.sdk")
    if variable is not None:
        monkeypatch.setenv(variable, NOWHERE)
    with traces.tracing(WANTED if variable is None else Deployment()) as tracing:
        assert tracing is not None
        assert not tracing.lives._wanted


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hyperflexis.telemetry.tracing", None)
    with pytest.raises(StartError, match="OpenTelemetry") as raised, traces.tracing(WANTED):
        pass
    assert raised.value.hint == "pip install 'hyperflexis[otel]'"


def test_an_endpoint_is_an_address() -> None:
    assert TracingSection(endpoint="http://here:4318/v1/traces").endpoint == "http://here:4318"
    with pytest.raises(ValueError, match="address of a collector"):
        TracingSection(endpoint="localhost:4318")
