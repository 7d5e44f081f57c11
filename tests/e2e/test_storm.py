"""Many clients of every kind at once: each gets a whole answer, and nothing is left over."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import aiohttp
import pytest

from e2e.conftest import START_S, Serving

pytestmark = pytest.mark.slow

PROMPTS = ["def f(", "import os\n", "class A:\n", "x = 1\n" * 60, [5, 6, 7], "\N{SNOWMAN} = "]
STOPS = [None, ["e"], ["\n\n"], ["self", "("]]


def body_of(rng: random.Random) -> dict[str, Any]:
    body: dict[str, Any] = {
        "max_tokens": rng.randint(1, 48),
        "n": rng.choice([1, 1, 2, 4]),
        "stream": rng.random() < 0.6,
        "temperature": rng.choice([0, 0.7, 1.5]),
        "stop": rng.choice(STOPS),
        "slo": {"ttft_ms": rng.choice([50, 5000]), "tpot_ms": rng.choice([5, 500])},
    }
    if rng.random() < 0.3:
        return {**body, "messages": [{"role": "user", "content": "Write a function `f()`."}], "logprobs": True}
    return {**body, "prompt": rng.choice(PROMPTS), "echo": rng.random() < 0.1, "logprobs": rng.choice([None, 2])}


async def ask(session: aiohttp.ClientSession, url: str, number: int) -> None:
    rng = random.Random(number)
    body = body_of(rng)
    path = "chat/completions" if "messages" in body else "completions"
    async with session.post(f"{url}/v1/{path}", json=body) as answer:
        assert answer.status == 200, await answer.text()
        if rng.random() < 0.1:
            return  # Leaves without reading.
        text = await answer.text()
    if not body["stream"]:
        told = json.loads(text)
        assert len(told["choices"]) == body["n"]
        return
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert text.endswith("data: [DONE]\n\n")
    ends = [choice["finish_reason"] for event in events for choice in event.get("choices", ())]
    assert sum(end is not None for end in ends) == body["n"]
    assert "hyperflexis" in events[-1]


async def storm(url: str, requests: int) -> list[dict[str, Any]]:
    gate = asyncio.Semaphore(32)

    async def one(number: int) -> None:
        async with gate, asyncio.timeout(START_S):
            await ask(session, url, number)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(one(number) for number in range(requests)))
        while True:
            async with session.get(f"{url}/ready") as answer:
                instances: list[dict[str, Any]] = (await answer.json())["instances"]
            if not any(one["running_seqs"] + one["waiting_seqs"] for one in instances):
                return instances
            await asyncio.sleep(0.05)


def test_storm_of_mixed_requests_ends_whole(served: tuple[Serving, str]) -> None:
    instances = asyncio.run(asyncio.wait_for(storm(served[1], 300), START_S))
    assert [one["blocks_free"] for one in instances] == [one["blocks"] for one in instances]
