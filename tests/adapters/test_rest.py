"""Sleep: memory goes back, work does not get lost, and whoever wakes answers as before."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.fleets import Fleet, Heard, NativeFleet, contract, submission
from hyperflexis.adapters.native import rest
from hyperflexis.wire.messages import Asleep, Awake, ExposeKv, LinkFailed, LinkTo, News, Sleep, Wake

PROMPT = list(range(11, 91))


async def said(heard: Heard, count: int) -> News:
    """The news of this number."""
    await heard.until(lambda: len(heard.news) >= count)
    assert len(heard.news) == count
    return heard.news[-1]


# -- all kinds of instances


@pytest.mark.parametrize("level", [1, 2])
@contract
async def test_sleeps_wakes_and_answers_as_before(fleet: Fleet, level: int) -> None:
    heard = Heard()
    adapter = fleet.start(heard)
    await heard.until_ready()
    adapter.submit(submission(1, PROMPT))
    await heard.until_finished(1)
    adapter.order(Sleep(level))
    asleep = await said(heard, 1)
    assert isinstance(asleep, Asleep)
    assert (asleep.level, asleep.why) == (level, "")
    adapter.order(Wake())
    awake = await said(heard, 2)
    assert isinstance(awake, Awake)
    assert awake.why == ""
    adapter.submit(submission(2, PROMPT))
    await heard.until_finished(2)
    assert heard.tokens[2] == heard.tokens[1]
    (started,) = [report for report in heard.reports if 2 in report.started]
    assert started.cached_tokens == [0], "what was in the KV is gone"
    adapter.close()


@contract
async def test_whoever_has_work_stays_awake_and_says_so(fleet: Fleet) -> None:
    heard = Heard()
    adapter = fleet.start(heard)
    await heard.until_ready()
    adapter.submit(submission(1, PROMPT, 8))
    adapter.order(Sleep())
    awake = await said(heard, 1)
    assert isinstance(awake, Awake)
    assert awake.why == "it holds 1 requests and expects 0"
    await heard.until_finished(1)
    assert len(heard.tokens[1]) == 8
    adapter.close()


@pytest.mark.parametrize("level", [1, 2])
@contract
async def test_work_wakes_a_sleeper(fleet: Fleet, level: int) -> None:
    heard = Heard()
    adapter = fleet.start(heard)
    await heard.until_ready()
    adapter.order(Sleep(level))
    await said(heard, 1)
    adapter.submit(submission(1, PROMPT))
    await heard.until_finished(1)
    assert isinstance(heard.news[-1], Awake)
    assert len(heard.news) == 2, "it says so once"
    adapter.close()


@contract
async def test_sleep_can_be_deepened_and_is_not_made_lighter(fleet: Fleet) -> None:
    heard = Heard()
    adapter = fleet.start(heard)
    await heard.until_ready()
    for number, (level, then) in enumerate([(1, 1), (2, 2), (1, 2)], 1):
        adapter.order(Sleep(level))
        asleep = await said(heard, number)
        assert isinstance(asleep, Asleep)
        assert asleep.level == then
    adapter.order(Wake())
    adapter.order(Wake())
    await heard.until(lambda: len(heard.news) == 5)
    assert all(isinstance(news, Awake) for news in heard.news[3:]), "to be woken twice is to be awake"
    adapter.close()


# -- processes

native = pytest.mark.parametrize("fleet", [pytest.param("native", marks=pytest.mark.slow)], indirect=True)


def rss_kb(pid: int, mapping: str) -> int:
    total, is_wanted = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        name = line.split(maxsplit=1)[0]
        if "-" in name:
            is_wanted = mapping in line
        elif is_wanted and name == "Rss:":
            total += int(line.split()[1])
    return total


@native
@contract
async def test_memory_goes_back(fleet: NativeFleet) -> None:
    heard = Heard()
    adapter = fleet.start(heard)
    await heard.until_ready()
    adapter.submit(submission(1, PROMPT * 10, 4))
    await heard.until_finished(1)
    pid = fleet.pid(adapter)
    kv_kb, weights_kb = rss_kb(pid, "hyperflexis-kv"), rss_kb(pid, "hyperflexis-weights")
    assert kv_kb > 1000
    assert weights_kb > 0
    adapter.order(Sleep(1))
    light = await said(heard, 1)
    assert rss_kb(pid, "hyperflexis-kv") == 0
    assert rss_kb(pid, "hyperflexis-weights") > 0
    assert isinstance(light, Asleep)
    assert light.freed_bytes >= kv_kb * 1024
    adapter.order(Sleep(2))
    deep = await said(heard, 2)
    assert rss_kb(pid, "hyperflexis-weights") == 0
    assert isinstance(deep, Asleep)
    assert deep.freed_bytes >= fleet.launcher.loaded.arena_bytes, "small models have a copy of their own"
    adapter.close()


@native
@contract
async def test_sleeper_makes_no_links(fleet: NativeFleet) -> None:
    heard = Heard()
    adapter = fleet.start(heard)
    await heard.until_ready()
    adapter.order(Sleep())
    await said(heard, 1)
    adapter.order(ExposeKv(7, 3))
    adapter.order(LinkTo(7, 3, b""))
    await heard.until(lambda: len(heard.news) == 3)
    assert heard.news[1:] == [
        LinkFailed(7, 3, "it is asleep", is_lender=True),
        LinkFailed(7, 3, "it is asleep", is_lender=False),
    ]
    adapter.close()


@native
@contract
async def test_unknown_level_is_refused(fleet: NativeFleet) -> None:
    heard = Heard()
    adapter = fleet.start(heard)
    await heard.until_ready()
    adapter.order(Sleep(3))
    awake = await said(heard, 1)
    assert isinstance(awake, Awake)
    assert awake.why == "there is no level 3"
    adapter.close()


def test_whoever_cannot_have_its_memory_stays_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        bytes = 2 << 30

    class Runner:
        pool = Pool()

    sleeper = rest.Rest(Runner(), object(), None, model=None, device="cpu", flat=None)  # type: ignore[arg-type]  # only sizes
    monkeypatch.setattr(rest, "available_bytes", lambda: 1 << 30)
    assert sleeper.refusal() == "", "who is awake has it"
    sleeper.level = 1
    assert sleeper.refusal() == "its KV takes 2.00 GiB and 1.00 GiB are available"
