"""Whatever vLLM servers do while they serve: no request is lost, and nobody takes half an answer for a whole one."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest

from hyperflexis.adapters.vllm.probe import TokenProbe
from hyperflexis.adapters.vllm.standin.server import StandIn
from hyperflexis.cli.attached import AttachedFleet
from hyperflexis.runtime.launchers.attached import AttachedLauncher, AttachError, AttachSpec, Target
from hyperflexis.wire.messages import Sampling
from runtime.attached_world import DEMO_MODEL, QUICK, TRAITS, AttachedWorld, live


@live
async def test_streams_get_exactly_their_tokens() -> None:
    async with AttachedWorld() as world:
        await world.ready()
        world.crowd(12, 20)
        await world.settle()
        assert all(server.requests for server in world.servers), "one server has got everything"


@live
async def test_client_that_leaves_frees_the_server() -> None:
    async with AttachedWorld(1) as world:
        await world.ready()
        client = world.submit(20, 1500)
        await client.heard(3)
        world.driver.cancel(client.ticket)
        await world.settle()
        assert len(world.servers[0].aborted) == 1
        assert client.end.reason == "cancelled"


# Losses.


@live
async def test_server_that_dies_loses_no_request() -> None:
    async with AttachedWorld() as world:
        await world.ready()
        clients = world.crowd(8, 60)
        await clients[0].heard(5)
        await world.server_of(clients[0]).stop()
        await world.settle()


@live
async def test_server_that_comes_back_is_attached_again() -> None:
    async with AttachedWorld(1) as world:
        await world.ready()
        clients = world.crowd(4, 40)
        await clients[0].heard(5)
        await world.servers[0].stop()
        await world.ready(0)
        await world.servers[0].start()
        await world.settle()


@live
async def test_restart_on_the_same_port_loses_no_request() -> None:
    async with AttachedWorld(1) as world:
        await world.ready()
        clients = world.crowd(4, 60)
        await clients[0].heard(5)
        await world.servers[0].restart()
        await world.settle()


@live
async def test_restart_that_broke_nothing_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """With nothing running there, the metrics are all that tells."""
    async with AttachedWorld(1) as world:
        await world.ready()
        world.servers[0].engine.started_s += 5.0
        while "it was restarted behind" not in caplog.text:  # noqa: ASYNC110 logs tell nobody
            await asyncio.sleep(0.01)
        world.submit()
        await world.settle()


@live
async def test_hung_server_is_lost_although_it_closes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with AttachedWorld() as world:
        await world.ready()
        clients = world.crowd(6, 80)
        await clients[0].heard(5)
        hung = world.server_of(clients[0])
        hung.faults.hang = True
        for client in clients:
            await client.ended()
        assert f"it hangs: nothing came from {hung.url}" in caplog.text
        hung.faults.hang = False
        await world.settle()


@live
async def test_request_that_its_server_has_forgotten_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """While others are answered, and at the same server if there is no other."""
    async with AttachedWorld(1, watch=QUICK._replace(stalled_s=0.3)) as world:
        await world.ready()
        clients = world.crowd(3, 60)
        await clients[0].heard(5)
        server = world.servers[0]
        server.faults.mute = True
        while not any(job.is_mute for job in server.engine.running.values()):  # noqa: ASYNC110 nobody tells
            await asyncio.sleep(0.001)
        server.faults.mute = False
        clients += world.crowd(3, 60)
        await world.settle()
        assert "leaves request 0 standing: no token for" in caplog.text
        assert len(world.control.cluster.ready) == 1


@live
async def test_server_that_says_it_is_ill_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    async with AttachedWorld() as world:
        await world.ready()
        clients = world.crowd(4, 80)
        await clients[0].heard(5)
        world.server_of(clients[0]).faults.unhealthy = True
        await world.settle()
        assert "not healthy (HTTP 503)" in caplog.text


@live
async def test_metrics_that_fail_neither_block_nor_lose() -> None:
    async with AttachedWorld(1) as world:
        await world.ready()
        world.servers[0].faults.no_metrics = True
        world.crowd(3, 60)
        await world.settle()
        await asyncio.sleep(5 * QUICK.metrics_s)
        assert len(world.control.cluster.ready) == 1


# Refusals and broken streams of servers that live on.


@live
async def test_refused_request_goes_elsewhere() -> None:
    async with AttachedWorld() as world:
        await world.ready()
        world.servers[0].faults.refuse = True
        world.crowd(6, 10)
        await world.settle()
        assert len(world.servers[1].requests) == 6


@live
async def test_request_that_all_refuse_waits_until_one_takes_it() -> None:
    async with AttachedWorld() as world:
        await world.ready()
        for server in world.servers:
            server.faults.refuse = True
        clients = world.crowd(4, 10)
        await asyncio.sleep(0.4)
        asked = sum(len(server.requests) for server in world.servers)
        assert not any(client.ends for client in clients)
        assert asked < 40, "servers that take no more are asked again and again"
        for server in world.servers:
            server.faults.refuse = False
        await world.settle()


@live
async def test_overload_is_waited_out_in_order_of_places() -> None:
    """One place to run and one to wait: the rest is refused, and comes in time."""
    async with AttachedWorld([replace(TRAITS, seqs_max=1, queued_max=1)]) as world:
        await world.ready()
        world.crowd(8, 5)
        await world.settle()


@pytest.mark.parametrize("fault", ["cut", "done_without_reason", "abort"])
@live
async def test_half_answer_is_never_taken_for_a_whole_one(fault: str) -> None:
    async with AttachedWorld() as world:
        await world.ready()
        clients = world.crowd(4, 60)
        await clients[0].heard(5)
        broken = world.server_of(clients[0])
        setattr(broken.faults, fault, True)
        await world.settle()
        assert all(len(client.tokens) == 60 for client in clients)


@live
async def test_request_that_breaks_every_stream_is_given_up() -> None:
    async with AttachedWorld() as world:
        await world.ready()
        for server in world.servers:
            server.faults.cut = True
        client = world.submit()
        end = await client.ended()
        assert (end.reason, end.status) == ("rejected", 503)
        assert "gave it back" in end.message
        assert sum(len(server.requests) for server in world.servers) == 4


@live
async def test_what_vllm_will_never_compute_fails_with_its_words() -> None:
    async with AttachedWorld(1) as world:
        await world.ready()
        client = world.submit(20, 5, sampling=Sampling(temperature=0.0, logprobs=50))
        end = await client.ended()
        assert end.reason == "failed"
        assert end.message == f"vLLM at {world.servers[0].url} refuses it: Requested sample logprobs of more than 20"


# Servers that come and go by request.


@live
async def test_servers_are_attached_and_detached_while_others_serve() -> None:
    async with AttachedWorld() as world:
        await world.ready()
        fleet = AttachedFleet(world.driver, world.launcher, moves_requests=False)
        third = StandIn(DEMO_MODEL, replace(TRAITS))
        await third.start()
        world.servers.append(third)
        fleet.attach(f"{third.url}/v1/", "mixed")
        await world.ready(3)
        clients = world.crowd(9, 60)
        await clients[0].heard(3)
        assert third.requests
        assert fleet.detach("i0")
        await world.settle()
        await world.driver.wait_until(lambda: len(world.driver.instances()) == 2)
        assert sorted(status.name for status in world.driver.instances()) == ["i1", "i2"]
        asked = len(world.servers[0].requests)
        world.crowd(6, 5)
        await world.settle()
        assert len(world.servers[0].requests) == asked, "a server that was detached is asked again"
        assert fleet.detach("i1")
        assert not fleet.detach("i1")
        with pytest.raises(ValueError, match="it is the last one"):
            fleet.detach("i2")


@live
async def test_server_that_never_answered_is_detached_too() -> None:
    async with AttachedWorld(1) as world:
        await world.ready()
        fleet = AttachedFleet(world.driver, world.launcher, moves_requests=False)
        fleet.attach("http://127.0.0.1:9", "mixed")
        assert fleet.detach("i1")
        assert [status.name for status in world.driver.instances()] == ["i0"]
        world.submit()
        await world.settle()


@live
async def test_what_cannot_be_attached_is_said() -> None:
    async with AttachedWorld(1) as world:
        await world.ready()
        fleet = AttachedFleet(world.driver, world.launcher, moves_requests=False)
        for url, role, said in (
            (world.servers[0].url, "mixed", "is attached already"),
            ("10.0.0.1", "mixed", "should be the address of a server"),
            ("http://a", "cook", "its role should be one of prefill, decode, mixed"),
            ("http://a", "decode", "the servers here have no roles"),
        ):
            with pytest.raises(ValueError, match=said):
                fleet.attach(url, role)
        assert not fleet.detach("nobody")


# Who stands behind a URL.


@live
async def test_other_model_behind_a_url_is_no_instance(caplog: pytest.LogCaptureFixture) -> None:
    async with AttachedWorld([TRAITS, replace(TRAITS, model="other")]) as world:
        await world.ready(1)
        while "serves other, not demo" not in caplog.text:  # noqa: ASYNC110 logs tell nobody
            await asyncio.sleep(0.01)
        world.submit()
        await world.settle()
        assert not world.servers[1].requests


@live
async def test_server_that_comes_back_with_another_model_is_no_instance(caplog: pytest.LogCaptureFixture) -> None:
    async with AttachedWorld() as world:
        await world.ready()
        clients = world.crowd(4, 60)
        await clients[0].heard(5)
        changed = world.server_of(clients[0])
        changed.traits.model = "other"
        await changed.restart()
        await world.settle()
        assert "serves other, not demo: the URL leads to another server" in caplog.text
        assert len(world.control.cluster.ready) == 1


@live
async def test_model_that_is_unloaded_while_it_serves_loses_the_instance(caplog: pytest.LogCaptureFixture) -> None:
    async with AttachedWorld() as world:
        await world.ready()
        world.servers[0].traits.model = "other"
        world.crowd(4, 10)
        await world.settle()
        assert "does not serve demo any more" in caplog.text


@live
async def test_server_of_another_version_is_named_and_serves(caplog: pytest.LogCaptureFixture) -> None:
    async with AttachedWorld([TRAITS, replace(TRAITS, version="0.31.0")]) as world:
        await world.ready()
        world.crowd(8, 5)
        await world.settle()
        assert f"{world.servers[1].url} is vLLM 0.31.0, others are {TRAITS.version}" in caplog.text


async def _refusal(world: AttachedWorld, **spec: object) -> AttachError:
    with pytest.raises(AttachError) as caught:
        await AttachedLauncher.start(AttachSpec([Target(world.servers[0].url)], watch=QUICK, **spec))
    return caught.value


@live
async def test_start_fails_where_every_server_is_a_wrong_one() -> None:
    async with AttachedWorld([replace(TRAITS, api_key="secret")], begins=False) as world:
        error = await _refusal(world)
        assert "asks for an API key, or for another one: set vllm.api_key_file" in str(error)
        assert "asks for an API key" in str(await _refusal(world, api_key="wrong"))
        launcher = await AttachedLauncher.start(AttachSpec([Target(world.servers[0].url)], api_key="secret"))
        await launcher.close()


@live
async def test_other_tokenizer_is_found_out() -> None:
    async with AttachedWorld(1, begins=False) as world:
        error = await _refusal(world, tokens=TokenProbe("def walk(tree):", [1, 2, 3]))
        assert "has another tokenizer than the one given here" in str(error)
        assert "[1, 2, 3]... here" in str(error)


@live
async def test_what_is_no_vllm_is_said_to_be_none() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(AttachError, match="is no vLLM server: /v1/models gives HTTP 200 and no list of models"):
        await AttachedLauncher.start(AttachSpec([Target(f"http://127.0.0.1:{port}")], watch=QUICK))
    server.close()


@live
async def test_server_without_metrics_is_attached_with_what_is_assumed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hyperflexis.adapters.vllm")
    async with AttachedWorld(1, begins=False) as world:
        world.servers[0].faults.no_metrics = True
        await world.begin()
        await world.ready()
        assert "it has no metrics" in caplog.text
        assert "16384 tokens in blocks of 16 are assumed" in caplog.text
        assert world.driver.instances()[0].blocks == 1024
        world.crowd(3, 10)
        await world.settle()
