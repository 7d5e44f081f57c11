"""Fetching a model: every way in which the hub can fail becomes a line that says what to do. No network is touched."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from hyperflexis.runtime.checkpoint import PATTERNS, CheckpointUnavailableError, fetch


def from_hub(kind: type[Exception], message: str) -> Exception:
    """An error as the hub's library raises it, without the HTTP answer that some of them want to be made from."""
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    return error


def test_fetch_asks_for_what_serving_reads_and_returns_its_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def snapshot_download(hub_id: str, **options: Any) -> str:
        asked.append((hub_id, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert fetch("owner/name") == tmp_path
    assert asked == [("owner/name", {"allow_patterns": PATTERNS})]
    assert {"*.safetensors", "*.json"} <= set(PATTERNS)
    assert not any("bin" in pattern or "*.pt" in pattern for pattern in PATTERNS), "weights that run code when read"


@pytest.mark.parametrize(
    ("error", "reason", "hint"),
    [
        (from_hub(errors.GatedRepoError, "403"), "owner/name is gated", "HF_TOKEN"),
        (from_hub(errors.RepositoryNotFoundError, "401"), "no model 'owner/name' on the hub", "give a directory"),
        (errors.HFValidationError("bad id"), "no model 'owner/name' on the hub", "give a directory"),
        (from_hub(errors.LocalEntryNotFoundError, "no"), "cannot be reached, and 'owner/name' is not", "./DIR"),
        (errors.OfflineModeIsEnabled("offline"), "cannot be reached, and 'owner/name' is not", "./DIR"),
        (ConnectionResetError("reset"), "cannot be reached, and 'owner/name' is not", "./DIR"),
        (from_hub(errors.HfHubHTTPError, "503 busy\nmore"), "the hub refuses 'owner/name': 503 busy", "try again"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device", "HF_HOME"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_error_of_the_hub_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str, hint: str
) -> None:
    def snapshot_download(hub_id: str, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(CheckpointUnavailableError) as caught:
        fetch("owner/name")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hint in caught.value.hint
    assert caught.value.__cause__ is error
