"""The page and the sample that teach the configuration say what the code does."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyperflexis.cli import sources
from hyperflexis.cli.keys import all_keys

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "configuration.md"
EXAMPLE = ROOT / "examples" / "serve.yaml"


def test_page_has_every_key_with_its_default_and_words() -> None:
    """Renew it with `python scripts/render_configuration.py`."""
    page = PAGE.read_text(encoding="utf-8")
    assert runpy.run_path(str(ROOT / "scripts" / "render_configuration.py"))["render"](page) == page
    assert all(f"`{key.dotted}`" in page and key.description in page for key in all_keys())


def test_session_on_the_page_is_real() -> None:
    """What the page shows of `config show` is what is printed."""
    command, *shown = re.findall(r"^    (\$ hyperflexis .*|.*  # .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    words = command.removeprefix("$ hyperflexis ").partition(" |")[0].split()
    done = subprocess.run(
        [sys.executable, "-m", "hyperflexis", *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shown
    assert set(shown) <= set(done.stdout.splitlines())


def test_example_loads() -> None:
    deployment = sources.load(config=EXAMPLE).deployment
    assert deployment.default_class in deployment.service_classes()


@pytest.mark.parametrize("name", ["serve.yaml", "vllm_pd.yaml"])
def test_example_is_shown(name: str, run: Callable[..., Any]) -> None:
    shown = run("config", "show", "-c", str(ROOT / "examples" / name))
    assert (shown.code, shown.err) == (0, "")
    assert f"{name}:" in shown.out


def test_vllm_example_starts_what_its_comments_say() -> None:
    deployment = sources.load(config=ROOT / "examples" / "vllm_pd.yaml").deployment
    assert (deployment.prefills, deployment.decodes, deployment.mixed) == (2, 4, 0)
    assert deployment.instances_total * deployment.vllm.gpus_per_instance <= 8
    assert deployment.core_policy().binder is not None


def test_example_keeps_the_defaults() -> None:
    """What it sets beyond the classes would hold without it, so that copying it changes nothing else."""
    changed = {"classes", "default_class", "instances"}
    example, plain = sources.load(config=EXAMPLE).deployment, sources.load().deployment
    assert example.instances_total == plain.instances_total
    assert example.model_dump(exclude=changed) == plain.model_dump(exclude=changed)
