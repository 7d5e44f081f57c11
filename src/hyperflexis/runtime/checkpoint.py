"""Where a model's files are: a directory, or what the Hugging Face hub sends when asked for an id.

Fetches only what serving reads. Knows nothing of what is in the files.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

TEXT_PATTERNS = ["*.json", "*.jinja", "tokenizer.model", "LICENSE*"]
"""All that is needed where others have the weights."""
PATTERNS = ["*.safetensors", *TEXT_PATTERNS]


class CheckpointUnavailableError(Exception):
    """A hub id cannot be turned into files; the message and the hint are for an operator."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


def demo_directory() -> Path:
    """The demo model that comes with the package."""
    return Path(str(resources.files("hyperflexis"))) / "demo_model"


def fetch(hub_id: str, *, has_weights: bool = True) -> Path:
    """Download a model, with or without its weights, or find it in the cache; returns its directory.

    Raises:
        CheckpointUnavailableError: there is no such model, no right to it, or no way to the hub.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(hub_id, allow_patterns=PATTERNS if has_weights else TEXT_PATTERNS))
    except GatedRepoError as error:
        raise CheckpointUnavailableError(
            f"{hub_id} is gated", "accept its terms on the hub, then set HF_TOKEN to a token of that account"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise CheckpointUnavailableError(
            f"there is no model {hub_id!r} on the hub, or it is private",
            "give a directory or an id such as 'owner/name'; for a private model set HF_TOKEN",
        ) from error
    except (LocalEntryNotFoundError, ConnectionError) as error:
        raise CheckpointUnavailableError(
            f"the hub cannot be reached, and {hub_id!r} is not in the local cache",
            "download the model's directory on a machine that is online and give its path: hyperflexis serve ./DIR",
        ) from error
    except HfHubHTTPError as error:
        raise CheckpointUnavailableError(
            f"the hub refuses {hub_id!r}: {_first_line(error)}", "try again later; if HF_TOKEN is set, check it"
        ) from error
    except OSError as error:
        raise CheckpointUnavailableError(
            f"{hub_id!r} cannot be stored: {_first_line(error)}", "make room, or set HF_HOME to where there is some"
        ) from error
    except Exception as error:
        # The hub's HTTP library has errors of its own for a transfer that breaks; to an operator they are all one.
        raise CheckpointUnavailableError(
            f"the download of {hub_id!r} broke: {_first_line(error)}", "try again; what has come is kept"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
