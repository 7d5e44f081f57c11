"""The README and the docs do as they say: their code runs, their configuration loads, their links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

from e2e.conftest import Serving
from hyperflexis.cli import scenario, sources
from hyperflexis.cli.api_keys import read_ring
from hyperflexis.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "ARCHITECTURE.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
README_URL = "http://127.0.0.1:8000"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_python_of_the_readme_runs(served: tuple[Serving, str]) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    assert README_URL in code
    done = subprocess.run(
        [sys.executable, "-c", code.replace(README_URL, served[1])],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "'attained': " in done.stdout


@pytest.mark.slow
def test_curl_of_the_readme_is_answered(served: tuple[Serving, str]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"curl -\w (\S+) -H '(Content-Type: application/json)' \\\n\s+-d '(.*)'", text)
    assert len(found) == text.count("    curl ")
    for url, header, body in found:
        request = urllib.request.Request(url.replace(README_URL, served[1]), body.encode(), dict([header.split(": ")]))
        with urllib.request.urlopen(request, timeout=60) as answer:
            told = answer.read()
        is_streamed = json.loads(body).get("stream")
        assert told.endswith(b"data: [DONE]\n\n") if is_streamed else "hyperflexis" in json.loads(told)


def test_serve_commands_of_the_readme_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "serve.yaml").write_text(blocks(ROOT / "README.md", "yaml")[0])
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    hyperflexis serve ([^#\n]*)", text, re.MULTILINE)
    assert len(commands) > 1
    for command in commands:
        assert main(["config", "show", *command.split()]) == 0, command


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=lambda page: page.name)
def test_configuration_in_the_docs_loads(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page, "yaml")):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block)
        if "workload" in yaml.safe_load(block):
            scenario.load(file)
        else:
            sources.load(config=file, env={}, flags={}, sets=())


def test_keys_in_the_docs_load(tmp_path: Path) -> None:
    page, file = ROOT / "docs" / "security.md", tmp_path / "keys.yaml"
    (block,) = blocks(page, "keys")
    file.write_text(block)
    (tmp_path / "serve.yaml").write_text(blocks(page, "yaml")[0])
    deployment = sources.load(config=tmp_path / "serve.yaml", env={}, flags={}, sets=()).deployment
    assert [key.name for key in read_ring(file, deployment).keys] == ["web", "ops"]


def _run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What follows `hyperflexis` on a page, run in that folder: what it writes goes there, what it reads is here."""
    words = [str(ROOT / word) if word.startswith("examples/") else word for word in shlex.split(command)]
    return subprocess.run(
        [sys.executable, "-m", "hyperflexis", *words],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        check=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/simulate.md", "docs/dashboard.md"])
def test_simulations_of_the_docs_run(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    commands = re.findall(r"^    hyperflexis (simulate .*)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        done = _run(command, tmp_path)
        assert done.stdout.startswith("policy ")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/bench.md"])
def test_loads_of_the_docs_run(page: str, served: tuple[Serving, str], tmp_path: Path) -> None:
    """Their first request."""
    text = (ROOT / page).read_text(encoding="utf-8").replace(README_URL, served[1])
    commands = re.findall(r"^    hyperflexis (bench [^#\n]*)", text, re.MULTILINE)
    assert commands
    for command in commands:
        done = _run(f"{command} --limit 1 --name here", tmp_path)
        head, row = done.stdout.splitlines()
        assert head.split()[3:7] == ["requests", "rejected", "failed", "cut"]
        assert row.split()[4:7] == ["0", "0", "0"]


@pytest.mark.parametrize("page", ["README.md", "docs/plan.md"])
def test_plans_of_the_docs_are_made(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a few seconds of their load."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    commands = re.findall(r"^    hyperflexis (plan examples/[^#\n]*)", text, re.MULTILINE)
    assert commands
    few = [word for index in (0, 1) for word in ("--set", f"workload.{index}.window_s=[0, 5]")]
    for command in commands:
        words = [str(ROOT / word) if word.startswith("examples/") else word for word in shlex.split(command)]
        assert main([*words, *few]) == 0


@pytest.mark.slow
def test_commands_of_the_journal_page_run_one_after_the_other(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "journal.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    hyperflexis ((?:simulate|explain|replay) .*)$", text, re.MULTILINE)
    kinds = [command.split()[0] for command in commands]
    assert kinds == ["simulate", "explain", "explain", "replay", "replay", "replay", "replay"]
    for command in commands:
        done = _run(command, tmp_path)
        assert done.stdout
        assert done.stderr == ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:`|^    )make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert named <= targets, page


def test_verdict_in_the_docs_has_the_fields_of_a_verdict() -> None:
    from hyperflexis.core.slo import Slo, Timeline, Verdict
    from hyperflexis.gateway.backend import End
    from hyperflexis.gateway.promises import Granted
    from hyperflexis.gateway.verdict import report

    (shown,) = blocks(ROOT / "docs" / "api.md", "json")
    times = Timeline(0.0, 0.0, 0.1, 0.2, 0.3, 2, 0.1, 0.1)
    real = report([End("stop", Verdict("chat", 0, Slo(), times, "i0"))], Granted("chat", 0))
    assert isinstance(real, dict)
    assert keys(json.loads(shown)) == keys(real)


def keys(told: object) -> object:
    return {name: keys(value) for name, value in told.items()} if isinstance(told, dict) else None
