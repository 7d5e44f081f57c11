"""Servers as processes of this machine: the stand-in in place of `vllm serve`, started, lost and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from adapters.fleets import Heard, process_state, until_dead
from hyperflexis.core.instance import Role
from hyperflexis.runtime.launchers.attached import AttachError, AttachSpec
from hyperflexis.runtime.launchers.vllm import ServeSpec, VllmLauncher, _gpus
from runtime.attached_world import DEMO_MODEL, QUICK, live

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are watched by what Linux has for it"),
]

STAND_IN = f"{sys.executable} -m hyperflexis.adapters.vllm.standin"
MIXED = (Role.MIXED,)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What servers print is left where they fail."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def free_ports(count: int) -> int:
    """The first of so many in a row that nobody listens on."""
    for first in range(21_000, 30_000, 10):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for place, sock in enumerate(sockets):
                sock.bind(("127.0.0.1", first + place))
        except OSError:
            continue
        finally:
            for sock in sockets:
                sock.close()
        return first
    raise AssertionError("no free ports")


def spec(command: str = STAND_IN, **fields: Any) -> ServeSpec:
    attach = AttachSpec([], watch=QUICK, **fields.pop("attach", {}))
    values = {"first_port": free_ports(3), "args": "--step-ms 2", "gpus": 0, **fields}
    return ServeSpec(str(DEMO_MODEL), "demo", attach, command, **values)


def words_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")


def environment_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text(encoding="utf-8").split("\0")


@live
async def test_servers_are_started_with_what_they_need_and_end_with_the_launcher() -> None:
    launcher = await VllmLauncher.start(spec(), [Role.MIXED, Role.MIXED])
    heard = [Heard(), Heard()]
    for number, each in enumerate(heard):
        launcher.launch(number, Role.MIXED, each)
    for each in heard:
        await each.until_ready()
    pids = launcher.pids
    ports = {words_of(pid)[words_of(pid).index("--port") + 1] for pid in pids}
    assert len(ports) == len(pids) == 2
    assert "--served-model-name" in words_of(pids[0])
    folder = launcher._folder
    await launcher.close()
    assert [process_state(pid) for pid in pids] == [None, None]
    assert not folder.exists()


@live
async def test_server_that_dies_is_told_at_once_and_its_place_is_free_again() -> None:
    launcher = await VllmLauncher.start(spec(), MIXED)
    first, second = Heard(), Heard()
    launcher.launch(0, Role.MIXED, first)
    await first.until_ready()
    (pid,) = launcher.pids
    port = words_of(pid)[words_of(pid).index("--port") + 1]
    os.kill(pid, signal.SIGKILL)
    assert "its process was killed by SIGKILL" in await first.until_lost() or "cannot be reached" in first.lost[0]
    await until_dead(pid)
    launcher.launch(1, Role.MIXED, second)
    await second.until_ready()
    (pid,) = launcher.pids
    assert words_of(pid)[words_of(pid).index("--port") + 1] == port
    await launcher.close()


@live
async def test_closed_instance_ends_its_process() -> None:
    launcher = await VllmLauncher.start(spec(), MIXED)
    heard = Heard()
    adapter = launcher.launch(0, Role.MIXED, heard)
    await heard.until_ready()
    (pid,) = launcher.pids
    adapter.close()
    await until_dead(pid)
    assert heard.lost == []
    await launcher.close()


@live
async def test_roles_and_kv_are_told_in_vllms_words() -> None:
    attach = {"passes_kv": True, "lease_s": 60.0, "api_key": "secret"}
    launcher = await VllmLauncher.start(spec(attach=attach, gpus=2), [Role.PREFILL, Role.DECODE])
    commands = [words_of(pid) for pid in launcher.pids]
    configs = sorted(words[words.index("--kv-transfer-config") + 1] for words in commands)
    assert '"kv_role": "kv_consumer"' in configs[0]
    assert '"kv_role": "kv_producer"' in configs[1]
    assert '"kv_lease_duration": 60' in configs[1]
    assert all(words[words.index("--tensor-parallel-size") + 1] == "2" for words in commands)
    environments = [environment_of(pid) for pid in launcher.pids]
    gpus = {word for words in environments for word in words if word.startswith("CUDA_VISIBLE_DEVICES=")}
    assert gpus == {"CUDA_VISIBLE_DEVICES=0,1", "CUDA_VISIBLE_DEVICES=2,3"}
    ports = {word for words in environments for word in words if word.startswith("VLLM_NIXL_SIDE_CHANNEL_PORT=")}
    assert ports == {"VLLM_NIXL_SIDE_CHANNEL_PORT=5600", "VLLM_NIXL_SIDE_CHANNEL_PORT=5602"}
    # Everybody on the machine can read commands.
    assert all("VLLM_API_KEY=secret" in words for words in environments)
    assert all("secret" not in word for words in commands for word in words)
    heard = Heard()
    launcher.launch(0, Role.DECODE, heard)
    await heard.until_ready()
    await launcher.close()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("there-is-no-vllm serve", "exited with status 127 before it answered\n    there-is-no-vllm cannot be run"),
        (f"{sys.executable} -c 'raise SystemExit(\"no GPU\")'", "exited with status 1 before it answered\n    no GPU"),
    ],
)
@live
async def test_server_that_does_not_start_says_why(command: str, said: str) -> None:
    with pytest.raises(AttachError) as caught:
        await VllmLauncher.start(spec(command), MIXED)
    assert said in str(caught.value)
    assert "what it printed is in" in caught.value.hint


@live
async def test_server_that_never_answers_is_given_up_and_ended() -> None:
    command = f"{sys.executable} -c 'import time; time.sleep(60)'"
    with pytest.raises(AttachError, match=r"no vLLM server has answered within 0\.3 s"):
        await VllmLauncher.start(spec(command, start_timeout_s=0.3), MIXED)


def test_server_ends_when_whoever_started_it_is_killed() -> None:
    port = free_ports(1)
    code = (
        "import os, subprocess, sys, time\n"
        "words = [sys.executable, '-m', 'hyperflexis.runtime.launchers.tether', str(os.getpid())]\n"
        f"words += {STAND_IN.split()!r} + [{str(DEMO_MODEL)!r}, '--port', '{port}']\n"
        "child = subprocess.Popen(words, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline_s = time.monotonic() + 30.0
    while process_state(pid) not in (None, "Z"):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_gpus_are_those_that_may_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5, 6,7")
    assert [_gpus(slot, 2) for slot in (0, 1)] == [["4", "5"], ["6", "7"]]
    with pytest.raises(OSError, match="instance 2 needs GPUs 4 to 5, and 4 are visible"):
        _gpus(2, 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert _gpus(1, 2) == ["2", "3"]
