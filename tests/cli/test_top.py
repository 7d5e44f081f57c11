"""`hyperflexis top`: what a terminal shows of a snapshot, and what is said where there is none to show."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from rich.console import Console

from hyperflexis.cli.top import render
from hyperflexis.core.events import InstanceLost
from hyperflexis.core.fleet import Prices
from hyperflexis.view.live import LiveView
from hyperflexis.view.snapshot import Snapshot
from view.streams import CLASSES, ORIGIN_S, at, finished, launched, sent, step, watched

Run = Callable[..., Any]
"""Words in; (code, out, err) out. A fixture of this folder."""

ENTRIES = [
    *launched(),
    *launched(instance_id=1),
    sent(ORIGIN_S + 1, 7),
    step(ORIGIN_S + 1.1, started=[7], began=[7]),
    sent(ORIGIN_S + 2, 8, "loose"),
    finished(ORIGIN_S + 3, 7, ORIGIN_S + 1, 0.7, 101),
    at(ORIGIN_S + 4, InstanceLost(1, "\x1b[31mkilled [bold]")),
]


def text_of(snapshot: Snapshot, height: int = 0) -> str:
    console = Console(width=160, record=True, color_system=None, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(render(snapshot, height))
    return captured.get()


def test_snapshot_in_a_terminal() -> None:
    text = text_of(watched(ENTRIES).snapshot(ORIGIN_S + 5))
    assert "attained 0.0%" in text
    assert "700 ms of 500 ms" in text
    assert "i1" in text
    assert "lost" in text
    assert "request 7 broken: ttft 700 ms of 500 ms" in text


def test_what_others_wrote_is_not_obeyed() -> None:
    text = text_of(watched(ENTRIES).snapshot(ORIGIN_S + 5))
    assert "\x1b" not in text
    assert "killed [bold]" in text


def test_large_fleet_is_cut_to_the_terminal() -> None:
    entries = [entry for number in range(200) for entry in launched(instance_id=number)]
    text = text_of(watched(entries).snapshot(ORIGIN_S + 5), height=40)
    assert len(text.splitlines()) <= 40
    assert "more" in text


class Answers(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        view = LiveView(Prices(), CLASSES, clock=lambda: ORIGIN_S)
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(view.snapshot())

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_once_as_json(run: Run, url: str) -> None:
    code, out, err = run("top", url, "--once", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["instances"] == []


@pytest.mark.parametrize(
    ("status", "said"), [(401, "asks for an API key"), (404, "shows no dashboard"), (500, "status 500")]
)
def test_refusals_are_explained(run: Run, url: str, monkeypatch: pytest.MonkeyPatch, status: int, said: str) -> None:
    monkeypatch.setattr(Answers, "status", status)
    code, _, err = run("top", url, "--once")
    assert code == 2
    assert said in err


def test_nobody_there(run: Run) -> None:
    code, _, err = run("top", "http://127.0.0.1:9", "--once")
    assert code == 2
    assert "is `hyperflexis serve` running there?" in err
