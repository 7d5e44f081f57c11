"""A server that dies or is replaced, and the next one that goes on with its instances."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.conftest import START_S, Serving, children, wait_gone
from e2e.test_processes import DEMO, events, open_stream, text_of

pytestmark = pytest.mark.slow


class Keeping:
    """Servers with one keep, one after another. What any of them has started must be gone in the end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.servers: list[Serving] = []
        self.pids: set[int] = set()
        self.shared_before = sorted(os.listdir("/dev/shm"))

    def serve(self, *arguments: str) -> Serving:
        patience = ("--set", "keep.timeout_s=600")
        self.servers.append(Serving("--keep", str(self.directory), *patience, *arguments))
        return self.servers[-1]

    def ready(self, *arguments: str) -> tuple[Serving, str]:
        serving = self.serve(*arguments)
        url = serving.wait_ready()
        self.pids |= set(serving.all_pids())
        return serving, url

    def check_empty(self) -> None:
        wait_gone(sorted(self.pids))
        assert sorted(os.listdir("/dev/shm")) == self.shared_before

    def close(self) -> None:
        for serving in self.servers:
            if serving.process.poll() is None:
                serving.kill()
            serving.stderr.close()
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[Keeping]:
    made = Keeping(tmp_path / "keep")
    yield made
    made.close()


def family(serving: Serving) -> tuple[int, list[int]]:
    """Zygote and instances of a server that has started them."""
    (zygote,) = children(serving.process.pid)
    return zygote, children(zygote)


def answer(url: str) -> str:
    with open_stream(url, max_tokens=60) as stream:
        return text_of(list(events(stream)))


def told(serving: Serving) -> str:
    return "".join(serving.errors)


def last_words(serving: Serving, code: int) -> str:
    """Of one that ends by itself. What it has left may hold its stderr open for long."""
    assert serving.process.wait(START_S) == code
    os.set_blocking(serving.stderr.fileno(), False)
    said = os.read(serving.stderr.fileno(), 1 << 16).decode()
    assert "Traceback" not in said
    return said


def test_killed_server_loses_no_instance(keeping: Keeping) -> None:
    first, url = keeping.ready()
    expected = answer(url)
    zygote, instances = family(first)
    streams = [open_stream(url, max_tokens=1500, prompt=f"class A{number}:\n") for number in range(12)]
    for stream in streams:
        next(events(stream))
    first.kill()
    for stream in streams:
        stream.close()
    second, url = keeping.ready()
    assert answer(url) == expected
    assert children(zygote) == instances
    assert f"instances of the server before go on: processes {instances[0]}, {instances[1]}" in told(second)
    with urllib.request.urlopen(f"{url}/ready", timeout=START_S) as ready:
        state = json.load(ready)
    assert sum(one["running_seqs"] + one["waiting_seqs"] for one in state["instances"]) == 0
    assert second.stop() == 0
    keeping.check_empty()
    assert os.listdir(keeping.directory) == []


def test_request_to_end_leaves_them_and_interrupt_does_not(keeping: Keeping) -> None:
    first, url = keeping.ready("--set", "keep.timeout_s=300")
    zygote, instances = family(first)
    with open_stream(url, max_tokens=100) as answering:
        stream = events(answering)
        begun = [next(stream)]
        first.process.send_signal(signal.SIGTERM)
        assert [*begun, *stream][-1]["choices"][0]["finish_reason"] == "length", "it was to finish"
    assert "the instances wait for another server, 300 s" in last_words(first, 0)
    second, _ = keeping.ready("--instances", "3")
    assert set(instances) < set(children(zygote))
    assert second.stop() == 0
    keeping.check_empty()


def test_everything_ends_when_no_server_comes(keeping: Keeping) -> None:
    first, _ = keeping.ready("--set", "keep.timeout_s=0.5")
    first.kill()
    keeping.check_empty()
    second, url = keeping.ready()
    assert "instances of the server before" not in told(second)
    assert len(answer(url)) > 0
    assert second.stop() == 0


def test_second_server_is_refused_while_the_first_lives(keeping: Keeping) -> None:
    first, url = keeping.ready()
    said = last_words(keeping.serve(), 3)
    assert f"error: {keeping.directory} is in use: the instances there have a gateway" in said
    assert len(answer(url)) > 0
    assert first.stop() == 0


def test_another_model_is_refused_and_the_kept_one_waits_on(keeping: Keeping, tmp_path: Path) -> None:
    model = Path(shutil.copytree(DEMO, tmp_path / "model"))
    first, _ = keeping.ready(str(model))
    zygote, instances = family(first)
    first.kill()
    said = last_words(keeping.serve(), 2)
    assert f"the model {model}, not {DEMO}" in said
    assert f"kill -9 {zygote}" in said
    os.utime(model / "model.safetensors")
    assert "the model's files have changed since they were loaded" in last_words(keeping.serve(str(model)), 2)
    assert "dtype auto, not bfloat16" in last_words(keeping.serve(str(model), "--dtype", "bfloat16"), 2)
    assert children(zygote) == instances
    os.kill(zygote, signal.SIGKILL)
    keeping.check_empty()
    second, _ = keeping.ready(str(model))
    assert second.stop() == 0


def test_server_that_cannot_listen_leaves_what_it_found(keeping: Keeping) -> None:
    first, url = keeping.ready()
    zygote, instances = family(first)
    expected = answer(url)
    first.kill()
    port = re.findall(r":(\d+)", url)[0]
    with socket.create_server(("127.0.0.1", int(port))):
        assert port in last_words(keeping.serve("--port", port), 3)
    second, url = keeping.ready()
    assert children(zygote) == instances
    assert answer(url) == expected
    assert second.stop() == 0
    keeping.check_empty()


def test_instance_that_died_meanwhile_is_replaced(keeping: Keeping) -> None:
    first, url = keeping.ready()
    zygote, instances = family(first)
    expected = answer(url)
    first.kill()
    os.kill(instances[0], signal.SIGKILL)
    while instances[0] in children(zygote):  # Until it has been buried.
        time.sleep(0.01)
    second, url = keeping.ready()
    assert f"processes {instances[1]}\n" in told(second)
    keeping.pids |= set(children(zygote))
    assert instances[1] in children(zygote)
    assert len(children(zygote)) == 2
    assert answer(url) == expected
    assert second.stop() == 0
    keeping.check_empty()


def test_zygote_that_died_is_nothing_to_take_over(keeping: Keeping) -> None:
    first, _ = keeping.ready()
    zygote, _ = family(first)
    first.kill()
    os.kill(zygote, signal.SIGKILL)
    keeping.check_empty()
    second, _ = keeping.ready()
    assert "instances of the server before" not in told(second)
    assert second.stop() == 0


def test_keep_that_others_may_use_is_last_words(keeping: Keeping) -> None:
    keeping.directory.mkdir(0o755)
    said = last_words(keeping.serve(), 2)
    assert "open to other users" in said
    assert "hint: chmod 700" in said
    assert stat.S_IMODE(keeping.directory.stat().st_mode) == 0o755


def test_journal_goes_on_in_a_part_of_its_own(keeping: Keeping, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    first, url = keeping.ready("--journal", str(journal))
    answer(url)
    deadline_s = time.monotonic() + START_S
    while not any(path.stat().st_size for path in journal.iterdir()):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    first.kill()
    before = {path.name: path.read_bytes() for path in journal.iterdir()}
    second, url = keeping.ready("--journal", str(journal))
    answer(url)
    assert second.stop() == 0
    after = {path.name: path.read_bytes() for path in journal.iterdir()}
    assert before.items() <= after.items()
    assert len(after) > len(before)
