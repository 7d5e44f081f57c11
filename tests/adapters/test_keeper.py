"""Zygotes that have their weights from each other: what comes along, who gives when others fail, what is left."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from adapters.fleets import DEMO_MODEL, PATIENCE_S, Heard, NativeFleet, process_state, submission
from hyperflexis.adapters.native.host import StartError, ZygoteHost
from hyperflexis.adapters.native.messages import WeightsSpec
from hyperflexis.core.instance import Role
from hyperflexis.runtime.launchers.local import LocalLauncher, LocalSpec
from hyperflexis.transfer.memory import map_for_reading
from hyperflexis.transfer.watermark import Watermark
from hyperflexis.transfer.weights.donor import Donor
from hyperflexis.transfer.weights.joined import Patience, join
from hyperflexis.transfer.weights.manifest import Manifest
from hyperflexis.transfer.weights.offer import Offer, offer_at, read_offer

pytestmark = pytest.mark.slow

PROMPT = [11, 12, 13, 14, 15]
SECRET = b"a token that both were given"


@pytest.fixture(scope="module")
def lender() -> Iterator[NativeFleet]:
    """One that has its weights from disk, and lends them as long as these tests last."""
    if sys.platform != "linux":
        pytest.skip("instances as processes need Linux")
    fleet = NativeFleet(weights=WeightsSpec(lends=True, host="127.0.0.1", secret=SECRET))
    yield fleet
    fleet.play(ZYGOTES.close())
    fleet.close()


class Zygotes:
    """Kept warm from test to test: importing torch is most of what they cost."""

    def __init__(self) -> None:
        self._idle: list[ZygoteHost] = []

    def take(self) -> ZygoteHost:
        return self._idle.pop() if self._idle else ZygoteHost()

    def put_back(self, zygote: ZygoteHost) -> None:
        """What it holds is let go when it loads again, which the launcher never asks of one."""
        loop = asyncio.get_running_loop()
        zygote._loaded, zygote._offered, zygote.digest = loop.create_future(), loop.create_future(), b""
        self._idle.append(zygote)

    async def close(self) -> None:
        for zygote in self._idle:
            await zygote.close()


ZYGOTES = Zygotes()


def spec(directory: Path = DEMO_MODEL, *, dtype: str = "float32", **weights: Any) -> LocalSpec:
    patience = {"join_s": 1.0, "chunk_s": 2.0}
    return LocalSpec(
        str(directory), device="cpu", dtype=dtype, kv_bytes=1 << 24, weights=WeightsSpec(**{**patience, **weights})
    )


@asynccontextmanager
async def started(how: LocalSpec) -> AsyncIterator[LocalLauncher]:
    zygote = ZYGOTES.take()
    async with asyncio.timeout(PATIENCE_S):
        launcher = await LocalLauncher.start(how, zygote)
    yield launcher
    # Where a test has failed or has ended it, it is not used again.
    if zygote._process.poll() is None:
        ZYGOTES.put_back(zygote)


async def answer(launcher: LocalLauncher, heard: Heard | None = None) -> list[int]:
    """What an instance of it says to the prompt."""
    heard = heard or Heard()
    adapter = launcher.launch(0, Role.MIXED, heard)
    await heard.until_ready()
    adapter.submit(submission(1, PROMPT, 24))
    await heard.until_finished(1)
    adapter.close()
    return heard.tokens[1]


async def offer_of(launcher: LocalLauncher) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        return await launcher.offer()


async def until_digested(launcher: LocalLauncher) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        while not launcher.digest:  # noqa: ASYNC110  # nobody waits for it but tests
            await asyncio.sleep(0.005)
    return launcher.digest


def arena_inodes(pid: int) -> set[str]:
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    return {line.split()[4] for line in maps if "hyperflexis-weights" in line}


@pytest.mark.parametrize("attaches", [True, False])
def test_second_zygote_has_the_firsts_weights(lender: NativeFleet, attaches: bool) -> None:
    async def play() -> None:
        digest = await until_digested(lender.launcher)
        expected = await answer(lender.launcher)
        candidates = [await offer_of(lender.launcher)]
        async with started(spec(candidates=candidates, attaches=attaches, digest=digest)) as second:
            assert second.loaded.origin == ("attach" if attaches else "shm")
            assert second.loaded.failures == []
            assert read_offer(candidates[0]).owner == second.loaded.donor
            assert {"identity", "join"} < second.loaded.phases_s.keys()
            assert "disk" not in second.loaded.phases_s
            assert await answer(second) == expected
            assert await second.offer() == b"", "it was not told to lend"

    lender.play(play())


def test_attached_weights_are_in_memory_once(lender: NativeFleet) -> None:
    async def play() -> None:
        ours, theirs = Heard(), Heard()
        async with started(spec(candidates=[await offer_of(lender.launcher)])) as second:
            adapters = [lender.launcher.launch(0, Role.MIXED, ours), second.launch(0, Role.MIXED, theirs)]
            for heard, adapter in zip((ours, theirs), adapters, strict=True):
                await heard.until_ready()
                adapter.submit(submission(1, PROMPT))
                await heard.until_finished(1)
            (first_pid,), (second_pid,) = lender.launcher.pids.values(), second.pids.values()
            assert arena_inodes(first_pid) == arena_inodes(second_pid) != set()
            for adapter in adapters:
                adapter.close()

    lender.play(play())


def test_sibling_elsewhere_need_not_measure_itself(lender: NativeFleet) -> None:
    async def play() -> None:
        first, second = Heard(), Heard()
        await answer(lender.launcher, first)
        async with started(spec(candidates=[await offer_of(lender.launcher)])) as other:
            await answer(other, second)
            assert first.ready is not None
            assert second.ready is not None
            assert list(second.ready.samples) == list(first.ready.samples)

    lender.play(play())


def test_host_without_files_starts_from_a_peer_alone(lender: NativeFleet, tmp_path: Path) -> None:
    async def play() -> None:
        offer = read_offer(await offer_of(lender.launcher))
        assert offer.tcp is not None
        by_address = offer_at(*offer.tcp, SECRET).to_bytes()
        async with started(spec(tmp_path, candidates=[by_address])) as second:
            assert set(os.listdir(tmp_path)) == {path.name for path in DEMO_MODEL.glob("*.json")}
            assert (tmp_path / "tokenizer.json").read_bytes() == (DEMO_MODEL / "tokenizer.json").read_bytes()
            assert await answer(second) == await answer(lender.launcher)

    lender.play(play())


def test_recipient_is_a_donor_at_once_and_outlives_its_own(lender: NativeFleet) -> None:
    async def play() -> None:
        expected = await answer(lender.launcher)
        copying = spec(candidates=[await offer_of(lender.launcher)], attaches=False, lends=True)
        async with started(copying) as second, started(spec(candidates=[await offer_of(second)], lends=True)) as third:
            assert third.loaded.origin == "attach"
            offers = [await offer_of(second), await offer_of(third)]
            assert read_offer(offers[0]).owner == third.loaded.donor
            os.kill(_keeper_pid(offers[0]), signal.SIGKILL)
            async with started(spec(candidates=offers)) as fourth:
                assert fourth.loaded.origin == "attach"
                assert len(fourth.loaded.failures) == 1
                assert await answer(fourth) == await answer(third) == expected

    lender.play(play())


def test_next_in_a_chain_is_filled_while_its_donor_is(lender: NativeFleet) -> None:
    async def play() -> None:
        expected = await answer(lender.launcher)
        patient = {"chunk_s": PATIENCE_S, "lends": True}
        zygotes = [ZYGOTES.take(), ZYGOTES.take()]
        async with asyncio.timeout(PATIENCE_S):
            await until_digested(lender.launcher)
            with half_way(read_offer(await offer_of(lender.launcher))) as (first, watermark):
                candidates, starts = first, []
                for zygote in zygotes:
                    start = LocalLauncher.start(spec(candidates=[candidates], **patient), zygote)
                    starts.append(asyncio.ensure_future(start))
                    candidates = await zygote.offer()
                assert not any(start.done() for start in starts)
                watermark.rise(watermark.size_bytes)
                middle, last = await asyncio.gather(*starts)
            assert (middle.loaded.origin, last.loaded.origin) == ("unix", "unix")
            assert last.loaded.donor == read_offer(await zygotes[0].offer()).owner
            assert await answer(last) == await answer(middle) == expected
        for zygote in zygotes:
            ZYGOTES.put_back(zygote)

    lender.play(play())


@contextmanager
def half_way(whole: Offer) -> Iterator[tuple[bytes, Watermark]]:
    """A donor that has nothing yet, and gets what another one has when its watermark rises."""
    joined = join(whole, None, wants_memory=True, patience=Patience())
    fd = joined.take_memory()
    assert fd is not None
    view, identity = map_for_reading(fd), joined.accept.identity
    os.close(fd)
    donor, watermark = Donor(), Watermark(identity.size_bytes)
    donor.fill(identity, view, watermark)
    donor.publish(Manifest.of(view))
    try:
        yield donor.offer.to_bytes(), watermark
    finally:
        donor.close()


# -- donors that give nothing, and the disk


def without_weights(directory: Path) -> Path:
    copied = directory / "model"
    shutil.copytree(DEMO_MODEL, copied)
    (copied / "model.safetensors").unlink()
    return copied


def retrained(directory: Path) -> Path:
    """The same in name and shape, other values."""
    copied = directory / "model"
    shutil.copytree(DEMO_MODEL, copied)
    file = copied / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-(1 << 20) :] = bytes(1 << 20)
    file.write_bytes(data)
    return copied


FALLING_BACK: dict[str, tuple[Callable[[Path], LocalSpec], str]] = {
    "another dtype": (lambda _: spec(dtype="bfloat16"), "has another dtype (float32, not bfloat16)"),
    "another model": (lambda path: spec(retrained(path)), "has another model"),
    "no offer at all": (lambda _: spec(candidates=[b"garbage"]), "no offer"),
}


@pytest.mark.parametrize("case", FALLING_BACK)
def test_disk_comes_last(case: str, lender: NativeFleet, tmp_path: Path) -> None:
    make, words = FALLING_BACK[case]

    async def play() -> None:
        how = make(tmp_path)
        if not how.weights.candidates:
            candidates = [await offer_of(lender.launcher)]
            weights = msgspec.structs.replace(how.weights, candidates=candidates)
            how = LocalSpec(how.directory, device="cpu", dtype=how.dtype, kv_bytes=1 << 24, weights=weights)
        async with started(how) as second:
            assert second.loaded.origin == "disk"
            (failure,) = second.loaded.failures
            assert words in failure
            assert len(await answer(second)) == 24

    lender.play(play())


def test_without_donor_and_disk_it_says_why_of_both(lender: NativeFleet, tmp_path: Path) -> None:
    async def play() -> None:
        gone = offer_at("127.0.0.1", _closed_port(), SECRET).to_bytes()
        with pytest.raises(StartError) as caught:
            await LocalLauncher.start(spec(without_weights(tmp_path), candidates=[gone]))
        assert "neither model.safetensors nor" in str(caught.value)
        assert "no donor gave the weights" in str(caught.value)
        assert "does not answer" in str(caught.value)
        assert "\n" not in str(caught.value)
        empty = tmp_path / "empty"
        empty.mkdir()
        with pytest.raises(StartError, match="has no checkpoint, and no donor gives its files"):
            await LocalLauncher.start(spec(empty, candidates=[gone]))

    lender.play(play())


def test_address_that_cannot_be_listened_on_is_said(lender: NativeFleet) -> None:
    async def play() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(StartError, match=f"weights cannot be lent on 127.0.0.1:{port}: "):
                await LocalLauncher.start(spec(lends=True, host="127.0.0.1", port=port))

    lender.play(play())


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_keeper_that_hangs_is_waited_for_so_long_and_no_longer(lender: NativeFleet) -> None:
    async def play() -> None:
        async with started(spec(lends=True)) as hanging:
            offers = [await offer_of(hanging), await offer_of(lender.launcher)]
            pid = _keeper_pid(offers[0])
            os.kill(pid, signal.SIGSTOP)
            try:
                async with started(spec(candidates=offers)) as second:
                    assert "gave no answer within 1 s" in second.loaded.failures[0]
                    assert second.loaded.donor == read_offer(offers[1]).owner
            finally:
                os.kill(pid, signal.SIGCONT)

    lender.play(play())


def _keeper_pid(offer: bytes) -> int:
    found = re.match(r"process (\d+) on ", read_offer(offer).owner)
    assert found is not None
    return int(found[1])


# -- what is left


async def until_gone(pid: int, states: set[str | None]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while process_state(pid) not in states:  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.005)


def test_fleet_outlives_its_keeper(lender: NativeFleet) -> None:
    async def play() -> None:
        async with started(spec(lends=True)) as first:
            offer = await offer_of(first)
            os.kill(_keeper_pid(offer), signal.SIGKILL)
            assert len(await answer(first)) == 24
            await until_gone(_keeper_pid(offer), {None})
            async with started(spec(candidates=[offer])) as second:
                assert second.loaded.origin == "disk"

    lender.play(play())


def test_keeper_ends_with_its_zygote(lender: NativeFleet) -> None:
    async def play() -> None:
        async with started(spec(lends=True)) as first:
            pid = _keeper_pid(await offer_of(first))
            assert process_state(pid) not in {None, "Z"}
            await first.close()
        await until_gone(pid, {None, "Z"})

    lender.play(play())
