"""The command line as a function: words and environment in; exit code, stdout and stderr out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import pytest

from hyperflexis.cli.deployment import Deployment
from hyperflexis.cli.main import main


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variables of whoever runs the tests, and as wide as help needs."""
    for name in [name for name in os.environ if name.startswith("HYPERFLEXIS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def _run(*argv: str) -> Outcome:
        code = main(argv)
        return Outcome(code, *capsys.readouterr())

    return _run


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Deployment]:
    """Deployments that `serve` was asked to serve; nothing is started."""
    asked: list[Deployment] = []
    module = ModuleType("hyperflexis.cli.serve")

    def _serve(deployment: Deployment) -> int:
        asked.append(deployment)
        return 0

    module.run = _serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hyperflexis.cli.serve", module)
    return asked
