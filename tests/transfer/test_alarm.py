"""Calls come at their instants, in their order, and not once forgotten."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from hyperflexis.transfer.alarm import Alarm


@pytest.fixture
def alarm() -> Iterator[Alarm]:
    alarm = Alarm("test-alarm")
    yield alarm
    alarm.close()


def test_earlier_appointment_comes_first(alarm: Alarm) -> None:
    heard: list[str] = []
    is_over = threading.Event()
    now = time.monotonic()
    alarm.at(now + 1000, lambda: heard.append("far"))
    alarm.at(now + 0.03, is_over.set)
    alarm.at(now + 0.01, lambda: heard.append("near"))
    assert is_over.wait(10)
    assert time.monotonic() >= now + 0.03
    assert heard == ["near"]


def test_forgotten_appointment_does_not_come(alarm: Alarm) -> None:
    heard: list[str] = []
    is_over = threading.Event()
    now = time.monotonic()
    number = alarm.at(now + 0.01, lambda: heard.append("forgotten"))
    alarm.forget(number)
    alarm.forget(number)
    alarm.at(now + 0.02, is_over.set)
    assert is_over.wait(10)
    assert heard == []


def test_past_instant_is_now(alarm: Alarm) -> None:
    is_over = threading.Event()
    alarm.at(0.0, is_over.set)
    assert is_over.wait(10)


def test_closing_forgets_everything() -> None:
    alarm = Alarm("test-alarm-closing")
    alarm.at(time.monotonic() + 1000, lambda: None)
    alarm.close()
    assert "test-alarm-closing" not in {thread.name for thread in threading.enumerate()}
    Alarm("never used").close()
