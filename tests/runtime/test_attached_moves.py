"""Prefill and decode on two vLLM servers, and requests that leave one of them: the client's tokens are those of one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from hyperflexis.adapters.vllm.standin.engine import Traits
from hyperflexis.core.instance import Role
from hyperflexis.policies import create
from runtime.attached_world import TRAITS, AttachedWorld, live

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED
CONNECTED = replace(TRAITS, has_connector=True, root="/models/demo")


def world_of(roles: Sequence[Role], servers: Sequence[Traits] | None = None, **spec: Any) -> AttachedWorld:
    traits = servers or [CONNECTED] * len(roles)
    values = {"passes_kv": True, **spec}
    return AttachedWorld(traits, roles=roles, policy=create("hyperflexis", 2048, roles="fixed"), **values)


def transfers(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each["kv_transfer_params"] for each in requests if "kv_transfer_params" in each]


@live
async def test_prompt_is_prefilled_by_one_and_decoded_by_the_other() -> None:
    async with world_of([P, D]) as world:
        await world.ready()
        world.crowd(6, 20)
        await world.settle()
        prefill, decode = world.servers
        assert all(each["max_tokens"] == 1 and not each["stream"] for each in prefill.requests)
        assert [each["do_remote_decode"] for each in transfers(prefill.requests)] == [True] * 6
        taken = transfers(decode.requests)
        assert len(taken) == len(decode.requests) == 6
        assert {each["remote_port"] for each in taken} == {prefill.port}
        for client in world.clients:
            assert client.end.verdict is not None
            assert (client.end.verdict.instance, client.end.verdict.migrations) == ("i1", 1)


@live
async def test_answer_of_one_token_needs_no_second_server() -> None:
    async with world_of([P, D]) as world:
        await world.ready()
        world.submit(20, 1)
        await world.settle()
        assert not world.servers[1].requests


@live
async def test_expired_lease_is_never_dispatched(caplog: pytest.LogCaptureFixture) -> None:
    """The server would answer as if nothing were wrong, from blocks that hold something else."""
    async with world_of([P, D], lease_s=1.0) as world:
        await world.ready()
        world.crowd(3, 20)
        await world.settle()
        assert not transfers(world.servers[1].requests)
        assert "its KV may not be kept any more" in caplog.text


@live
async def test_request_that_waits_there_beyond_its_lease_is_computed_anew(caplog: pytest.LogCaptureFixture) -> None:
    """A server fetches the KV when it is a request's turn, which may be long after it was sent."""
    narrow = replace(CONNECTED, seqs_max=1)
    async with world_of([P, D], [CONNECTED, narrow], lease_s=2.2) as world:
        await world.ready()
        first = world.submit([30, 31], 300)
        await first.heard(5)
        world.submit([50, 51], 10)
        await world.settle()
        assert "it waits for its turn, and its KV is not kept" in caplog.text


@live
async def test_stand_in_gives_away_something_else_after_its_lease() -> None:
    """What the guard is for: with a lease that is shorter than configured, the first token shows it."""
    brief = replace(CONNECTED, lease_s=0.0)
    async with world_of([P, D], [brief, CONNECTED]) as world:
        await world.ready()
        world.crowd(3, 20)
        await world.settle()


@live
async def test_first_token_that_differs_is_not_handed_out(caplog: pytest.LogCaptureFixture) -> None:
    async with world_of([P, D]) as world:
        await world.ready()
        world.servers[1].faults.wrong_first_token = True
        world.crowd(3, 20)
        await world.settle()
        assert "otherwise than the server before it; it computes it anew" in caplog.text


@live
async def test_prefilling_server_that_dies_costs_no_answer() -> None:
    async with world_of([P, D, M]) as world:
        await world.ready()
        clients = world.crowd(8, 60)
        await clients[0].heard(2)
        await world.servers[0].stop()
        await world.settle()


@live
async def test_decoding_server_that_dies_costs_no_answer() -> None:
    async with world_of([P, D, M]) as world:
        await world.ready()
        clients = world.crowd(8, 60)
        await clients[0].heard(5)
        await world.servers[1].stop()
        await world.settle()


@live
async def test_kv_that_cannot_be_fetched_is_computed_anew(caplog: pytest.LogCaptureFixture) -> None:
    async with world_of([P, D]) as world:
        await world.ready()
        world.servers[0].engine.kept = _Forgetful()
        world.crowd(3, 20)
        await world.settle()
        assert "as its KV could not be fetched: the server failed: remote KV load failed" in caplog.text


class _Forgetful(dict[str, tuple[list[int], float]]):
    def __setitem__(self, key: str, value: tuple[list[int], float]) -> None:
        """Keep nothing."""


@live
async def test_server_without_a_connector_is_named_and_its_prompts_computed_twice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with world_of([P, D], [replace(CONNECTED, has_connector=False), CONNECTED]) as world:
        await world.ready()
        world.crowd(3, 20)
        await world.settle()
        assert caplog.text.count("it has no connector") == 1


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"version": "0.31.0"}, "vLLM version is 0.31.0 at"),
        ({"root": "/elsewhere/demo"}, "model path is /elsewhere/demo at"),
        ({"block_tokens": 32}, "block size is 32 at"),
    ],
)
@live
async def test_servers_whose_connectors_would_not_agree_are_not_linked(
    other: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with world_of([P, D], [CONNECTED, replace(CONNECTED, **other)]) as world:
        await world.ready()
        assert world.control.links.version(0, 1) is None
        assert f"KV cannot pass: {said}" in caplog.text
        world.crowd(3, 10)
        await world.settle()
        assert not world.servers[1].requests, "who is not linked to the prefilling one gets nothing"


# Moves without KV.


@live
async def test_drained_server_gives_its_running_requests_away() -> None:
    async with world_of([M, M], [TRAITS, TRAITS], passes_kv=False) as world:
        await world.ready()
        clients = world.crowd(4, 300)
        for client in clients:
            await client.heard(5)
        drained = world.control.cluster.requests[clients[0].ticket].instance_id
        assert drained is not None
        world.driver.drain(drained)
        await world.settle()
        verdict = clients[0].end.verdict
        assert verdict is not None
        assert verdict.migrations == 1


@live
async def test_client_that_leaves_while_its_request_moves_frees_both() -> None:
    async with world_of([P, D]) as world:
        await world.ready()
        clients = world.crowd(12, 200)
        for number, client in enumerate(clients):
            await client.heard(1 + number % 3)
            world.driver.cancel(client.ticket)
        await world.settle()
        await asyncio.sleep(0.05)
        for adapter in world.launcher._adapters.values():
            assert not adapter._moves.taking
            assert not adapter._moves._standing
            assert not adapter._running


@live
async def test_sampled_answer_goes_on_with_its_seed_after_a_transfer() -> None:
    """The second server begins where the first one did, so its generator draws the same first token."""
    from hyperflexis.wire.messages import Sampling

    async with world_of([P, D]) as world:
        await world.ready()
        client = world.submit(20, 12, sampling=Sampling(temperature=1.0, seed=77))
        await client.ended()
        assert (client.end.reason, len(client.tokens)) == ("length", 12)
        assert {each["seed"] for server in world.servers for each in server.requests} == {77}
        assert len(world.servers[1].requests) == 1, "it was computed anew"
