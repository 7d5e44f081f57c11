"""What stands on the pages of the documentation: blocks of code, and the commands in them. Runs nothing."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "examples", "benchmarks", "src/hyperflexis/demo_model")
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(page for folder in FOLDERS for page in sorted((ROOT / folder).rglob("*.md"))),
]
"""All that the site is made of."""


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    """Empty for one that is indented, which holds commands."""
    text: str


class Command(NamedTuple):
    """One line for a shell, up to what a pipe or a redirection makes of what it prints."""

    words: tuple[str, ...]
    piped: tuple[str, ...]


def blocks(page: Path, *languages: str) -> list[Block]:
    """In their order; all of them if no language is named."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    found = [
        Block(page, each.map[0] + 1, each.info if each.type == "fence" else "", each.content)
        for each in tokens
        if each.type in ("fence", "code_block") and each.map is not None
    ]
    return [each for each in found if each.language in (languages or (each.language,))]


def commands(block: Block) -> list[Command]:
    """Those of a block. After a first `$ `, only what follows one is typed; a unit has what it starts."""
    lines = block.text.splitlines()
    if block.language == "ini":
        lines = re.findall(r"^ExecStart=/(?:\S+/)?(\S.*)$", block.text, re.MULTILINE)
    if block.text.startswith("$ "):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [command for line in _whole(lines) if (command := _command(line)).words]


def _whole(lines: list[str]) -> Iterator[str]:
    """Lines with those that a backslash or an open quote continues."""
    begun = ""
    for line in lines:
        begun += line
        if begun.endswith("\\"):
            begun = begun[:-1]
        elif not _is_open(begun):
            yield begun
            begun = ""
    assert not begun, begun


def _is_open(line: str) -> bool:
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return True
    return False


def _command(line: str) -> Command:
    words = shlex.split(line, comments=True)
    end = next((index for index, word in enumerate(words) if word in ("|", ">")), len(words))
    return Command(tuple(words[:end]), tuple(words[end + 1 :]))
