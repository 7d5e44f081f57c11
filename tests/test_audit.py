"""The audit of dependencies fails for what is known to be weak, and for nothing else."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "audit_dependencies.py"
SPEC = importlib.util.spec_from_file_location("audit_dependencies", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
AUDIT = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(AUDIT)

SOUND = {"name": "a", "version": "1", "vulns": []}
WEAK = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3", "4"]}]}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("dependencies", "code", "said"),
    [
        ([SOUND, UNKNOWN], 0, "1 of 2 packages audited"),
        ([SOUND, WEAK], 1, "b 2: PYSEC-1, mended in 3 or 4"),
        ([UNKNOWN], 0, "not audited"),
    ],
)
def test_weak_versions_fail(dependencies: list[dict[str, object]], code: int, said: str) -> None:
    got, words = AUDIT.judged(json.dumps({"dependencies": dependencies, "fixes": []}))
    assert got == code
    assert said in words


@pytest.mark.parametrize("output", ["", "Traceback", "[]", "null"])
def test_outage_does_not(output: str) -> None:
    assert AUDIT.judged(output) == (0, "not audited: the database could not be reached")
