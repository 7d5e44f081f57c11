"""What `traces` and `profiles` list."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyperflexis.sim import profiles
from hyperflexis.sim.catalog import TRACES

Run = Callable[..., Any]
"""Words in; (code, out, err) out. A fixture of this folder."""

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n"


def test_profiles_are_a_line_each(run: Run) -> None:
    code, out, err = run("profiles")
    assert (code, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.split()[0] == "name"
    assert [line.split()[0] for line in lines] == list(profiles.names())
    (line,) = [line for line in lines if line.startswith("llama-3-70b/h100/tp4/bfloat16 ")]
    assert line.split()[1:4] == ["123.7", "16.5", "423874"]


def test_traces_say_how_to_get_each(run: Run) -> None:
    code, out, err = run("traces")
    assert (code, err) == (0, "")
    for entry in TRACES:
        assert f"\n{entry.name}\n" in f"\n{out}"
        assert entry.how in out
        assert f"{entry.origin} ({entry.licence})" in out
    assert out.count("  here      no") == len(TRACES) - 1
    assert "sample_code.jsonl.gz" in out


def test_traces_that_are_here_are_told(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, other = tmp_path / "AzureLLMInferenceTrace_code.csv", tmp_path / "mine.csv"
    for path in (named, other, tmp_path / "sub" / "deep.csv"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(AZURE, encoding="utf-8")
    (tmp_path / "notes.txt").write_text("nothing of use\n", encoding="utf-8")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "bytes.bin").write_bytes(b"\xff\x00\xfe")
    out = run("traces", "--traces", str(tmp_path)).out
    assert f"  here      {named}\n" in out
    assert out.endswith(f"other traces here, and their formats\n  {other}  azure\n")
    monkeypatch.setenv("HYPERFLEXIS_TRACES", f"{tmp_path / 'absent'}{os.pathsep}{tmp_path}")
    assert run("traces").out == out
