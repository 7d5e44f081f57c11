"""Stories without a journal: they are those of the journal, and what is kept for them has a bound."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperflexis.core.events import RequestArrived, Wakeup
from hyperflexis.core.slo import Slo
from hyperflexis.journal.story import tell
from hyperflexis.view import stories
from hyperflexis.view.stories import InstanceStories, RequestStories
from journal.recorded import D, P, World, only_run, play
from view.streams import ORIGIN_S, finished, launched, sent


def test_stories_are_those_that_a_journal_tells(tmp_path: Path) -> None:
    play(World((P, P, D, D), moving="fixed", losses_s=(0.3,), requests=60), tmp_path)
    journal = only_run(tmp_path)
    kept = RequestStories()
    for entry in journal.entries():
        kept.hear(*entry)
    for number in range(60):
        told, known = kept.tell(number), tell(number, journal.of_request(number))
        assert (told.ending, told.verdict) == (known.ending, known.verdict)
        assert [(each.at_s, each.text) for each in told.chapters] == [(e.at_s, e.text) for e in known.chapters]


def test_request_is_found_by_number_and_by_name() -> None:
    kept = RequestStories()
    for entry in (sent(ORIGIN_S, 4, name="cmpl-a"), sent(ORIGIN_S, 5, name="cmpl-a"), sent(ORIGIN_S, 6)):
        kept.hear(*entry)
    assert kept.numbers("cmpl-a") == [4, 5]
    assert kept.numbers("6") == [6]
    assert kept.numbers("7") == kept.numbers("cmpl") == kept.numbers("9" * 400) == kept.numbers("²") == []
    assert kept.tell(4).name == "cmpl-a"


def test_ended_requests_are_forgotten_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stories, "ENDED_MAX", 10)
    kept = RequestStories()
    for number in range(100):
        kept.hear(*sent(ORIGIN_S, number, name=f"n{number % 30}"))
        if number != 50:
            kept.hear(*finished(ORIGIN_S + 1, number, ORIGIN_S, 0.1, 3))
    assert set(kept._entries) == {50, *range(90, 100)}  # What lives is kept, however old it is.
    assert set(kept._names) == set(kept._entries)
    assert sorted(number for numbers in kept._numbers.values() for number in numbers) == sorted(kept._entries)


def test_hashes_of_blocks_are_not_kept() -> None:
    kept = RequestStories()
    hashes = tuple(bytes([number]) * 32 for number in range(40))
    kept.hear(ORIGIN_S, RequestArrived(1, 640, 10, Slo(), block_hashes=hashes), (), "")
    (entry,) = kept._entries[1]
    assert isinstance(entry.event, RequestArrived)
    assert not isinstance(entry.event.block_hashes, tuple)
    assert "40 whole blocks" in kept.tell(1).chapters[0].text


def test_instances_have_stories_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stories, "INSTANCES_MAX", 3)
    kept = InstanceStories()
    for number in range(5):
        for now, event, commands, _ in launched(instance_id=number):
            kept.hear(now, event, commands)
    kept.hear(ORIGIN_S, Wakeup(), ())
    assert kept.chapters(1, ORIGIN_S) is None
    chapters = kept.chapters(4, ORIGIN_S)
    assert chapters is not None
    assert [each.text for each in chapters] == [
        "starts as mixed from disk: fewer instances than the fleet should have",
        "is ready: 100 KV blocks of 16 tokens, 8 at a time",
    ]
