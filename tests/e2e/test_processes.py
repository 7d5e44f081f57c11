"""What operators do to the processes, and what becomes of clients: kills, signals, bad starts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from e2e.conftest import COMMAND, START_S, Serving, is_running, wait_gone

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[2] / "src" / "hyperflexis" / "demo_model"


@pytest.fixture
def serving() -> Iterator[Serving]:
    serving = Serving()
    try:
        yield serving
    finally:
        if serving.process.poll() is None:
            serving.kill()


def open_stream(url: str, **body: Any) -> IO[bytes]:
    told = {"prompt": "import os\n", "temperature": 0, "stream": True, "ignore_eos": True, **body}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(told).encode(), {"Content-Type": "application/json"}
    )
    answer: IO[bytes] = urllib.request.urlopen(request, timeout=START_S)
    return answer


def events(answer: IO[bytes]) -> Iterator[dict[str, Any]]:
    for line in answer:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


def text_of(told: list[dict[str, Any]]) -> str:
    return "".join(one["choices"][0]["text"] for one in told if one["choices"])


def test_killed_instance_costs_its_client_no_token(serving: Serving) -> None:
    url = serving.wait_ready()
    with open_stream(url, max_tokens=600) as unbroken:
        expected = text_of(list(events(unbroken)))
    with open_stream(url, max_tokens=600) as answer:
        stream = events(answer)
        told = [next(stream) for _ in range(20)]
        for pid in serving.instance_pids():
            os.kill(pid, signal.SIGKILL)
        told += list(stream)
    assert text_of(told) == expected
    assert told[-1]["hyperflexis"]["migrations"] >= 1
    assert serving.stop() == 0


def test_interrupt_lets_running_requests_finish_and_leaves_nothing(serving: Serving) -> None:
    url = serving.wait_ready()
    pids = serving.all_pids()
    shared_before = sorted(os.listdir("/dev/shm"))
    with open_stream(url, max_tokens=200) as answer:
        stream = events(answer)
        first = next(stream)
        serving.process.send_signal(signal.SIGINT)
        told = [first, *stream]
    assert told[-1]["choices"][0]["finish_reason"] == "length"
    assert serving.stop() == 0
    wait_gone(pids)
    assert sorted(os.listdir("/dev/shm")) == shared_before


def test_second_interrupt_ends_it_at_once(serving: Serving) -> None:
    url = serving.wait_ready()
    pids = serving.all_pids()
    with open_stream(url, max_tokens=1900) as answer:
        next(events(answer))
        serving.process.send_signal(signal.SIGINT)
        for line in serving.stderr:
            if line.startswith("stopping"):
                break
        serving.process.send_signal(signal.SIGINT)
        assert serving.process.wait(START_S) == 0
    serving.stderr.close()
    wait_gone(pids)


def test_killed_parent_leaves_no_process_and_no_shared_memory(serving: Serving) -> None:
    serving.wait_ready()
    pids = serving.all_pids()
    assert len(pids) == 4
    shared_before = sorted(os.listdir("/dev/shm"))
    serving.kill()
    wait_gone(pids)
    assert sorted(os.listdir("/dev/shm")) == shared_before


def test_departed_client_frees_its_work_within_a_moment(serving: Serving) -> None:
    url = serving.wait_ready()
    with open_stream(url, max_tokens=1900) as answer:
        next(events(answer))
    deadline_s = time.monotonic() + START_S
    while True:
        with urllib.request.urlopen(f"{url}/ready", timeout=START_S) as told:
            if sum(one["running_seqs"] for one in json.load(told)["instances"]) == 0:
                break
        assert time.monotonic() < deadline_s, "the work goes on although its client has left"
        time.sleep(0.02)
    # An idle instance reports nothing, so running_seqs is that of the last report: it must have come after the cancel.
    assert serving.stop() == 0


def fails_to_start(*arguments: str) -> str:
    """Run `serve` with these arguments; it must say one clear line (and a hint) and leave no process."""
    done = subprocess.run(
        [COMMAND, "serve", "--port", "0", *arguments], capture_output=True, text=True, timeout=START_S, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert sum(line.startswith("error: ") for line in lines) == 1, done.stderr
    assert len(lines) <= 2, done.stderr
    return lines[0]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO, tmp_path / "model"))


def test_truncated_weights(model: Path) -> None:
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    assert "model.safetensors" in fails_to_start(str(model))


def test_corrupt_weights(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\xff" * 1000)
    assert "model.safetensors" in fails_to_start(str(model))


def test_missing_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert "safetensors" in fails_to_start(str(model))


def test_missing_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert "tokenizer" in fails_to_start(str(model))


def change_config(model: Path, **changes: Any) -> None:
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_wrong_shapes(model: Path) -> None:
    change_config(model, intermediate_size=1000)
    assert "shape" in fails_to_start(str(model))


def test_unsupported_architecture(model: Path) -> None:
    change_config(model, architectures=["MambaForCausalLM"])
    assert "MambaForCausalLM" in fails_to_start(str(model))


def test_quantised_model(model: Path) -> None:
    change_config(model, quantization_config={"quant_method": "gptq"})
    assert "quantization_config" in fails_to_start(str(model))


def test_too_little_memory() -> None:
    assert "memory" in fails_to_start("--set", "engine.kv_cache_gib=100000")


def test_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert str(port) in fails_to_start("--port", str(port))


def test_hub_that_cannot_be_reached() -> None:
    done = subprocess.run(
        [COMMAND, "serve", "no-such-owner/no-such-model"],
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 3
    assert "no-such-owner/no-such-model" in done.stderr
    assert "hint:" in done.stderr


def test_every_process_of_a_failed_start_is_gone(model: Path) -> None:
    os.truncate(model / "model.safetensors", 1000)
    process = subprocess.Popen([COMMAND, "serve", str(model), "--port", "0"], stderr=subprocess.DEVNULL)
    seen: set[int] = set()
    while process.poll() is None:
        file = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if file.exists():
            seen |= {int(word) for word in file.read_text(encoding="ascii").split()}
        time.sleep(0.01)
    assert seen
    assert not any(is_running(pid) for pid in seen)
