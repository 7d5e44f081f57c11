"""Real vLLM behind our control plane: answers are those of one server, and KV passes from the first to the second.

Few and one after the other: a server with NIXL keeps a core busy all the time.
"""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
import uvloop
from attached_servers import any_url, pair_urls

from hyperflexis.adapters.vllm.watch import WatchRules
from hyperflexis.core.control import ControlPlane, Policy
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Role
from hyperflexis.policies import create
from hyperflexis.runtime.driver import Driver
from hyperflexis.runtime.launchers.attached import AttachedLauncher, AttachSpec, Target
from hyperflexis.wire.messages import GenerateRequest, Sampling
from runtime.live_world import Client

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

LEASE_S = 120.0
PATIENT = WatchRules(silence_s=60.0)
"""Servers that share two cores with NIXL's own threads have been silent for 16 s at their first transfer."""
PROMPTS = [[70 + (7 * place + number) % 900 for place in range(200 + 20 * number)] for number in range(5)]


def play(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test())


class Attached:
    """A driver over servers of these roles."""

    def __init__(self, targets: Sequence[Target], policy: Policy, **spec: Any) -> None:
        self._spec = AttachSpec(targets, watch=PATIENT, **spec)
        self._policy = policy

    async def __aenter__(self) -> Attached:
        self.launcher = await AttachedLauncher.start(self._spec)
        bounds = FleetBounds.fixed(len(self._spec.targets), [target.role for target in self._spec.targets])
        self.control = ControlPlane(self._policy, bounds)
        self.driver = Driver(self.control, self.launcher, self.launcher.block_tokens)
        self.driver.start()
        while len(self.control.cluster.ready) < len(self._spec.targets):  # noqa: ASYNC110 links tell nobody
            await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.driver.close()
        await self.launcher.close()

    async def ask(self, prompt: list[int], max_tokens: int = 16) -> Client:
        request = GenerateRequest(prompt, max_tokens, Sampling(temperature=0.0))
        client = Client(request)
        client.ticket = self.driver.submit(request, client)
        await client.ended()
        assert client.end.reason == "length", client.end
        return client


def alone(url: str, prompt: list[int], max_tokens: int = 16) -> list[int]:
    """What that server answers whoever asks it directly."""
    body = {"model": model_of(url), "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0}
    body |= {"ignore_eos": True, "return_token_ids": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        tokens: list[int] = json.load(answer)["choices"][0]["token_ids"]
    return tokens


def model_of(url: str) -> str:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
        return str(json.load(answer)["data"][0]["id"])


def fetched_tokens(url: str) -> float:
    """Prompt tokens whose KV came from elsewhere, so far."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        page = answer.read().decode()
    line = r'^vllm:prompt_tokens_by_source_total\{[^}]*source="external_kv_transfer"[^}]*\} (\S+)'
    return sum(float(value) for value in re.findall(line, page, re.MULTILINE))


def test_answers_are_those_of_the_server_alone(request: pytest.FixtureRequest) -> None:
    url = any_url(request)

    async def test() -> None:
        async with Attached([Target(url)], create("hyperflexis", 2048)) as fleet:
            clients = await asyncio.gather(*(fleet.ask(prompt) for prompt in PROMPTS))
        for client in clients:
            assert client.tokens == await asyncio.to_thread(alone, url, client.request.prompt)

    play(test)


def test_prefill_on_one_and_decode_on_the_other_is_one_answer(request: pytest.FixtureRequest) -> None:
    first, second = pair_urls(request)
    targets = [Target(first, Role.PREFILL), Target(second, Role.DECODE)]
    policy = create("hyperflexis", 2048, roles="fixed")

    async def test() -> None:
        before = await asyncio.to_thread(fetched_tokens, second)
        async with Attached(targets, policy, passes_kv=True, lease_s=LEASE_S) as fleet:
            for prompt in PROMPTS:
                client = await fleet.ask(prompt)
                assert client.end.verdict is not None
                assert client.end.verdict.migrations == 1
                assert client.tokens == await asyncio.to_thread(alone, first, prompt)
        assert await asyncio.to_thread(fetched_tokens, second) > before

    play(test)


def test_prompt_is_computed_anew_once_its_lease_may_be_over(request: pytest.FixtureRequest) -> None:
    first, second = pair_urls(request)
    targets = [Target(first, Role.PREFILL), Target(second, Role.DECODE)]
    policy = create("hyperflexis", 2048, roles="fixed")
    prompt = [1000 + place for place in range(300)]

    async def test() -> None:
        before = await asyncio.to_thread(fetched_tokens, second)
        async with Attached(targets, policy, passes_kv=True, lease_s=0.5) as fleet:
            client = await fleet.ask(prompt)
        assert client.tokens == await asyncio.to_thread(alone, first, prompt)
        assert await asyncio.to_thread(fetched_tokens, second) == before

    play(test)
