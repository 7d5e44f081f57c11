"""A journal as frames: each is what a live view would have shown at that instant."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from hyperflexis.core.fleet import Prices
from hyperflexis.journal.reading import Journal
from hyperflexis.view.recording import FRAMES_TOLD_MAX, RecordedView
from hyperflexis.view.watch import Watch
from journal.recorded import D, P, World, header_of, only_run, play, recorder
from view.streams import launched, sent

WORLD = World((P, P, D, D), moving="fixed", requests=80)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Journal:
    folder = tmp_path_factory.mktemp("journal")
    play(WORLD, folder)
    return only_run(folder)


def test_frames_are_what_a_watch_sees_at_those_instants(journal: Journal) -> None:
    view = RecordedView(journal)
    view.play()
    source = json.loads(view.source())
    assert (source["kind"], source["is_complete"], source["frames"]) == ("recorded", True, view.frames)
    entries = list(journal.entries())
    watch = Watch(Prices(), {each.name: each for each in journal.header.classes}, entries[0].now)
    for now, event, commands, _ in entries:
        if now >= entries[0].now + 2 * view.step_s:
            break
        watch.hear(now, event, commands)
    (_, _, third, *_) = json.loads(view.frames_from(0))
    live = watch.snapshot(entries[0].now + 2 * view.step_s)
    assert third["now_s"] == live.now_s == 2 * view.step_s
    assert [each["running"] for each in third["instances"]] == [each.running for each in live.instances]
    assert third["flows"] == [list(flow) for flow in live.flows]


def test_frames_are_bounded_and_given_a_few_at_a_time(journal: Journal) -> None:
    few = RecordedView(journal, frames_max=3)
    few.play()
    assert few.frames <= 4
    assert few.step_s == pytest.approx((few.end_s - few.begin_s) / 2)
    assert json.loads(few.frames_from(1000)) == []
    assert len(json.loads(few.frames_from(0))) <= FRAMES_TOLD_MAX


def test_last_frame_is_the_end(journal: Journal) -> None:
    view = RecordedView(journal)
    view.play()
    last = json.loads(view.frames_from(view.frames - 1))[-1]
    assert last["now_s"] == pytest.approx(view.end_s - view.begin_s, abs=1e-3)
    assert last["running"] == last["waiting"] == 0


def test_stories_come_from_the_journal(journal: Journal) -> None:
    view = RecordedView(journal)
    view.play()
    (story,) = json.loads(asyncio.run(view.request("3")) or b"")
    assert story["ending"].startswith("done")
    assert asyncio.run(view.request("4000")) is None
    assert asyncio.run(view.request("9" * 50)) is None
    chapters = json.loads(asyncio.run(view.instance(2)) or b"")["chapters"]
    assert chapters[0]["text"].startswith("starts as decode")


def test_journal_without_an_entry_has_one_frame(tmp_path: Path) -> None:
    with recorder(tmp_path) as made:
        made.write(launched()[:1])
    view = RecordedView(only_run(tmp_path))
    view.play()
    assert view.frames == 1


def test_instances_of_a_part_that_is_gone_are_there(tmp_path: Path) -> None:
    ready = launched()[1]
    with recorder(tmp_path, header_of(WORLD)) as made:
        made.write([sent(ready.now + 5, 1)])
    (part,) = only_run(tmp_path).parts
    header = msgspec.structs.replace(part.header, part=1, instances=[(ready.now, ready.event)])
    view = RecordedView(Journal([part._replace(header=header)]))
    view.play()
    (frame,) = json.loads(view.frames_from(0))
    assert [each["id"] for each in frame["instances"]] == [0]
