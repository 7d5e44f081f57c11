"""Requests go out at their instants whatever becomes of others, and times count from there. Exact: time is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import pytest

from bench.scripted_server import DONE, Script, ScriptedServer, paced, token
from helpers.virtual_loop import run
from hyperflexis.bench.answer import Answer, End
from hyperflexis.bench.endpoint import Endpoint
from hyperflexis.bench.load import EARLY_S, START_S, Limits, Load, Promise
from hyperflexis.bench.prompts import IDS, Prompts
from hyperflexis.sim.job import Job

ENDPOINT = Endpoint("http://x", "/v1/completions", "tiny", IDS, {"stream": True})
PROMISES = {"chat": Promise({"x-slo-ttft-ms": "100"}), "code": Promise(members={"service_tier": "code"})}
ABOUT = {"abs": 2 * EARLY_S}


def job(at_s: float, tokens: int = 3, service_class: str = "chat", **more: Any) -> Job:
    return Job(at_s, 20, tokens, service_class, **more)


def played(
    script: Callable[[Any], Script], jobs: Sequence[Job], limits: Limits | None = None, until_s: float = 1e9
) -> tuple[list[Answer], ScriptedServer, Load]:
    server = ScriptedServer(script)

    async def play() -> Load:
        clock = asyncio.get_running_loop().time
        load = Load(server, ENDPOINT, Prompts(IDS, 16, 0), PROMISES, clock=clock, limits=limits or Limits())  # type: ignore[arg-type]
        await load.play(jobs, until_s)
        return load

    load = run(play())
    return load.answers, server, load


def test_pace_of_a_server_is_what_is_measured() -> None:
    answers, _, _ = played(paced(0.25, 0.02), [job(at_s, 51) for at_s in (0.0, 0.1, 7.0)])
    for each in answers:
        assert each.end is End.DONE
        assert (each.tokens, each.prompt_tokens_counted) == (51, 20)
        assert each.ttft_s == pytest.approx(0.25, **ABOUT)
        assert each.tpot_s == pytest.approx(0.02, **ABOUT)
        assert each.e2e_s == pytest.approx(1.25, **ABOUT)


def test_nothing_waits_for_answers() -> None:
    """A thousand requests within a second, to a server that takes a minute."""
    jobs = [job(index / 1000, 1) for index in range(1000)]
    answers, server, _ = played(paced(60.0, 0.0), jobs)
    for index, asked in enumerate(server.asked):
        assert asked.at_s - START_S == pytest.approx(index / 1000, **ABOUT)
    assert {each.end for each in answers} == {End.DONE}


def test_times_count_from_the_instant_where_there_is_no_room() -> None:
    """One at a time: the second is sent when the first has ended, and its first token is as late as its client sees."""
    answers, _, _ = played(paced(1.0, 1.0), [job(0.0, 2), job(0.5, 2)], Limits(requests_max=1))
    assert [each.sent_s for each in answers] == pytest.approx([0.0, 2.0], **ABOUT)
    assert [each.ttft_s for each in answers] == pytest.approx([1.0, 2.5], **ABOUT)


def test_each_class_is_sent_what_it_is_promised() -> None:
    _, server, _ = played(paced(0.1, 0.1), [job(0.0), job(1.0, 5, "code")])
    chat, code = server.asked
    assert chat.headers == {"x-slo-ttft-ms": "100"}
    assert code.headers == {}
    assert (code.body["service_tier"], code.body["max_tokens"], len(code.body["prompt"])) == ("code", 5, 20)
    assert "service_tier" not in chat.body


def test_request_is_given_up_in_time() -> None:
    answers, _, _ = played(paced(1.0, 1.0), [job(0.0, 100)], Limits(timeout_s=5.5))
    (cut,) = answers
    assert (cut.end, cut.why, cut.tokens) == (End.CUT, "timeout", 5)
    assert cut.ended_s == pytest.approx(5.5, **ABOUT)


def test_ends_are_told_apart() -> None:
    scripts = iter(
        [
            Script(status=429, text="later", headers={"Retry-After": "3"}),
            Script(fault=aiohttp.ServerDisconnectedError()),
            Script([(0.1, token())], fault=aiohttp.ClientPayloadError("gone")),
            Script([(0.1, token("x", "length") + DONE)]),
        ]
    )
    answers, _, _ = played(lambda _: next(scripts), [job(float(at_s)) for at_s in range(4)])
    assert [each.end for each in answers] == [End.REFUSED, End.FAILED, End.CUT, End.DONE]
    assert answers[0].retry_after_s == 3.0
    assert answers[2].said == "gone"


def test_turns_follow_the_answer_before_them() -> None:
    def turn(number: int) -> Callable[[float], Job | None]:
        return lambda ended_s: job(ended_s + 2.0, 2, follow_up=turn(number + 1)) if number < 2 else None

    answers, server, _ = played(paced(1.0, 1.0), [job(0.0, 2, follow_up=turn(0)), job(3.0, 2)])
    assert [each.due_s for each in answers] == pytest.approx([0.0, 3.0, 4.0, 8.0], **ABOUT)
    assert len({tuple(asked.body["prompt"]) for asked in server.asked}) == 4
    shorter, _, _ = played(paced(1.0, 1.0), [job(0.0, 2, follow_up=turn(0))], until_s=5.0)
    assert len(shorter) == 2


def test_lateness_of_the_loop_is_noticed() -> None:
    async def play() -> Load:
        loop = asyncio.get_running_loop()
        late_s = [0.0]

        def clock() -> float:
            return loop.time() + late_s[0]

        server = ScriptedServer(paced(1.0, 0.0))
        load = Load(server, ENDPOINT, Prompts(IDS, 16, 0), PROMISES, clock=clock, limits=Limits())  # type: ignore[arg-type]
        loop.call_later(0.57, late_s.__setitem__, 0, 0.3)
        await load.play([job(0.0)], 1e9)
        return load

    assert max(run(play()).behind_s) == pytest.approx(0.3)
