"""Journals that are read by commands. Loads nothing that decides: `explain` is to answer at once."""

from __future__ import annotations

import sys
from pathlib import Path

from hyperflexis.cli.errors import OperatorError
from hyperflexis.journal.entries import JournalError
from hyperflexis.journal.reading import Journal, open_all


def opened(path: Path) -> list[Journal]:
    """All runs of a journal, the newest first.

    Raises:
        OperatorError: there is none, or this version cannot read it.
    """
    try:
        return open_all(path)
    except JournalError as error:
        raise OperatorError(str(error)) from None
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}") from None


def tell_damages(journal: Journal) -> None:
    """Say on stderr what could not be read, and what is gone."""
    for damage in journal.damages:
        sys.stderr.write(f"{damage}\n")
    if not journal.begins:
        sys.stderr.write(f"{journal.parts[0].path.parent}: the oldest parts of this run are gone\n")
