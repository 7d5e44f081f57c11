"""Small trace files for tests, and where published ones are looked for."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).parents[3].parent / "shared" / "traces"


def shared(name: str) -> Path:
    """A published trace beside the repository; skips the test where there is none."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not beside the repository")
    return path


def write(path: Path, text: str) -> Path:
    """Write a text, compressed as the name says."""
    data = text.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = pytest.importorskip("zstandard").compress(data)
    path.write_bytes(data)
    return path


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write JSON objects, one per line."""
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))
