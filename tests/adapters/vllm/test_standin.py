"""The stand-in answers as vLLM was seen to answer; what is checked here was executed against 0.32 first."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import uvloop

from hyperflexis.adapters.vllm.standin.engine import Traits
from hyperflexis.adapters.vllm.standin.server import StandIn


@asynccontextmanager
async def serving(**traits: Any) -> AsyncIterator[tuple[StandIn, aiohttp.ClientSession]]:
    server = StandIn(None, Traits(step_s=0.002, **traits))
    await server.start()
    async with aiohttp.ClientSession() as session:
        yield server, session
    await server.stop()


def body(**fields: Any) -> dict[str, Any]:
    values = {"model": "demo", "prompt": [50, 60], "max_tokens": 4, "temperature": 0, "return_token_ids": True}
    return {**values, **fields}


async def streamed(session: aiohttp.ClientSession, server: StandIn, **fields: Any) -> tuple[int, list[str]]:
    """Status and events of a stream."""
    async with session.post(f"{server.url}/v1/completions", json=body(stream=True, **fields)) as answer:
        text = await answer.text()
        return answer.status, [each.removeprefix("data: ") for each in text.split("\n\n") if each]


async def asked(session: aiohttp.ClientSession, server: StandIn, **fields: Any) -> tuple[int, Any]:
    async with session.post(f"{server.url}/v1/completions", json=body(**fields)) as answer:
        return answer.status, await answer.json()


def test_stream_and_whole_answer_have_the_same_tokens() -> None:
    async def test() -> None:
        async with serving() as (server, session):
            _, whole = await asked(session, server)
            status, events = await streamed(session, server)
            assert (status, events[-1]) == (200, "[DONE]")
            chunks = [json.loads(each)["choices"][0] for each in events[:-1]]
            assert [token for each in chunks for token in each["token_ids"]] == whole["choices"][0]["token_ids"]
            assert [each["finish_reason"] for each in chunks] == [None, None, None, "length"]
            assert chunks[0]["prompt_token_ids"] == [50, 60]

    uvloop.run(test())


def test_overload_is_503_or_an_event_in_a_stream_of_200() -> None:
    async def test() -> None:
        async with serving() as (server, session):
            server.faults.refuse = True
            assert (await asked(session, server))[0] == 503
            status, (error, done) = await streamed(session, server)
            assert (status, json.loads(error)["error"]["code"], done) == (200, 503, "[DONE]")

    uvloop.run(test())


def test_abort_takes_ids_with_prefix_and_index_and_minds_no_others() -> None:
    async def test() -> None:
        async with serving() as (server, session):
            headers = {"X-Request-Id": "x"}
            url = f"{server.url}/v1/completions"
            asking = asyncio.ensure_future(session.post(url, json=body(max_tokens=1000), headers=headers))
            while not server.engine.running:  # noqa: ASYNC110 its steps tell nobody
                await asyncio.sleep(0.002)
            for names in (["x"], ["nobody"], ["cmpl-x-0"]):
                async with session.post(f"{server.url}/abort_requests", json={"request_ids": names}) as answer:
                    assert answer.status == 200
            answer = await asyncio.wait_for(asking, 10.0)
            assert (await answer.json())["choices"][0]["finish_reason"] == "abort"

    uvloop.run(test())


def test_client_that_leaves_ends_its_request() -> None:
    async def test() -> None:
        async with serving() as (server, session):
            answer = await session.post(f"{server.url}/v1/completions", json=body(stream=True, max_tokens=1000))
            await answer.content.readany()
            answer.close()
            while server.live:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            assert len(server.aborted) == 1

    uvloop.run(test())


def test_lower_priority_goes_first_among_those_that_wait() -> None:
    async def test() -> None:
        async with serving(seqs_max=1) as (server, session):
            order: list[int] = []

            async def one(priority: int) -> None:
                await asked(session, server, priority=priority)
                order.append(priority)

            first = asyncio.ensure_future(one(0))
            while not server.engine.running:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            await asyncio.gather(first, one(5), one(-5), one(1))
            assert order == [0, -5, 1, 5]

    uvloop.run(test())


def test_kv_of_one_prompt_answers_another() -> None:
    """The proof that KV is used at all: who gets Y with the parameters of X answers X."""

    async def test() -> None:
        async with serving(has_connector=True) as (first, session), serving(has_connector=True) as (second, _):
            keep = {"do_remote_decode": True, "do_remote_prefill": False}
            _, prefilled = await asked(session, first, max_tokens=1, kv_transfer_params=keep)
            params = prefilled["kv_transfer_params"]
            assert (params["do_remote_prefill"], params["remote_num_tokens"]) == (True, 2)
            _, other = await asked(session, second, prompt=[51, 60], kv_transfer_params=params)
            _, unbroken = await asked(session, first)
            assert other["choices"][0]["token_ids"] == unbroken["choices"][0]["token_ids"]
            status, _ = await asked(session, second, kv_transfer_params=params)
            assert status == 500, "what was fetched once is there no more"

    uvloop.run(test())


def test_gauges_move_only_with_steps() -> None:
    async def test() -> None:
        async with serving() as (server, session):
            server.faults.hang = True
            asking = asyncio.ensure_future(asked(session, server))
            server.faults.hang = False
            server.traits.step_s = 0.2
            while not server.engine.waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            async with session.get(f"{server.url}/metrics") as answer:
                assert 'vllm:num_requests_waiting{engine="0",model_name="demo"} 0.0' in await answer.text()
            server.traits.step_s = 0.001
            await asking

    uvloop.run(test())


def test_flags_that_are_off_there_answer_as_vllm_does() -> None:
    async def test() -> None:
        async with serving() as (server, session):
            for path, status in (("/inference/v1/generate", 403), ("/load", 404)):
                ask = session.post if status == 403 else session.get
                async with ask(server.url + path) as answer:
                    assert answer.status == status
            assert (await asked(session, server, model="other"))[0] == 404
            assert (await asked(session, server, prompt=[9999]))[0] == 400
            assert (await asked(session, server, max_tokens=5000))[0] == 400

    uvloop.run(test())
