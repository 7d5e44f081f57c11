"""Instances as processes: what they share, how they die, what is left of them, and what a failed start says."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters.fleets import (
    DEMO_MODEL,
    PATIENCE_S,
    Heard,
    NativeFleet,
    contract,
    process_state,
    submission,
    until_dead,
    until_state,
)
from hyperflexis.adapters.native.host import NativeAdapter, StartError, ZygoteHost
from hyperflexis.adapters.native.messages import Fork, Load, Loaded
from hyperflexis.core.control import ControlPlane
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Role
from hyperflexis.policies import create
from hyperflexis.runtime.driver import Driver
from hyperflexis.runtime.launchers.local import LocalLauncher, LocalSpec
from hyperflexis.wire.messages import FinishReason, Sampling
from runtime.live_world import Client, generate

pytestmark = pytest.mark.slow

PROMPT = [11, 12, 13, 14, 15]
DEAD: set[str | None] = {None, "Z"}
"""Whoever inherits orphans may be slow to bury them."""


@pytest.fixture
def fleet(native_fleet: NativeFleet) -> NativeFleet:
    return native_fleet


# -- what they share


def smaps_kb(pid: int, mapping: str | None = None) -> dict[str, int]:
    """Sums by field over a process's mappings, or over those of one file."""
    sums: dict[str, int] = {}
    is_wanted = False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, rest = line.partition(":")
        if "-" in name:
            is_wanted = mapping is None or mapping in line
        elif is_wanted and rest.endswith("kB"):
            sums[name] = sums.get(name, 0) + int(rest.split()[0])
    return sums


@contract
async def test_weights_are_one_shared_mapping(fleet: NativeFleet) -> None:
    first, second = Heard(), Heard()
    adapters = [fleet.start(first), fleet.start(second)]
    for heard, adapter in zip((first, second), adapters, strict=True):
        await heard.until_ready()
        adapter.submit(submission(1, PROMPT))
        await heard.until_finished(1)
    for adapter in adapters:
        arena = smaps_kb(fleet.pid(adapter), "hyperflexis-weights")
        assert arena["Size"] >= fleet.launcher.loaded.arena_bytes // 1024
        assert arena["Rss"] > 0
        assert arena["Pss"] <= 0.6 * arena["Rss"], "each has pages of its own"
        assert arena.get("Anonymous", 0) == 0
        assert smaps_kb(fleet.pid(adapter))["Private_Dirty"] < 100 * 1024
    for adapter in adapters:
        adapter.close()


@contract
async def test_second_instance_need_not_measure_itself(fleet: NativeFleet) -> None:
    first, second = Heard(), Heard()
    one = fleet.start(first)
    await first.until_ready()
    two = fleet.start(second)
    ready = await second.until_ready()
    assert ready.latency == (first.ready and first.ready.latency)
    assert len(ready.samples) >= 2
    one.close()
    two.close()


# -- how they die


@contextmanager
def nothing_left_in(pid: int) -> Iterator[None]:
    """The zygote has no child and no descriptor more than before. (It may have fewer: earlier tests' are dying.)"""
    children = Path(f"/proc/{pid}/task/{pid}/children")

    def state() -> tuple[set[str], set[str]]:
        return set(children.read_text().split()) if children.exists() else set(), set(os.listdir(f"/proc/{pid}/fd"))

    children_before, descriptors_before = state()
    yield
    children_after, descriptors_after = state()
    assert children_after <= children_before
    assert descriptors_after <= descriptors_before


@contract
async def test_killed_instance_is_buried_and_soon_replaced(fleet: NativeFleet) -> None:
    heard, other = Heard(), Heard()
    with nothing_left_in(fleet.zygote_pid):
        adapter = fleet.start(heard)
        await heard.until_ready()
        pid = fleet.pid(adapter)
        os.kill(pid, signal.SIGKILL)
        assert await heard.until_lost() == "killed by SIGKILL"
        assert process_state(pid) is None, "its exit is heard of before it is reaped"
    started_s = time.monotonic()
    replacement = fleet.start(other)
    await other.until_ready()
    assert time.monotonic() - started_s < 10.0
    replacement.close()


@contract
async def test_signals_to_end_are_left_to_the_parent(fleet: NativeFleet) -> None:
    """A terminal interrupts a whole process group, a service manager ends all of a service; but the parent drains."""
    heard = Heard()
    adapter = fleet.start(heard)
    await heard.until_ready()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(fleet.pid(adapter), number)
        os.kill(fleet.zygote_pid, number)
    adapter.submit(submission(1, PROMPT))
    await heard.until_finished(1)
    assert process_state(fleet.zygote_pid) not in DEAD
    adapter.close()


@contract
async def test_stopped_instance_goes_on_when_it_is_continued(fleet: NativeFleet) -> None:
    heard = Heard()
    adapter = fleet.start(heard)
    await heard.until_ready()
    pid = fleet.pid(adapter)
    os.kill(pid, signal.SIGSTOP)
    await until_state(pid, {"T"})
    adapter.submit(submission(1, PROMPT, 20))
    adapter.submit(submission(2, PROMPT, 20))
    os.kill(pid, signal.SIGCONT)
    await heard.until_finished(1, 2)
    assert heard.tokens[1] == heard.tokens[2]
    adapter.close()


@contract
async def test_instance_that_fails_says_why(fleet: NativeFleet) -> None:
    heard = Heard()
    adapter = fleet.start(heard)
    await heard.until_ready()
    adapter._send((4).to_bytes(8, "little") + b"\xc1\xc1\xc1\xc1")
    why = await heard.until_lost()
    assert why.startswith("WireError: a message cannot be read: ")
    await until_dead(fleet.pid(adapter))


@contract
async def test_instance_keeps_its_rules_where_the_new_ones_are_none(fleet: NativeFleet) -> None:
    heard = Heard()
    adapter = fleet.start(heard)
    await heard.until_ready()
    adapter.configure({"no_such_rule": 1}, 3)
    adapter.submit(submission(1, [5, 6, 7], 4))
    await heard.until_finished(1)
    assert {report.rules_version for report in heard.reports} == {0}, "it does not say that they are in force"


@contract
async def test_request_that_the_engine_refuses_fails_alone(fleet: NativeFleet) -> None:
    heard = Heard()
    adapter = fleet.start(heard)
    ready = await heard.until_ready()
    outside = fleet.launcher.loaded.vocab_size
    adapter.submit(submission(1, [1, outside]))
    adapter.submit(submission(2, PROMPT, sampling=Sampling(stop_ids=(outside,))))
    adapter.submit(submission(3, PROMPT))
    await heard.until_finished(1, 2, 3)
    assert heard.finished == {1: FinishReason.FAILED, 2: FinishReason.FAILED, 3: FinishReason.LENGTH}
    assert "outside the vocabulary" in heard.errors[1]
    assert "stop_ids" in heard.errors[2]
    assert heard.reports[-1].blocks_free == ready.blocks
    adapter.close()


@contract
async def test_logprobs_belong_to_their_tokens(fleet: NativeFleet) -> None:
    heard = Heard()
    adapter = fleet.start(heard)
    await heard.until_ready()
    wanted = Sampling(temperature=0.0, logprobs=2, prompt_logprobs=True)
    adapter.submit(submission(1, PROMPT, 6))
    adapter.submit(submission(2, PROMPT, 6, sampling=wanted))
    await heard.until_finished(1, 2)
    rows = []
    for report in heard.reports:
        for index, row in report.logprobs.items():
            assert report.requests[index] == 2
            assert report.tokens[index] == row.token == row.top_tokens[0]
            rows.append(row.token)
    assert rows == heard.tokens[2] == heard.tokens[1]
    (read,) = [report.prompt_logprobs[2] for report in heard.reports if report.prompt_logprobs]
    assert [row.token for row in read] == PROMPT[1:]
    adapter.close()


# -- with the driver


@contract
async def test_stream_survives_the_death_of_its_process(fleet: NativeFleet) -> None:
    control = ControlPlane(create("hyperflexis", 512), FleetBounds.fixed(2))
    driver = Driver(control, fleet.launcher, block_tokens=16)
    driver.start()
    async with asyncio.timeout(PATIENCE_S):
        await driver.wait_until(lambda: driver.ready_instances == 2)
        unbroken = Client(generate(PROMPT, 60, sampling=Sampling(seed=9)))
        driver.submit(unbroken.request, unbroken)
        await unbroken.ended()
        client = Client(unbroken.request)
        ticket = driver.submit(client.request, client)
        await client.heard(10)
        instance_id = control.cluster.requests[ticket].instance_id
        assert instance_id is not None
        adapter = driver._members[instance_id].adapter
        assert isinstance(adapter, NativeAdapter)
        os.kill(adapter.pid, signal.SIGKILL)
        end = await client.ended()
        assert client.tokens == unbroken.tokens
        assert (end.reason, end.verdict and end.verdict.migrations) == ("length", 1)
        await driver.wait_until(lambda: driver.ready_instances == 2)
    driver.close()


# -- starts that fail


async def load(host: ZygoteHost, directory: Path = DEMO_MODEL, **fields: Any) -> Loaded:
    """Load into a zygote that has loaded before, which the launcher never does."""
    host._loaded = asyncio.get_running_loop().create_future()
    values = {"device": "cpu", "dtype": "float32", "block_tokens": 16, "kv_bytes": 1 << 24, "instances": 1, **fields}
    async with asyncio.timeout(PATIENCE_S):
        return await host.load(Load(str(directory), **values))


def missing(directory: Path) -> dict[str, Any]:
    shutil.rmtree(directory)
    return {}


def without(name: str) -> Callable[[Path], dict[str, Any]]:
    def change(directory: Path) -> dict[str, Any]:
        (directory / name).unlink()
        return {}

    return change


def config(**fields: Any) -> Callable[[Path], dict[str, Any]]:
    def change(directory: Path) -> dict[str, Any]:
        file = directory / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | fields), encoding="utf-8")
        return {}

    return change


def cut(name: str, size_bytes: int) -> Callable[[Path], dict[str, Any]]:
    def change(directory: Path) -> dict[str, Any]:
        os.truncate(directory / name, size_bytes)
        return {}

    return change


def asking(**fields: Any) -> Callable[[Path], dict[str, Any]]:
    return lambda directory: fields


BROKEN: dict[str, tuple[Callable[[Path], dict[str, Any]], str, str]] = {
    "no directory": (missing, "config.json: no such file", ""),
    "no config": (without("config.json"), "config.json: no such file", ""),
    "config cut off": (cut("config.json", 50), "config.json: ", ""),
    "no weights": (without("model.safetensors"), "neither model.safetensors nor", ""),
    "weights cut off": (cut("model.safetensors", 1_000_000), "cut off", ""),
    "weights cut off in the header": (cut("model.safetensors", 100), "cut off in its header", ""),
    "empty weights": (cut("model.safetensors", 0), "model.safetensors: not a safetensors file", ""),
    "wrong shape": (config(intermediate_size=512), "has shape [256, 448], its configuration says [256, 512]", ""),
    "missing layer": (config(num_hidden_layers=6), "not found in the checkpoint", ""),
    "unknown architecture": (config(architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel", ""),
    "unknown device": (asking(device="gpu9"), "device 'gpu9' cannot be used", "--device cpu"),
    "unknown dtype": (asking(dtype="float7"), "dtype 'float7' is not one of auto, float32", ""),
    "too small a cache": (asking(kv_bytes=100_000), "fewer than 64 tokens", "engine.kv_cache_gib"),
    "more cache than memory": (asking(kv_bytes=1 << 50), "GiB of memory are available", "fewer instances"),
}


@pytest.mark.parametrize("broken", BROKEN)
@contract
async def test_failed_load_says_why_in_one_line(fleet: NativeFleet, broken: str, tmp_path: Path) -> None:
    change, words, hint = BROKEN[broken]
    directory = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, directory)
    asked = change(directory)
    with nothing_left_in(fleet.zygote_pid), pytest.raises(StartError) as caught:
        await load(fleet.launcher._zygote, directory, **asked)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hint in caught.value.hint


@contract
async def test_smallest_cache_serves(fleet: NativeFleet) -> None:
    host = fleet.launcher._zygote
    block_bytes = (1 << 24) // (await load(host)).blocks
    loaded = await load(host, kv_bytes=9 * block_bytes // 2)
    assert (loaded.blocks, loaded.context_tokens_max) == (4, 64)
    heard = Heard()
    adapter = host.fork(Fork(0, loaded.device, 1, 16, loaded.blocks, 4), heard)
    await heard.until_ready()
    adapter.submit(submission(1, PROMPT, 64 - len(PROMPT)))
    adapter.submit(submission(2, PROMPT, 65 - len(PROMPT)))
    await heard.until_finished(1, 2)
    assert heard.finished == {1: FinishReason.LENGTH, 2: FinishReason.FAILED}
    adapter.close()
    await load(host)


@contract
async def test_a_silent_process_is_killed_and_none_that_has_its_id_since(fleet: NativeFleet) -> None:
    launcher, first, second = fleet.launcher, Heard(), Heard()
    ended = launcher.launch(900, Role.MIXED, first)
    await first.until_ready()
    ended.close()
    await fleet.gone(ended)
    adapter = launcher.launch(900, Role.MIXED, second)
    await second.until_ready()
    launcher._zygote.kill(ended)
    adapter.submit(submission(1, PROMPT))
    await second.until_finished(1)
    launcher._zygote.kill(adapter)
    assert "SIGKILL" in await second.until_lost()


LOADERS = """
import os, signal
from hyperflexis.adapters.native import keeper, loading
from hyperflexis.adapters.native.messages import Load


def stumble(*_):
    raise KeyError("a bug of ours")


for life in (stumble, lambda *_: os.kill(os.getpid(), signal.SIGKILL)):
    keeper.live = life
    print(loading.load(Load("nowhere", "cpu", "auto", 16, None, 1)).reason)
print("here once")
"""


def test_death_while_loading_is_a_failure_in_words() -> None:
    """The kernel's out-of-memory killer, for instance; and whatever happens there, the zygote goes on alone."""
    ran = subprocess.run([sys.executable, "-c", LOADERS], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [
        "the process that was loading the model died: exited with status 1",
        "the process that was loading the model died: killed by SIGKILL",
        "here once",
    ]
    assert "a bug of ours" in ran.stderr


def alone(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """With an event loop of its own, and processes that nobody else uses."""

    def played() -> None:
        asyncio.run(test())

    played.__name__ = test.__name__
    return played


@alone
async def test_failed_start_leaves_no_process() -> None:
    pids: list[int] = []
    popen = subprocess.Popen.__init__

    def remember(self: Any, *args: Any, **kwargs: Any) -> None:
        popen(self, *args, **kwargs)
        pids.append(self.pid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", remember)
        with pytest.raises(StartError, match="no such file"):
            await LocalLauncher.start(LocalSpec("/no/such/directory", device="cpu"))
    (pid,) = pids
    assert process_state(pid) is None


@alone
async def test_zygote_that_dies_while_it_starts_is_an_error() -> None:
    host = ZygoteHost()
    loading = asyncio.ensure_future(load(host))
    await asyncio.sleep(0)
    os.kill(host._process.pid, signal.SIGKILL)
    with pytest.raises(StartError, match="died while it started"):
        await loading
    await host.close()


@alone
async def test_close_while_it_starts_is_quick() -> None:
    host = ZygoteHost()
    pid = host._process.pid
    started_s = time.monotonic()
    await host.close()
    await host.close()
    assert process_state(pid) is None
    assert time.monotonic() - started_s < 10.0


# -- how all of them die together


def test_instances_do_not_survive_their_zygote() -> None:
    fleet = NativeFleet(dtype="auto")
    try:
        fleet.play(kill_the_zygote(fleet))
    finally:
        fleet.close()


async def kill_the_zygote(fleet: NativeFleet) -> None:
    all_heard = [Heard(), Heard()]
    adapters = [fleet.start(heard) for heard in all_heard]
    for heard in all_heard:
        await heard.until_ready()
    pids = [fleet.pid(adapter) for adapter in adapters]
    os.kill(pids[1], signal.SIGSTOP)  # It cannot notice that its socket closes.
    os.kill(fleet.zygote_pid, signal.SIGKILL)
    for heard in all_heard:
        assert await heard.until_lost() == "killed by SIGKILL"
    await all_dead(pids)
    late = Heard()
    fleet.start(late)
    assert await late.until_lost() == "it closed its socket"


OWNER = """
import asyncio, json, os, signal, sys

from hyperflexis.core.instance import Role
from hyperflexis.runtime.launchers.local import LocalLauncher, LocalSpec
from hyperflexis.wire.messages import Sampling, Submit


class Listener:
    def __init__(self):
        self.ready, self.finished = asyncio.Event(), asyncio.Event()

    def on_ready(self, ready):
        self.ready.set()

    def on_report(self, report):
        if report.finished:
            self.finished.set()

    def on_lost(self, why):
        print("lost", why, flush=True)


async def main():
    launcher = await LocalLauncher.start(LocalSpec(sys.argv[1], device="cpu", kv_bytes=1 << 23))
    listeners = [Listener(), Listener()]
    adapters = [launcher.launch(i, Role.MIXED, listener) for i, listener in enumerate(listeners)]
    interrupted = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
    for listener in listeners:
        await listener.ready.wait()
    print(json.dumps([launcher._zygote._process.pid, *launcher.pids.values()]), flush=True)
    await interrupted.wait()
    for adapter, listener in zip(adapters, listeners):
        adapter.submit(Submit(1, [1, 2, 3], [], 5, Sampling()))
        await listener.finished.wait()
    # What is computed when the end comes must not keep anybody alive.
    adapters[0].submit(Submit(2, [1, 2, 3], [], 1000, Sampling()))
    print("alive", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
"""


def test_nothing_survives_a_killed_parent(tmp_path: Path, native_fleet: NativeFleet) -> None:
    """Nor does an interrupt of the whole process group, as Ctrl-C sends it, end any of them before that."""
    script = tmp_path / "owner.py"
    script.write_text(OWNER, encoding="utf-8")
    named = set(os.listdir("/dev/shm"))
    command = [sys.executable, str(script), str(DEMO_MODEL)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as owner:
        try:
            assert owner.stdout is not None
            pids = json.loads(owner.stdout.readline())
            assert len(pids) == 3
            os.killpg(owner.pid, signal.SIGINT)
            assert owner.stdout.readline() == "alive\n"
            assert not any(process_state(pid) in DEAD for pid in pids)
            for pid in (pids[0], pids[2]):
                os.kill(pid, signal.SIGSTOP)  # They cannot notice that a socket closes.
        finally:
            owner.kill()
    native_fleet.play(all_dead(pids))
    left = set(os.listdir("/dev/shm")) - named
    assert not [name for name in left if "hyperflexis" in name or any(str(pid) in name for pid in pids)]


async def all_dead(pids: list[int]) -> None:
    try:
        async with asyncio.timeout(10.0):
            for pid in pids:
                await until_state(pid, DEAD)
    finally:
        for pid in pids:
            if process_state(pid) not in DEAD:
                os.kill(pid, signal.SIGKILL)
