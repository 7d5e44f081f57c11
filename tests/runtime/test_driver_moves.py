"""Requests that move between live instances, in virtual time: every stream gets exactly its tokens, whatever happens.

Hand-offs come of roles. Live migrations are ordered by the test, as a policy would.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import soak
from helpers.virtual_loop import run, virtual
from hyperflexis.adapters.modelled import Ways
from hyperflexis.core.binding import LeastPace
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.control import SWITCH_MAX_S, Policy
from hyperflexis.core.dispatch import SloDispatcher
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Role
from hyperflexis.core.request import RequestState
from hyperflexis.core.roles import RoleChange
from hyperflexis.core.step import StepRules
from hyperflexis.wire.messages import Order, Reclaim, Unlink
from runtime.live_world import Client, ModelledLauncher, World

PREFILL, DECODE, MIXED = Role.PREFILL, Role.DECODE, Role.MIXED
MOVING = {RequestState.WAITING, RequestState.PREFILLING, RequestState.DECODING}


def world_of(*roles: Role, ways: Ways | None = None, **launcher: int) -> World:
    policy = Policy("moving", SloDispatcher(separation=0), StepRules(prefill_tokens_max=64), binder=LeastPace())
    made = ModelledLauncher(ways=ways, **launcher)
    return World(policy=policy, fleet=FleetBounds.fixed(len(roles), roles), launcher=made)


def order_move(world: World, client: Client, target_id: int | None = None) -> int | None:
    """Have a request move, to another instance than it is at; returns where to, or None if it cannot now."""
    control = world.control
    request = control.cluster.requests.get(client.ticket)
    if request is None or request.state not in MOVING or request.id in control.migrations:
        return None
    source = control.cluster.instances[request.instance_id]
    others = [each for each in control.cluster.ready if each is not source and control.migrations.can(source, each)]
    if target_id is not None:
        others = [each for each in others if each.id == target_id]
    if not others:
        return None
    target = others[0]
    world.driver._commands.append(control.migrations.begin(request, target, Reason(Why.RELIEVES), world.loop.time()))
    world.driver._perform()
    return target.id


# -- hand-offs


@pytest.mark.parametrize("prompt", [1, 16, 20, 63, 200])
@virtual
async def test_request_is_prefilled_here_and_decoded_there(prompt: int) -> None:
    with world_of(PREFILL, DECODE) as world:
        await world.ready()
        client = world.submit(prompt, max_tokens=20)
        end = await client.ended()
        assert end.verdict is not None
        assert (end.reason, end.verdict.instance, end.verdict.migrations) == ("length", "i1", 1)
        await world.settle()


@virtual
async def test_answer_of_one_token_is_not_handed_off() -> None:
    with world_of(PREFILL, DECODE) as world:
        await world.ready()
        client = world.submit(100, max_tokens=1)
        end = await client.ended()
        assert end.verdict is not None
        assert (end.verdict.instance, end.verdict.migrations) == ("i0", 0)
        await world.settle()


@virtual
async def test_many_are_handed_off() -> None:
    with world_of(PREFILL, PREFILL, DECODE, DECODE, seqs_max=8, blocks=80) as world:
        await world.ready()
        for number in range(60):
            world.submit([number] * (1 + 7 * number % 150), max_tokens=1 + number % 40, tpot_s=0.05)
            await asyncio.sleep(0.01)
        await world.settle()
        moved = Counter(client.end.verdict.migrations for client in world.clients if client.end.verdict)
        assert moved[1] > 30, "there is not always room"
        assert {client.end.reason for client in world.clients} == {"length"}


@virtual
async def test_offer_spares_the_question() -> None:
    """Bound after its first token, it is pulled without asking a source that may be in a long step."""
    with world_of(PREFILL, DECODE) as world:
        await world.ready()
        said: list[str] = []
        tell = world.launcher.adapters[1].tell
        world.launcher.adapters[1].tell = lambda news: (said.append(type(news).__name__), tell(news))  # type: ignore[method-assign]
        world.control.policy.binder.choose = lambda *_: None  # type: ignore[union-attr, method-assign]
        client = world.submit(100, max_tokens=10)
        await client.heard(1)
        await asyncio.sleep(0.01)
        del world.control.policy.binder.choose  # type: ignore[union-attr]
        await client.ended()
        assert said == []
        await world.settle()


@virtual
async def test_role_that_ends_lets_what_stands_still_go_on() -> None:
    with world_of(PREFILL, DECODE) as world:
        await world.ready()
        world.control.policy.binder.choose = lambda *_: None  # type: ignore[union-attr, method-assign]
        client = world.submit(100, max_tokens=10)
        await client.heard(1)
        await asyncio.sleep(1.0)
        assert world.state(client) is RequestState.STANDING
        assert len(client.tokens) == 1
        source = world.control.cluster.instances[0]
        change = RoleChange(source, MIXED, Reason(Why.BALANCES))
        world.driver._commands.extend(world.control._change_role(change, world.loop.time()))
        world.driver._perform()
        await client.ended()
        await world.settle()
        assert source.rules_in_force == source.rules_version == 2
        assert world.driver.instances()[0].role == "mixed"


# -- live migrations


@pytest.mark.parametrize("tokens", [0, 1, 2, 15, 16, 17, 30])
@virtual
async def test_running_request_moves(tokens: int) -> None:
    with world_of(MIXED, MIXED) as world:
        await world.ready()
        client = world.submit(40, max_tokens=60)
        await client.heard(tokens)
        source = world.instance_of(client)
        target = order_move(world, client)
        assert target not in {None, source}
        end = await client.ended()
        assert end.verdict is not None
        assert (end.verdict.instance, end.verdict.migrations) == (f"i{target}", 1)
        await world.settle()


@virtual
async def test_prefilling_request_moves() -> None:
    with world_of(MIXED, MIXED) as world:
        await world.ready()
        client = world.submit(2000, max_tokens=5)
        await world.until(client, RequestState.PREFILLING)
        order_move(world, client)
        end = await client.ended()
        assert end.verdict is not None
        assert end.verdict.migrations == 1
        await world.settle()


@virtual
async def test_request_moves_there_and_back() -> None:
    with world_of(MIXED, MIXED) as world:
        await world.ready()
        client = world.submit(40, max_tokens=200)
        moves = 0
        while not client.ends:
            await asyncio.sleep(0.05)
            moves += order_move(world, client) is not None
        assert moves > 10
        assert client.end.verdict is not None
        assert moves - client.end.verdict.migrations in {0, 1}, "the last one may come too late"
        await world.settle()


@virtual
async def test_pause_is_a_copy_of_what_is_new_and_not_of_all() -> None:
    """While the long copy is made the sequence goes on."""
    ways = Ways(copy_s=lambda pull: 0.01 * len(pull.source_blocks))
    with world_of(MIXED, MIXED, ways=ways) as world:
        await world.ready()
        client = world.submit(1600, max_tokens=600)
        await client.heard(3)
        heard_s: list[float] = []
        client.when_tokens = lambda: heard_s.append(world.loop.time())
        order_move(world, client)
        await client.ended()
        assert client.end.verdict is not None
        assert client.end.verdict.migrations == 1
        assert max(after - before for before, after in itertools.pairwise(heard_s)) < 0.1
        await world.settle()


# -- what goes wrong


FAULTY = Ways(copy_s=lambda _: 0.2, copy_fault=lambda *_: "bytes were lost")
SLOW = Ways(copy_s=lambda _: 0.2)


@virtual
async def test_copy_that_fails_leaves_it_where_it_is() -> None:
    with world_of(MIXED, MIXED, ways=FAULTY) as world:
        await world.ready()
        client = world.submit(100, max_tokens=100)
        await client.heard(3)
        source = world.instance_of(client)
        order_move(world, client)
        end = await client.ended()
        assert end.verdict is not None
        assert (end.verdict.instance, end.verdict.migrations) == (f"i{source}", 0)
        assert any("bytes were lost" in line for line in world.control.journal)
        await world.settle()


@virtual
async def test_hand_off_that_keeps_failing_is_given_up() -> None:
    with world_of(PREFILL, DECODE, ways=FAULTY) as world:
        await world.ready()
        client = world.submit(100, max_tokens=30)
        end = await client.ended()
        assert end.verdict is not None
        assert (end.verdict.instance, end.verdict.migrations) == ("i0", 0)
        await world.settle()


@virtual
async def test_without_links_everything_stays() -> None:
    with world_of(PREFILL, DECODE, ways=Ways(link_fault="no way")) as world:
        await world.ready()
        client = world.submit(100, max_tokens=30)
        end = await client.ended()
        assert end.verdict is not None
        assert (end.verdict.instance, end.verdict.migrations) == ("i0", 0)
        await world.settle()


@virtual
async def test_there_is_no_room() -> None:
    with world_of(MIXED, MIXED, blocks=12) as world:
        await world.ready()
        clients = [world.submit([number] * 100, max_tokens=60) for number in range(2)]
        for client in clients:
            await client.heard(2)
        order_move(world, clients[0])
        await world.settle()
        assert any("no room" in line for line in world.control.journal)


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5])
@pytest.mark.parametrize("who", ["source", "target", "client"])
@pytest.mark.parametrize("roles", [(MIXED, MIXED, MIXED), (PREFILL, DECODE, DECODE)])
@virtual
async def test_somebody_leaves_in_the_middle(roles: tuple[Role, ...], who: str, after_s: float) -> None:
    with world_of(*roles, ways=SLOW) as world:
        await world.ready()
        client = world.submit(100, max_tokens=100)
        await client.heard(1)
        source = world.instance_of(client)
        target = order_move(world, client)
        if target is None:
            target = next(iter(world.control.migrations.under_way.values())).target.id
        await asyncio.sleep(after_s)
        if who == "client":
            world.driver.cancel(client.ticket)
        else:
            world.launcher.lose({"source": source, "target": target}[who])
        await world.settle()
        assert client.end.reason == ("cancelled" if who == "client" else "length")


@virtual
async def test_target_dies_before_it_has_said_that_it_has_it() -> None:
    """It has adopted the sequence, and dies within the step that would have told: the source still has it."""
    with world_of(MIXED, MIXED, MIXED) as world:
        await world.ready()
        client = world.submit(100, max_tokens=100)
        await client.heard(3)
        target = order_move(world, client)
        assert target is not None
        scheduler = world.launcher.adapters[target].scheduler
        while scheduler.find(client.ticket) is None:  # noqa: ASYNC110 there is no event for it
            await asyncio.sleep(0.0005)
        world.launcher.lose(target)
        await world.settle()
        assert client.end.reason == "length"


@virtual
async def test_switch_that_fails_leaves_the_old_role_working_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """The instance does not hear of its new rules, or refuses them: it goes on as it was, and is known to."""
    with world_of(MIXED, MIXED) as world, caplog.at_level("INFO"):
        await world.ready()
        adapter, instance = world.launcher.adapters[1], world.control.cluster.instances[1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(adapter, "configure", lambda rules, version=0: None)
            change = RoleChange(instance, PREFILL, Reason(Why.BALANCES))
            world.driver._commands.extend(world.control._change_role(change, world.loop.time()))
            world.driver._perform()
            clients = [world.submit(100, max_tokens=100) for _ in range(4)]
            await asyncio.sleep(SWITCH_MAX_S - 1.0)
            assert instance.role is PREFILL
            clients += [world.submit(100, max_tokens=100) for _ in range(4)]
            await asyncio.sleep(1.5)
        assert instance.role is MIXED
        assert "i1 is to be mixed: it has not taken its new role" in caplog.text
        for client in clients:
            await client.ended()
            assert client.end.reason == "length"
        await world.settle()


@virtual
async def test_who_lent_to_an_instance_that_died_takes_its_kv_back() -> None:
    with world_of(MIXED, MIXED) as world:
        await world.ready()
        told: list[Order] = []
        order = world.launcher.adapters[0].order
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(world.launcher.adapters[0], "order", lambda each: (told.append(each), order(each)))
            world.launcher.lose(1)
            await asyncio.sleep(0)
        assert [(type(each), each.peer) for each in told[:2]] in (
            [(Reclaim, 1), (Unlink, 1)],
            [(Unlink, 1), (Reclaim, 1)],
        )
        await world.settle()


# -- everything at once


def storm(number: int, counts: Counter[str]) -> Callable[[], object]:
    chance = random.Random(number)
    roles = chance.choice([(MIXED,) * 2, (MIXED,) * 3, (PREFILL, DECODE), (PREFILL, PREFILL, DECODE, MIXED)])
    fault_share = chance.choice([0.0, 0.0, 0.2])
    ways = Ways(
        copy_s=lambda pull: chance.choice([0.0, 0.001, 0.02, 0.2]),
        copy_fault=lambda *_: "a fault" if chance.random() < fault_share else "",
        link_s=chance.choice([0.0, 0.05]),
    )

    async def weather() -> None:
        blocks = chance.choice([14, 30, 200])
        with world_of(*roles, ways=ways, blocks=blocks, seqs_max=chance.choice([2, 5, 16])) as world:
            await world.ready()
            losses = chance.choice([0, 0, 1, 3])
            for _ in range(chance.randint(20, 80)):
                act = chance.random()
                if act < 0.4:
                    prompt = [chance.randrange(3)] * chance.randint(1, 120)
                    world.submit(prompt, chance.randint(1, 60), ttft_s=0.5, tpot_s=0.05)
                elif act < 0.85 and world.clients:
                    counts["ordered"] += order_move(world, chance.choice(world.clients)) is not None
                elif act < 0.93 and world.clients:
                    world.driver.cancel(chance.choice(world.clients).ticket)
                elif losses and world.launcher.adapters:
                    losses -= 1
                    world.launcher.lose(chance.choice(list(world.launcher.adapters)))
                await asyncio.sleep(chance.choice([0.0, 0.001, 0.01, 0.05, 0.3]))
                for adapter in world.launcher.adapters.values():
                    adapter.scheduler.check()
            await world.settle()
            for line in world.control.journal:
                counts["arrived"] += "arrived=[Arrival" in line
                counts["failed"] += "TransferFailed(" in line

    return weather


@pytest.mark.soak
@pytest.mark.parametrize("worlds", [40, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_storm_loses_and_doubles_nothing(worlds: int) -> None:
    counts: Counter[str] = Counter()

    @settings(max_examples=soak.examples(worlds), deadline=None)
    @given(st.integers(0, 1 << 32))
    def play(number: int) -> None:
        run(storm(number, counts)())

    play()
    assert counts["arrived"] > worlds, counts
    assert counts["failed"] > worlds / 10, counts
