"""`hyperflexis explain`: the story of one request or instance from a journal, for a person or as JSON."""

from __future__ import annotations

import datetime
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperflexis.cli import journals
from hyperflexis.cli.errors import OperatorError
from hyperflexis.journal.entries import told
from hyperflexis.journal.header import Header
from hyperflexis.journal.reading import Journal
from hyperflexis.journal.story import Story, tell
from hyperflexis.view.snapshot import Chapter
from hyperflexis.view.stories import InstanceStories

_DAY_CHARS, _CLOCK_CHARS = len("2026-11-29"), len("2026-11-29 12:03:04.120")
_INSTANCE = re.compile(r"i(\d{1,9})")
"""As instances are named everywhere; no answer's id looks like that."""


def run(path: Path, who: str, *, as_json: bool) -> int:
    """Print what became of a request or an instance; returns the exit code.

    Raises:
        OperatorError: there is no such journal, or nothing in it of such a one.
    """
    runs = journals.opened(path)
    if instance := _INSTANCE.fullmatch(who):
        return _explain_instance(runs, int(instance[1]), path, as_json=as_json)
    return _explain_request(runs, who, path, as_json=as_json)


def _explain_instance(runs: list[Journal], number: int, path: Path, *, as_json: bool) -> int:
    for journal in runs:
        stories = InstanceStories(chapters_max=None)
        for entry in journal.entries():
            stories.hear(entry.now, entry.event, entry.commands)
        if (chapters := stories.chapters(number, origin_s=0.0)) is not None:
            break
    else:
        raise OperatorError(
            f"{path}: nothing is there of an instance i{number}", "instances are named i0, i1 and so on"
        )
    clock = clock_of(journal.header)
    if as_json:
        rows = [{"at_s": each.at_s, "clock": clock(each.at_s), "text": each.text} for each in chapters]
        sys.stdout.write(json.dumps({"instance": number, "chapters": rows}, indent=2) + "\n")
    else:
        sys.stdout.write(_instance_text(number, chapters, clock))
    journals.tell_damages(journal)
    return 0


def _instance_text(number: int, chapters: list[Chapter], clock: Callable[[float], str]) -> str:
    return "".join([f"instance i{number}\n", *(f"  {clock(each.at_s)}  {each.text}\n" for each in chapters)])


def _explain_request(runs: list[Journal], request: str, path: Path, *, as_json: bool) -> int:
    journal, numbers = _found(runs, request, path)
    stories = [tell(number, journal.of_request(number)) for number in numbers]
    if as_json:
        sys.stdout.write(json.dumps([_json(story, journal.header) for story in stories], indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(_text(story, journal.header) for story in stories))
    journals.tell_damages(journal)
    return 0


def _found(runs: list[Journal], request: str, path: Path) -> tuple[Journal, list[int]]:
    """The run that has it, the newest first, and the core's numbers of it: one for each choice of an answer."""
    for journal in runs:
        if request.isdecimal():
            if any(frame.is_about(int(request)) for frame in journal.frames()):
                return journal, [int(request)]
        elif found := journal.named(request):
            return journal, found
    hint = "a request is named as its answer's id says, and as x-request-id; or by its number"
    raise OperatorError(f"{path}: nothing is there of a request {request!r}", hint)


def _text(story: Story, header: Header) -> str:
    clock, is_real = clock_of(header), header.wall_s is not None
    begin = story.arrived_s
    named = f" ({story.name})" if story.name else ""
    day = f", {clock(story.chapters[0].at_s)[:_DAY_CHARS]}" if is_real and story.chapters else ""
    rows = [
        (
            clock(each.at_s)[_DAY_CHARS + 1 : _CLOCK_CHARS] if is_real else clock(each.at_s),
            "" if begin is None else f"+{(each.at_s - begin) * 1e3:.1f} ms",
            each.text,
        )
        for each in story.chapters
    ]
    width = max((len(since) for _, since, _ in rows), default=0)
    lines = [f"request {story.request_id}{named}{day}: {story.ending}"]
    if begin is None:
        lines.append("its arrival is not in what is left of the journal")
    return "".join(f"{line}\n" for line in (*lines, *(f"  {at}  {since:>{width}}  {text}" for at, since, text in rows)))


def _json(story: Story, header: Header) -> dict[str, Any]:
    return {
        "request": story.request_id,
        "name": story.name or None,
        "ending": story.ending,
        "verdict": told(story.verdict),
        "chapters": [
            {"at_s": each.at_s, "clock": clock_of(header)(each.at_s), "text": each.text, "behind": each.behind}
            for each in story.chapters
        ],
    }


def clock_of(header: Header) -> Callable[[float], str]:
    """How to tell an instant: the time of day where it was a real one, else seconds of the simulation."""
    wall_s = header.wall_s
    if wall_s is None:
        return lambda now: f"{now:.3f} s"

    def of_day(now: float) -> str:
        at = datetime.datetime.fromtimestamp(wall_s + now - header.origin_s).astimezone()
        return at.isoformat(sep=" ", timespec="milliseconds")

    return of_day
