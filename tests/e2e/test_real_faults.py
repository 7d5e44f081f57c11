"""What really goes wrong, done to a real server: kills, stops, a full disk, no descriptors, another clock.

The long forms, with what they measure, are in benchmarks/real_faults.py.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.conftest import START_S, Serving, wait_gone
from e2e.test_processes import events, open_stream, text_of
from hyperflexis.journal.entries import Gap
from hyperflexis.journal.reading import open_all

pytestmark = pytest.mark.slow

EXACT = ("--dtype", "float32")
"""With fewer bits the company in a step decides between tokens that are nearly as likely."""
PROMPTS = [f"def f{number}(" for number in range(4)]
LONG, SHORT = 300, 80
"""Tokens of answers."""


class Told:
    """What a server says, read by a thread so that it never waits for us."""

    def __init__(self, serving: Serving) -> None:
        self._lines: list[str] = []
        self._reading = threading.Thread(target=lambda: self._lines.extend(serving.stderr), daemon=True)
        self._reading.start()

    def lines(self) -> list[str]:
        """All of it, once it has ended."""
        self._reading.join(START_S)
        return self._lines


@contextmanager
def served(*arguments: str, env: dict[str, str] | None = None) -> Iterator[tuple[Serving, str, Told]]:
    serving = Serving(*EXACT, *arguments, env=env)
    try:
        url = serving.wait_ready()
        told = Told(serving)
        yield serving, url, told
        serving.process.send_signal(signal.SIGINT)
        assert serving.process.wait(START_S) == 0
        told.lines()
    finally:
        if serving.process.poll() is None:
            serving.process.kill()
            serving.process.wait(START_S)
        serving.stderr.close()


def answer(url: str, prompt: str, tokens: int = SHORT, on_begin: Callable[[], object] = lambda: None) -> str:
    with open_stream(url, prompt=prompt, max_tokens=tokens) as stream:
        coming = events(stream)
        told = [next(coming)]
        on_begin()
        told += coming
    assert told[-1]["choices"][0]["finish_reason"] == "length", told[-1]
    return text_of(told)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)


def answers_beside(url: str, disturb: Callable[[], None], tokens: int = SHORT) -> list[str]:
    """What all prompts are answered with while, from when all streams have begun, something goes wrong."""
    begun = threading.Barrier(len(PROMPTS) + 1, timeout=START_S)
    with ThreadPoolExecutor(len(PROMPTS)) as clients:
        coming = [clients.submit(answer, url, prompt, tokens, begun.wait) for prompt in PROMPTS]
        begun.wait()
        disturb()
        return [each.result(START_S) for each in coming]


def test_streams_go_on_with_the_right_token_through_kills_and_stops() -> None:
    with served("--instances", "3", "--set", "engine.silence_timeout_s=1") as (serving, url, _):
        expected = [answer(url, prompt, LONG) for prompt in PROMPTS]

        def disturb() -> None:
            for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL):
                wait_until(lambda: len(serving.instance_pids()) == 3, "what died is not replaced")
                victim = serving.instance_pids()[0]
                os.kill(victim, number)
                wait_gone([victim])

        assert answers_beside(url, disturb, LONG) == expected


def metric(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=START_S) as told:
        lines = told.read().decode().splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0.0)


def limit(serving: Serving, what: int, most: int) -> None:
    _, hard = resource.prlimit(serving.process.pid, what)
    resource.prlimit(serving.process.pid, what, (most, hard))


def test_full_disk_costs_the_journal_a_gap_and_clients_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    with served("--instances", "1", "--journal", str(folder)) as (serving, url, told):
        answer(url, PROMPTS[0])
        wait_until(lambda: any(each.stat().st_size for each in folder.iterdir()), "nothing is written")
        limit(serving, resource.RLIMIT_FSIZE, 1)
        answer(url, PROMPTS[1])
        wait_until(lambda: metric(url, "hyperflexis_journal_lost_events_total") > 0, "the loss is not counted")
        limit(serving, resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
        answer(url, PROMPTS[2])
        lost = int(metric(url, "hyperflexis_journal_lost_events_total"))
    said = "".join(told.lines())
    assert "the journal cannot be written" in said
    assert "the journal is written again" in said
    (journal,) = open_all(folder)
    entries = list(journal.entries())
    assert not journal.damages
    (gap,) = [entry.event for entry in entries if isinstance(entry.event, Gap)]
    assert gap.events >= lost > 0
    assert not isinstance(entries[-1].event, Gap), "it does not go on"


def test_without_descriptors_who_is_there_is_served_and_it_passes() -> None:
    with served("--instances", "2") as (serving, url, _):
        expected = [answer(url, prompt) for prompt in PROMPTS]
        host, port = url.removeprefix("http://").split(":")
        open_files = len(os.listdir(f"/proc/{serving.process.pid}/fd"))
        soft, _hard = resource.prlimit(serving.process.pid, resource.RLIMIT_NOFILE)
        crowd: list[socket.socket] = []

        def disturb() -> None:
            limit(serving, resource.RLIMIT_NOFILE, open_files + len(PROMPTS) + 4)
            for _ in range(40):
                one = socket.socket()
                one.settimeout(START_S)
                one.connect((host, int(port)))
                crowd.append(one)
            os.kill(serving.instance_pids()[0], signal.SIGKILL)  # Whose place another cannot take now.

        assert answers_beside(url, disturb) == expected
        for one in crowd:
            one.close()
        limit(serving, resource.RLIMIT_NOFILE, soft)
        wait_until(lambda: len(serving.instance_pids()) == 2, "what died is not replaced")
        assert answer(url, PROMPTS[0]) == expected[0]


SET_CLOCK = """
import datetime, os, time
_real, _real_ns = time.time, time.time_ns
def _offset_s():
    try:
        with open(os.environ["CLOCK_OFFSET_FILE"]) as file:
            return int(file.read() or 0)
    except OSError:
        return 0
time.time = lambda: _real() + _offset_s()
time.time_ns = lambda: _real_ns() + _offset_s() * 10**9
"""


def test_clock_of_the_day_decides_nothing(tmp_path: Path) -> None:
    """It goes back and forth by hours under streams, as Python code sees it; promises are kept by another clock."""
    (tmp_path / "sitecustomize.py").write_text(SET_CLOCK)
    offset = tmp_path / "offset"
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with served("--instances", "2", env={"PYTHONPATH": path, "CLOCK_OFFSET_FILE": str(offset)}) as (_, url, _told):
        expected = [answer(url, prompt) for prompt in PROMPTS]
        seen = []

        def disturb() -> None:
            for offset_s in (10_000, -10_000, 0):
                offset.write_text(str(offset_s))
                with open_stream(url, max_tokens=20) as stream:
                    told = list(events(stream))
                seen.append(round((told[0]["created"] - time.time()) / 10_000))
                assert 0 < told[-1]["hyperflexis"]["e2e"]["actual_ms"] < 1000 * START_S

        assert answers_beside(url, disturb) == expected
        assert seen == [1, -1, 0], "the clock was not set"
