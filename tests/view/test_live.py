"""The live view: bytes for whoever looks, and nothing of its faults for those that are served."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from hyperflexis.core.fleet import Prices
from hyperflexis.view.live import PERIOD_S, LiveView
from view.streams import CLASSES, ORIGIN_S, finished, launched, sent, step


class Clock:
    now = ORIGIN_S

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def view(clock: Clock) -> LiveView:
    view = LiveView(Prices(), CLASSES, "tiny", clock, wall_s=1_700_000_000.0)
    for entry in (*launched(), sent(ORIGIN_S + 1, 7, name="cmpl-7"), step(ORIGIN_S + 1.1, started=[7], began=[7])):
        view.observe(*entry)
    return view


def test_snapshot_is_made_once_for_all_that_look(view: LiveView, clock: Clock) -> None:
    clock.now += 2
    first = view.snapshot()
    clock.now += PERIOD_S / 4
    assert view.snapshot() is first
    clock.now += PERIOD_S
    assert json.loads(view.snapshot())["now_s"] > json.loads(first)["now_s"]


def test_story_of_a_request_and_of_its_instance(view: LiveView, clock: Clock) -> None:
    clock.now += 2
    (story,) = json.loads(asyncio.run(view.request("cmpl-7")) or b"")
    assert (story["request"], story["ending"]) == (7, "has not ended yet")
    assert [each["at_s"] for each in story["chapters"]] == pytest.approx([1.0, 1.0, 1.05, 1.1])
    instance = json.loads(asyncio.run(view.instance(0)) or b"")
    assert [each["request"] for each in instance["requests"]] == [7]
    assert asyncio.run(view.request("nobody")) is None
    assert asyncio.run(view.instance(9)) is None


def test_fault_is_logged_once_and_raises_nothing(view: LiveView, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            view.observe(ORIGIN_S + 2, object(), [None], "")  # type: ignore[arg-type, list-item]
            view.observe(ORIGIN_S + 2, sent(0, 1).event, 5, "")  # type: ignore[arg-type]
    assert [record.message for record in caplog.records] == ["the dashboard cannot follow the fleet any more"]
    assert json.loads(view.snapshot())["is_blind"] is True


def test_page_needs_nothing_from_elsewhere_and_is_small(view: LiveView) -> None:
    names = ["index.html", "style.css", "main.js", "icon.svg"]
    assert all(view.file(name) for name in names)
    assert view.file("../live.py") is None
    whole = b"".join(body for _, body in view._files.values())
    assert len(whole) <= 200_000
    for far in (b"https://", b"@import", b"//cdn", b"innerHTML", b"eval("):
        assert far not in whole
    assert whole.count(b"http://") == whole.count(b"http://www.w3.org/2000/svg")


def test_end_of_a_request_is_seen(view: LiveView, clock: Clock) -> None:
    view.observe(*finished(ORIGIN_S + 2, 7, ORIGIN_S + 1, 0.1, 101))
    clock.now += 3
    told = json.loads(view.snapshot())
    assert told["classes"][0]["attained"] == 1.0
    assert told["running"] == 0
