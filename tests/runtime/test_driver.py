"""The driver in virtual time: every stream gets exactly its tokens, whatever dies, leaves or is refused around it."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.builders import H100_8B
from helpers.virtual_loop import run, virtual
from hyperflexis.adapters.contract import Adapter, Listener
from hyperflexis.core.commands import Command
from hyperflexis.core.control import TRIES_MAX
from hyperflexis.core.events import Event, InstanceLost, RequestArrived
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Role
from hyperflexis.core.request import RequestState
from hyperflexis.wire.messages import FinishReason, Sampling, StepReport, TokenLogprobs
from runtime.live_world import BLOCK_TOKENS, STARTUP_S, Client, ModelledLauncher, World, generate

DAY_S = 86_400.0


# -- tokens


@virtual
async def test_stream_gets_exactly_its_tokens() -> None:
    with World() as world:
        client = world.submit(prompt=100, max_tokens=30)
        end = await client.ended()
        assert client.tokens == client.expected
        assert (end.reason, end.status, end.message) == ("length", 200, "")
        assert end.verdict is not None
        assert (end.verdict.timeline.tokens, end.verdict.migrations, end.verdict.instance) == (30, 0, "i0")
        await world.settle()


@virtual
async def test_stop_id_ends_a_stream_with_itself() -> None:
    with World() as world:
        stop_id = generate_tokens(20, 10)[6]
        client = world.submit(20, 10, sampling=Sampling(stop_ids=(stop_id,)))
        assert (await client.ended()).reason == "stop"
        assert client.tokens == client.expected[:7]
        await world.settle()


@virtual
async def test_prefix_that_is_there_already_is_said_at_the_end() -> None:
    with World(instances=1) as world:
        first = world.submit(prompt=100)
        assert (await first.ended()).cached_tokens == 0
        second = world.submit(prompt=100)
        assert (await second.ended()).cached_tokens == 100 // BLOCK_TOKENS * BLOCK_TOKENS
        await world.settle()


@virtual
async def test_observer_sees_every_event_with_its_commands_and_the_name_of_what_arrives() -> None:
    seen: list[tuple[float, Event, list[Command], str]] = []
    with World(instances=1, observers=[lambda *line: seen.append(line)]) as world:
        await world.submit(20, 3, name="cmpl-1").ended()
        await world.settle()
        told = [
            line
            for now, event, commands, _ in seen
            for line in (f"{now!r} {event!r}", *(f"  {each!r}" for each in commands))
        ]
        assert told == world.control.journal
        assert [name for _, event, _, name in seen if isinstance(event, RequestArrived)] == ["cmpl-1"]
        assert {name for _, event, _, name in seen if not isinstance(event, RequestArrived)} == {""}


@virtual
async def test_observer_sees_what_the_control_plane_fails_at() -> None:
    seen: list[tuple[float, Event, list[Command], str]] = []
    with World(instances=1, observers=[lambda *line: seen.append(line)]) as world:
        await world.ready()
        with pytest.raises(KeyError):
            world.driver._feed(InstanceLost(99))
        assert seen[-1][1:] == (InstanceLost(99), [], "")


@virtual
async def test_whole_day_of_requests() -> None:
    chance = random.Random(1)
    fleet = FleetBounds.fixed(3)
    with World(fleet=fleet, launcher=ModelledLauncher(model=H100_8B), prefill_tokens_max=512) as world:
        await world.ready()
        while world.loop.time() < DAY_S:
            for _ in range(chance.choice((1, 1, 1, 6))):
                prompt = [chance.randrange(1000) for _ in range(chance.randint(1, 300))]
                world.submit(prompt, chance.randint(1, 12), ttft_s=0.5, tpot_s=0.02)
            await asyncio.sleep(chance.expovariate(1 / 120.0))
        await world.settle()
        assert len(world.clients) > 1000
        assert {client.end.reason for client in world.clients} == {"length"}
        assert all(client.end.verdict.attained for client in world.clients if client.end.verdict)


@virtual
async def test_preempted_request_goes_on_as_if_nothing_had_been() -> None:
    """The pool holds one of them whole, and all of them only at first."""
    with World(instances=1, launcher=ModelledLauncher(blocks=12)) as world:
        for number in range(4):
            world.submit([number] * 40, max_tokens=100)
        await world.settle()
        assert any("preempted=[" in line and "preempted=[]" not in line for line in world.control.journal)


def generate_tokens(prompt: int, max_tokens: int) -> list[int]:
    return Client(generate(prompt, max_tokens)).expected


# -- losses


@pytest.mark.parametrize("tokens_before", [0, 1, 7])
@virtual
async def test_stream_goes_on_when_its_instance_is_lost(tokens_before: int) -> None:
    with World() as world:
        await world.ready()
        client = world.submit(prompt=150, max_tokens=20)
        await world.until(client, RequestState.PREFILLING)
        await client.heard(tokens_before)
        world.launcher.lose(world.instance_of(client))
        end = await client.ended()
        assert client.tokens == client.expected
        assert end.verdict is not None
        assert (end.verdict.migrations, end.verdict.instance) == (1, "i1")
        await world.settle()


@virtual
async def test_request_is_given_up_when_it_has_seen_too_many_instances_die() -> None:
    with World(instances=1) as world:
        client = world.submit(max_tokens=50)
        for deaths in range(TRIES_MAX):
            await world.until(client, RequestState.DECODING)
            assert len(client.tokens) > deaths
            world.launcher.lose(world.instance_of(client))
        end = await client.ended()
        assert (end.reason, end.status, end.retry_after_s) == ("rejected", 503, None)
        assert "every instance that had it died" in end.message
        await world.settle()


@virtual
async def test_stream_survives_as_many_deaths_as_are_allowed() -> None:
    with World(instances=1) as world:
        client = world.submit(max_tokens=50)
        for _ in range(TRIES_MAX - 1):
            await world.until(client, RequestState.DECODING)
            world.launcher.lose(world.instance_of(client))
        end = await client.ended()
        assert client.tokens == client.expected
        assert end.verdict is not None
        assert end.verdict.migrations == TRIES_MAX - 1
        await world.settle()


@virtual
async def test_streams_wait_while_no_instance_is_left() -> None:
    with World(instances=3) as world:
        await world.ready()
        clients = [world.submit([number] * 30, max_tokens=20) for number in range(9)]
        await world.until(clients[0], RequestState.DECODING)
        for instance_id in list(world.launcher.adapters):
            world.launcher.lose(instance_id)
        assert not world.driver.is_ready()
        assert {world.state(client) for client in clients} == {RequestState.QUEUED}
        await world.settle()
        assert {client.end.reason for client in clients} == {"length"}
        assert world.driver.is_ready()


@virtual
async def test_lost_instance_is_replaced_at_once() -> None:
    with World(instances=2) as world:
        await world.ready()
        await asyncio.sleep(10.0)
        world.launcher.lose(0)
        assert world.launcher.launched_s[2:] == [world.loop.time()]
        await world.ready()
        assert [status.name for status in world.driver.instances()] == ["i1", "i2"]


# -- instances that do not start


@virtual
async def test_failing_starts_are_tried_ever_more_rarely_and_then_given_up() -> None:
    launcher = ModelledLauncher(failing=lambda ordinal: True)
    with World(fleet=FleetBounds.fixed(1, launch_attempts_max=4, launch_backoff_s=1.0), launcher=launcher) as world:
        clients = [world.submit() for _ in range(3)]
        await world.driver.wait_until(world.driver.has_given_up)
        assert launcher.launched_s == pytest.approx(
            [0.0, 1.0 + STARTUP_S, 3.0 + 2 * STARTUP_S, 7.0 + 3 * STARTUP_S], abs=1e-6
        )
        clients.append(world.submit())
        for client in clients:
            end = await client.ended()
            assert (end.reason, end.status) == ("rejected", 503)
            assert "instances keep failing to start" in end.message
        await world.settle()
        await asyncio.sleep(DAY_S)
        assert len(launcher.launched_s) == 4


@virtual
async def test_starts_go_on_being_tried_while_another_instance_serves() -> None:
    launcher = ModelledLauncher(failing=lambda ordinal: 0 < ordinal < 9)
    with World(fleet=FleetBounds.fixed(2, launch_attempts_max=3, launch_backoff_s=1.0), launcher=launcher) as world:
        await world.driver.wait_until(lambda: world.driver.ready_instances == 2)
        assert len(launcher.launched_s) == 10
        pauses_s = [after - before for before, after in pairwise(launcher.launched_s[1:])]
        assert pauses_s == pytest.approx([2.0**tried + STARTUP_S for tried in range(8)], abs=1e-6)


@virtual
async def test_failed_starts_are_forgotten_once_one_succeeds() -> None:
    launcher = ModelledLauncher(failing=lambda ordinal: ordinal not in (2, 5))
    with World(fleet=FleetBounds.fixed(1, launch_attempts_max=3), launcher=launcher) as world:
        client = world.submit()
        await client.ended()
        assert client.tokens == client.expected
        launcher.lose(2)
        again = world.submit()
        await again.ended()
        assert again.tokens == again.expected
        assert not world.driver.has_given_up()
        await world.settle()


class Exhausted:
    """A launcher of a process that has no file descriptor left, for a while."""

    def __init__(self, inner: ModelledLauncher, failures: int) -> None:
        self.inner = inner
        self.failures = failures

    def launch(self, instance_id: int, role: Role, listener: Listener) -> Adapter:
        if self.failures:
            self.failures -= 1
            raise OSError(24, "Too many open files")
        return self.inner.launch(instance_id, role, listener)


@virtual
async def test_launch_that_raises_is_a_failed_start() -> None:
    launcher = ModelledLauncher()
    with World(instances=1, launcher=launcher) as world:
        world.driver._launcher = Exhausted(launcher, failures=2)
        launcher.lose(0)
        client = world.submit()
        await client.ended()
        assert client.tokens == client.expected
        assert any("InstanceLost" in line and "Too many open files" in line for line in world.control.journal)
        await world.settle()


# -- cancels


STAGES = [RequestState.QUEUED, RequestState.WAITING, RequestState.PREFILLING, RequestState.DECODING]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.value)
@virtual
async def test_cancel_ends_a_request_at_any_stage(stage: RequestState) -> None:
    with World() as world:
        if stage is not RequestState.QUEUED:
            await world.ready()
        client = world.submit(prompt=300, max_tokens=2000)
        await world.until(client, stage)
        world.driver.cancel(client.ticket)
        assert client.end.reason == "cancelled", "the end is heard at once"
        assert (client.end.verdict is not None) == (stage is RequestState.DECODING)
        world.driver.cancel(client.ticket)
        await world.settle()


@virtual
async def test_cancel_right_after_submitting() -> None:
    with World() as world:
        await world.ready()
        client = world.submit()
        world.driver.cancel(client.ticket)
        world.driver.cancel(client.ticket)
        assert (await client.ended()).reason == "cancelled"
        await world.settle()


@pytest.mark.parametrize("count", [1, 5, 10])
@virtual
async def test_cancel_from_inside_on_tokens(count: int) -> None:
    """As for a stop string; also on the last token, which the instance takes for an end by length."""
    with World() as world:
        client = world.submit(max_tokens=10)
        client.when_tokens = lambda: world.driver.cancel(client.ticket) if len(client.tokens) == count else None
        end = await client.ended()
        assert end.reason == "cancelled"
        assert end.verdict is not None
        assert end.verdict.timeline.tokens == count
        await world.settle()
        assert len(client.tokens) == count


@virtual
async def test_cancel_and_submit_from_inside_on_end() -> None:
    with World() as world:
        client = world.submit()
        later: list[Client] = []

        def again() -> None:
            world.driver.cancel(client.ticket)
            later.append(world.submit())

        client.when_ended = again
        assert (await client.ended()).reason == "length"
        assert (await later[0].ended()).reason == "length"
        await world.settle()


@virtual
async def test_cancel_of_all_others_from_inside_on_tokens() -> None:
    """One step's report carries tokens of many; those cancelled on the way get nothing of it any more."""
    with World(instances=1) as world:
        clients = [world.submit([number] * 10, max_tokens=20) for number in range(5)]

        def leave() -> None:
            if len(clients[0].tokens) == 3:
                for other in clients[1:]:
                    world.driver.cancel(other.ticket)

        clients[0].when_tokens = leave
        await world.settle()
        assert [client.end.reason for client in clients] == ["length", *["cancelled"] * 4]


@virtual
async def test_refused_request_may_cancel_another_that_is_dispatched_in_the_same_turn() -> None:
    """Choices of one answer: when the first is given up, its sibling's new dispatch is not performed yet."""
    with World(instances=5) as world:
        await world.ready()
        first = world.submit([1] * 30, max_tokens=200)
        for _ in range(TRIES_MAX - 1):
            await world.until(first, RequestState.DECODING)
            world.launcher.lose(world.instance_of(first))
        siblings = [world.submit([number] * 30, max_tokens=200) for number in range(2, 20)]
        await world.until(first, RequestState.DECODING)  # And no further, or it would be tried on.
        sibling = next(each for each in siblings if world.instance_of(each) == world.instance_of(first))
        first.when_ended = lambda: world.driver.cancel(sibling.ticket)
        world.launcher.lose(world.instance_of(first))
        assert (await first.ended()).reason == "rejected"
        assert (await sibling.ended()).reason == "cancelled"
        await world.settle()


def test_cancel_of_an_unknown_ticket_is_ignored() -> None:
    async def main() -> None:
        with World() as world:
            world.driver.cancel(12345)
            await world.ready()

    run(main())


# -- refusals


@virtual
async def test_who_rather_hears_no_is_told_at_once_and_when_to_come_back() -> None:
    with World(instances=1) as world:
        await world.ready()
        world.submit([1] * 300, max_tokens=4, ttft_s=9.0)
        await asyncio.sleep(0.001)
        refused = world.submit([2] * 30, max_tokens=4, ttft_s=0.035, refuses_late=True)
        assert (await refused.ended()).status == 429
        assert refused.end.reason == "rejected"
        assert refused.end.retry_after_s is not None
        assert refused.end.retry_after_s > 0
        assert "its promises could not be kept" in refused.end.message
        assert not refused.tokens
        await world.settle()


@virtual
async def test_too_many_requests_are_told_when_to_come_back() -> None:
    with World(instances=1, requests_max=3) as world:
        await world.ready()
        clients = [world.submit([number] * 30, max_tokens=40) for number in range(5)]
        await asyncio.sleep(0.001)
        for client in clients[3:]:
            assert (client.end.reason, client.end.status) == ("rejected", 429)
            assert client.end.retry_after_s is not None
            assert client.end.retry_after_s > 0
            assert "requests_max=3" in client.end.message
        await world.settle()
        assert [client.end.reason for client in clients[:3]] == ["length"] * 3


@virtual
async def test_a_more_important_request_takes_the_place_of_one_that_has_no_token() -> None:
    with World(instances=1, requests_max=3) as world:
        await world.ready()
        first = world.submit([1] * 30, max_tokens=40)
        await world.until(first, RequestState.DECODING)
        waiting = world.submit([2] * 30, max_tokens=40)
        part = world.submit([3] * 30, max_tokens=40, is_part=True)
        urgent = world.submit([4] * 30, max_tokens=40, priority=1)
        assert (waiting.end.reason, waiting.end.status) == ("rejected", 429)
        assert waiting.end.retry_after_s is not None
        assert "a more important one has come" in waiting.end.message
        assert not waiting.tokens
        await world.settle()
        assert [client.end.reason for client in (first, part, urgent)] == ["length"] * 3


@virtual
async def test_request_that_no_instance_could_hold_is_refused() -> None:
    with World(launcher=ModelledLauncher(blocks=10)) as world:
        await world.ready()
        whole = world.submit(prompt=100, max_tokens=60)
        too_large = world.submit(prompt=100, max_tokens=61)
        end = await too_large.ended()
        assert (end.reason, end.status) == ("rejected", 400)
        assert "no instance could hold it (tokens=161)" in end.message
        assert (await whole.ended()).reason == "length"
        await world.settle()


class Scripted:
    """Instances that only do what their test makes their listeners hear."""

    def __init__(self, inner: ModelledLauncher) -> None:
        self.inner = inner
        self.listeners: list[Listener] = []

    def launch(self, instance_id: int, role: Role, listener: Listener) -> Adapter:
        self.listeners.append(listener)
        asyncio.get_running_loop().call_soon(listener.on_ready, self.inner.ready)
        return ScriptedAdapter()


class ScriptedAdapter:
    def submit(self, submit: object) -> None:
        pass

    def cancel(self, request_id: int) -> None:
        pass

    def configure(self, rules: object) -> None:
        pass

    def close(self) -> None:
        pass


def step_report(**fields: object) -> StepReport:
    zero = {
        "duration_s": 0.01,
        **dict.fromkeys(("prefill_tokens", "prefill_pairs", "decode_seqs", "context_tokens"), 0),
        **dict.fromkeys(("waiting_seqs", "waiting_tokens", "running_seqs", "blocks_free"), 0),
        **{name: [] for name in ("requests", "tokens", "finished", "reasons", "started", "cached_tokens", "preempted")},
        "began": [],
        "steps": 1,
    }
    return StepReport(**zero | fields)


def scripted_world() -> tuple[World, Scripted]:
    world = World(instances=1)
    launcher = Scripted(world.launcher)
    world.driver._launcher = launcher
    return world, launcher


@virtual
async def test_what_an_instance_cannot_compute_fails_with_its_words() -> None:
    world, launcher = scripted_world()
    with world:
        client = world.submit()
        await world.until(client, RequestState.WAITING)
        launcher.listeners[0].on_report(
            step_report(finished=[client.ticket], reasons=[FinishReason.FAILED], errors={client.ticket: "not finite"})
        )
        end = await client.ended()
        assert (end.reason, end.status, end.message, end.verdict) == ("failed", 500, "not finite", None)
        assert world.driver.live_requests == 0


@virtual
async def test_prompt_logprobs_come_once_and_before_the_first_token() -> None:
    world, launcher = scripted_world()
    with world:
        client = world.submit(prompt=3, sampling=Sampling(prompt_logprobs=True))
        await world.until(client, RequestState.WAITING)
        read = [TokenLogprobs(10, -1.0, [], []), TokenLogprobs(17, -2.0, [], [])]
        ticket = client.ticket
        (listener,) = launcher.listeners
        listener.on_report(step_report(started=[ticket], cached_tokens=[0]))
        listener.on_report(step_report(requests=[ticket], tokens=[64], prompt_logprobs={ticket: read}))
        listener.on_report(step_report(requests=[ticket], tokens=[5], prompt_logprobs={ticket: read}))
        assert client.prompt_logprobs == read
        assert client.tokens == [64, 5]
        assert client.strays == []


@virtual
async def test_step_may_yield_several_tokens_of_a_request() -> None:
    world, launcher = scripted_world()
    with world:
        client = world.submit()
        await world.until(client, RequestState.WAITING)
        ticket = client.ticket
        (listener,) = launcher.listeners
        begun = {"started": [ticket], "cached_tokens": [0], "began": [ticket]}
        listener.on_report(step_report(**begun, requests=[ticket] * 3, tokens=[1, 2, 3]))
        listener.on_report(
            step_report(requests=[ticket] * 2, tokens=[4, 5], finished=[ticket], reasons=[FinishReason.STOP])
        )
        assert client.tokens == [1, 2, 3, 4, 5]
        assert client.end.reason == "stop"
        assert client.end.verdict is not None
        assert client.end.verdict.timeline.tokens == 5


@virtual
async def test_step_that_is_not_told_yet_still_gives_its_tokens_and_ends() -> None:
    """Clients hear of every step, the control plane of a few at a time; in the end both know the same."""
    world, launcher = scripted_world()
    with world:
        client = world.submit()
        await world.until(client, RequestState.WAITING)
        ticket = client.ticket
        (listener,) = launcher.listeners
        begun = {"started": [ticket], "cached_tokens": [0], "began": [ticket]}
        listener.on_report(step_report(**begun, requests=[ticket], tokens=[1]))
        for token in (2, 3):
            listener.on_report(step_report(requests=[ticket], tokens=[token], steps=0))
        assert client.tokens == [1, 2, 3]
        assert world.control.cluster.requests[ticket].emitted_tokens == 1
        listener.on_report(step_report(requests=[ticket], tokens=[4], steps=3))
        assert world.control.cluster.requests[ticket].emitted_tokens == 4
        listener.on_report(step_report(requests=[ticket], tokens=[5], steps=0))
        world.driver.cancel(ticket)
        assert client.end.verdict is not None
        assert client.end.verdict.timeline.tokens == 5


# -- the end


@virtual
async def test_close_ends_every_stream_once() -> None:
    with World(instances=1) as world:
        await world.ready()
        decoding = world.submit(prompt=10, max_tokens=50)
        await world.until(decoding, RequestState.DECODING)
        waiting = world.submit(prompt=900, max_tokens=50)
        await world.until(waiting, RequestState.WAITING)
        unheard = world.submit()
        had = list(decoding.tokens)
        world.driver.close()
        world.driver.close()
        late = world.submit()
        await asyncio.sleep(60.0)
        for client in (decoding, waiting, unheard, late):
            client.check()
            assert (client.end.reason, client.end.status) == ("failed", 503)
            assert "shutting down" in client.end.message
        assert decoding.tokens == had
        assert not world.driver.is_ready()
        assert world.driver.instances() == []
        assert world.driver.live_requests == 0


@pytest.mark.parametrize("moment", ["tokens", "end"])
@virtual
async def test_close_from_inside_a_sink(moment: str) -> None:
    with World(instances=1) as world:
        clients = [world.submit([number] * 10, max_tokens=5 + number) for number in range(4)]
        if moment == "tokens":
            clients[0].when_tokens = world.driver.close
        else:
            clients[0].when_ended = world.driver.close
        for client in clients:
            await client.ended()
        await asyncio.sleep(60.0)
        for client in clients:
            client.check()


@virtual
async def test_instances_that_come_after_the_close_are_not_heard() -> None:
    world = World()
    with world:
        pass
    await asyncio.sleep(60.0)
    assert len(world.launcher.launched_s) == 2


# -- clients that are broken


@pytest.mark.parametrize("moment", ["tokens", "end"])
@virtual
async def test_sink_that_raises_harms_nobody_else(moment: str, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise KeyError("a bug in one answer")

    with World(instances=1) as world:
        clients = [world.submit([number] * 10, max_tokens=10) for number in range(4)]
        broken = clients[1]
        if moment == "tokens":
            broken.when_tokens = fail
        else:
            broken.when_ended = fail
        with caplog.at_level(logging.ERROR):
            await world.settle()
        assert [client.end.reason for client in (clients[0], *clients[2:])] == ["length"] * 3
        assert broken.end.reason == ("cancelled" if moment == "tokens" else "length")
        (record,) = caplog.records
        assert f"request {broken.ticket} " in record.getMessage()
        assert record.exc_info is not None


@virtual
async def test_impossible_request_is_the_callers_error() -> None:
    with World() as world:
        client = Client(generate(ttft_s=-1.0))
        with pytest.raises(ValueError, match="ttft_s"):
            world.driver.submit(client.request, client)
        assert world.driver.live_requests == 0


# -- what operators see


@virtual
async def test_instances_are_shown_from_their_start_to_their_end() -> None:
    with World(instances=1) as world:
        (status,) = world.driver.instances()
        assert (status.name, status.state, status.role, status.blocks) == ("i0", "starting", "mixed", 0)
        assert not world.driver.is_ready()
        await world.ready()
        (status,) = world.driver.instances()
        assert (status.state, status.blocks, status.blocks_free, status.running_seqs) == ("ready", 200, 200, 0)
        client = world.submit(prompt=30, max_tokens=30)
        await world.until(client, RequestState.DECODING)
        (status,) = world.driver.instances()
        assert (status.running_seqs, status.waiting_seqs, status.blocks_free) == (1, 0, 198)
        await world.settle()
        (status,) = world.driver.instances()
        assert (status.running_seqs, status.blocks_free) == (0, 200)


@virtual
async def test_several_may_wait_for_the_same_condition() -> None:
    with World(instances=2) as world:
        waiters = [world.driver.wait_until(lambda: world.driver.ready_instances == 2) for _ in range(3)]
        await asyncio.gather(*waiters)
        assert world.loop.time() == STARTUP_S


# -- random worlds


@dataclass(frozen=True)
class Scenario:
    """`jobs`: (arrives, prompt tokens, max tokens, cancelled after or None). `losses`: (instant, which that live)."""

    instances: int
    jobs: list[tuple[float, int, int, float | None]]
    losses: list[tuple[float, int]]
    failing: frozenset[int]
    policy: str


INSTANTS = st.floats(0.0, 2.0).map(lambda second: round(second, 4))
ARRIVALS = st.sampled_from((0.0, 0.1, 0.5)) | INSTANTS
"""Often together, so that they compete for blocks."""
SCENARIOS = st.builds(
    Scenario,
    instances=st.integers(1, 3),
    jobs=st.lists(
        st.tuples(ARRIVALS, st.integers(1, 180), st.integers(1, 70), st.none() | INSTANTS), min_size=1, max_size=10
    ),
    losses=st.lists(st.tuples(ARRIVALS, st.integers(0, 2)), max_size=6),
    failing=st.frozensets(st.integers(0, 8), max_size=5),
    policy=st.sampled_from(["hyperflexis", "round_robin"]),
)


async def play(scenario: Scenario) -> tuple[list[str], list[Client]]:
    """Returns the journal of decisions and the clients."""
    launcher = ModelledLauncher(blocks=16, seqs_max=4, failing=scenario.failing.__contains__)
    fleet = FleetBounds.fixed(scenario.instances)
    with World(fleet=fleet, launcher=launcher, prefill_tokens_max=48, policy=scenario.policy) as world:

        def arrive(number: int, prompt: int, max_tokens: int, cancelled_s: float | None) -> None:
            client = world.submit([number] * prompt, max_tokens, ttft_s=0.3, tpot_s=0.02 if number % 2 else None)
            if cancelled_s is not None:
                world.loop.call_later(cancelled_s, world.driver.cancel, client.ticket)

        def lose(which: int) -> None:
            living = sorted(launcher.adapters)
            if living:
                launcher.lose(living[which % len(living)])

        for number, (arrives_s, *job) in enumerate(scenario.jobs):
            world.loop.call_later(arrives_s, arrive, number, *job)
        for lost_s, which in scenario.losses:
            world.loop.call_later(lost_s, lose, which)
        await asyncio.sleep(2.5)
        await world.settle()
        assert len(world.clients) == len(scenario.jobs)
        return world.control.journal, world.clients


@given(SCENARIOS)
@settings(max_examples=60)
def test_random_worlds_end_every_stream_once_with_its_own_tokens(scenario: Scenario) -> None:
    _, clients = run(play(scenario))
    wanted_cancel = {number for number, job in enumerate(scenario.jobs) if job[3] is not None}
    for client in clients:
        if client.end.reason == "cancelled":
            assert client.request.prompt[0] in wanted_cancel
        elif client.end.reason == "rejected":
            assert len(scenario.losses) >= TRIES_MAX or len(scenario.failing) + len(scenario.losses) >= 5
        else:
            assert client.end.reason == "length"


@given(SCENARIOS)
@settings(max_examples=15)
def test_same_world_gives_the_same_commands(scenario: Scenario) -> None:
    first, _ = run(play(scenario))
    second, _ = run(play(scenario))
    assert "\n".join(first).encode() == "\n".join(second).encode()
