"""Moves between instances of one kind: what every kind keeps to, whoever leaves in the middle."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from adapters.fleets import GREEDY, Fleet, NativeFleet, contract, submission
from adapters.relay import Relay
from hyperflexis.wire.messages import Abandon, ExposeKv, FinishReason, Reclaim, Sampling, Stay, Unlink

PROMPT = [11 + i for i in range(40)]
ANSWER_TOKENS = 160
"""More than are emitted before the words of a move have gone to and fro, however busy the machine is."""
LONG = [11 + i % 50 for i in range(600)]
SAMPLINGS = {
    "greedy": GREEDY,
    "seeded": Sampling(temperature=1.0, seed=1234, top_p=0.95),
    "penalised": Sampling(temperature=0.7, seed=5, repetition_penalty=1.3, presence_penalty=0.4),
    "logprobs": Sampling(temperature=0.0, logprobs=2, prompt_logprobs=True),
}
HANDS_OFF = {"hands_off": True, "prefill_tokens_max": 64}


async def unmoved(relay: Relay, request: int, *submits: tuple[list[int], int, Sampling]) -> None:
    """Give each what nobody disturbs, from `request` on."""
    for number, (prompt, max_tokens, sampling) in enumerate(submits, request):
        relay.submit(0, submission(number, prompt, max_tokens, sampling=sampling))
        await relay.until_ended(number)


def assert_alike(relay: Relay, one: int, other: int) -> None:
    assert relay.tokens[one] == relay.tokens[other]
    for told in (relay.logprobs, relay.prompt_logprobs):
        got, wanted = told.get(one, []), told.get(other, [])
        assert [each.token for each in got] == [each.token for each in wanted]
        assert [each.logprob for each in got] == pytest.approx([each.logprob for each in wanted], abs=1e-3)


@pytest.mark.parametrize("tokens", [0, 1, 5, 17])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
@contract
async def test_moved_request_goes_on_as_if_it_had_stayed(fleet: Fleet, sampling: Sampling, tokens: int) -> None:
    relay = Relay(fleet)
    await relay.linked()
    relay.submit(0, submission(1, PROMPT, ANSWER_TOKENS, sampling=sampling))
    await relay.until_heard(1, tokens)
    relay.move(1, target=1)
    await relay.until_ended(1)
    assert relay.homes[1] == 1
    await unmoved(relay, 100, (PROMPT, ANSWER_TOKENS, sampling))
    assert_alike(relay, 1, 100)
    await relay.check_empty()
    relay.close()


@contract
async def test_prefill_moves_in_the_middle(fleet: Fleet) -> None:
    relay = Relay(fleet)
    await relay.linked()
    for each in relay.instances:
        each.adapter.configure({"prefill_tokens_max": 64, "prefill_tokens_floor": 8})
    relay.submit(0, submission(1, LONG, 10))
    await relay.until(lambda: relay.instances[0].reports)
    relay.move(1, target=1)
    await relay.until_ended(1)
    assert relay.homes[1] == 1
    assert sum(report.prefill_tokens for report in relay.instances[1].reports) < len(LONG)
    await unmoved(relay, 100, (LONG, 10, GREEDY))
    assert_alike(relay, 1, 100)
    await relay.check_empty()
    relay.close()


@contract
async def test_request_that_waits_moves(fleet: Fleet) -> None:
    relay = Relay(fleet)
    await relay.linked()
    relay.instances[0].adapter.configure({"order": "arrival", "prefill_tokens_max": 16})
    relay.submit(0, submission(1, LONG, 4))
    relay.submit(0, submission(2, PROMPT, 4))
    relay.move(2, target=1)
    await relay.until_ended(1, 2)
    assert (relay.homes[1], relay.homes[2]) == (0, 1)
    await unmoved(relay, 100, (PROMPT, 4, GREEDY))
    assert_alike(relay, 2, 100)
    await relay.check_empty()
    relay.close()


@pytest.mark.parametrize("is_early", [True, False])
@contract
async def test_hand_off(fleet: Fleet, is_early: bool) -> None:
    """Called for while it is prefilled, or taken by what was offered with its first token."""
    relay = Relay(fleet)
    await relay.linked()
    relay.instances[0].adapter.configure(HANDS_OFF, 3)
    relay.submit(0, submission(1, LONG, 20))
    if is_early:
        await relay.until(lambda: relay.instances[0].reports[-1:] and relay.instances[0].reports[-1].prefill_tokens)
        relay.move(1, target=1, at_first_token=True)
    await relay.until_heard(1, 1)
    assert relay.instances[0].reports[-1].rules_version == 3
    if not is_early:
        await relay.until(lambda: relay.instances[0].reports[-1].suspended == [1])
        assert list(relay.offers) == [1]
        relay.move(1, target=1, at_first_token=True)
    await relay.until_ended(1)
    assert relay.homes[1] == 1
    assert [report.suspended for report in relay.instances[0].reports if report.suspended] == [[1]]
    assert sum(report.prefill_tokens for report in relay.instances[1].reports) == 0
    relay.instances[0].adapter.configure({})
    await unmoved(relay, 100, (LONG, 20, GREEDY))
    assert_alike(relay, 1, 100)
    await relay.check_empty()
    relay.close()


@contract
async def test_what_was_handed_off_can_stay(fleet: Fleet) -> None:
    relay = Relay(fleet)
    await relay.linked()
    relay.instances[0].adapter.configure(HANDS_OFF)
    relay.submit(0, submission(1, PROMPT, 20))
    await relay.until_heard(1, 1)
    assert len(relay.tokens[1]) == 1
    relay.tell(0, Stay(1))
    await relay.until_ended(1)
    assert [report.resumed for report in relay.instances[0].reports if report.resumed] == [[1]]
    relay.instances[0].adapter.configure({})
    await unmoved(relay, 100, (PROMPT, 20, GREEDY))
    assert_alike(relay, 1, 100)
    await relay.check_empty()
    relay.close()


@contract
async def test_link_of_another_version_is_refused(fleet: Fleet) -> None:
    relay = Relay(fleet)
    await relay.linked(version=2)
    relay.submit(0, submission(1, PROMPT, 60))
    await relay.until_heard(1, 2)
    relay.move(1, target=1, link_version=1)
    await relay.until_settled(1)
    relay.tell(1, Unlink(0, 2))
    relay.move(1, target=1, link_version=2)
    await relay.until_settled(1)
    await relay.until_ended(1)
    assert len(relay.failed[1]) == 2
    assert all("link" in why for why in relay.failed[1])
    assert relay.homes[1] == 0
    assert len(relay.tokens[1]) == 60
    await relay.check_empty()
    relay.close()


@contract
async def test_link_can_be_made_anew(fleet: Fleet) -> None:
    relay = Relay(fleet)
    await relay.linked()
    relay.tell(0, Reclaim(1, 1))
    relay.tell(1, Unlink(0, 1))
    assert await relay.link(0, 1, version=2) == ""
    relay.submit(0, submission(1, PROMPT, 60))
    await relay.until_heard(1, 2)
    relay.move(1, target=1, link_version=2)
    await relay.until_ended(1)
    assert relay.homes[1] == 1
    await relay.check_empty()
    relay.close()


@contract
async def test_move_of_what_is_not_there_fails(fleet: Fleet) -> None:
    relay = Relay(fleet)
    await relay.linked()
    relay.submits[7], relay.homes[7] = submission(7, PROMPT), 0
    relay.move(7, target=1)
    await relay.until_settled(7)
    assert "left its instance" in relay.failed[7][0]
    await relay.check_empty()
    relay.close()


@contract
async def test_move_without_room_fails(fleet: Fleet) -> None:
    relay = Relay(fleet)
    await relay.linked()
    ready = relay.instances[1].ready
    assert ready is not None
    tokens = ready.blocks * ready.block_tokens
    relay.submit(0, submission(1, PROMPT, 30))
    await relay.until_heard(1, 1)
    relay.submits[1] = submission(1, PROMPT, tokens)
    relay.move(1, target=1)
    await relay.until_ended(1)
    assert "no room" in relay.failed[1][0]
    assert (relay.homes[1], len(relay.tokens[1])) == (0, 30)
    await relay.check_empty()
    relay.close()


@contract
async def test_abandoned_move_leaves_it_where_it_was(fleet: Fleet) -> None:
    """Unless it was quicker."""
    relay = Relay(fleet)
    await relay.linked()
    for request in range(1, 9):
        relay.submit(0, submission(request, [request, *PROMPT], 40))
    await relay.until_heard(8, 2)
    for request in range(1, 9):
        relay.move(request, target=1)
        relay.tell(1, Abandon(request))
    await relay.until_ended(*range(1, 9))
    assert not relay.under_way
    for request in range(1, 9):
        assert len(relay.tokens[request]) == 40
        assert relay.homes[request] == (0 if request in relay.failed else 1)
    await relay.check_empty()
    relay.close()


@contract
async def test_cancelled_in_the_middle(fleet: Fleet) -> None:
    relay = Relay(fleet)
    await relay.linked()
    for request in range(1, 9):
        relay.submit(0, submission(request, [request, *PROMPT], 1000))
    await relay.until_heard(8, 2)
    for request in range(1, 9):
        relay.move(request, target=1)
        if request % 2:
            await relay.until_heard(8, len(relay.tokens[8]) + 1)
        for each in reversed(relay.instances):
            each.adapter.cancel(request)
    await relay.until(lambda: not relay.under_way)
    for request in range(1, 9):  # As a control plane does with what has arrived for nobody.
        relay.instances[1].adapter.cancel(request)
    assert not relay.ended
    await relay.check_empty()
    relay.close()


@contract
async def test_source_dies_in_the_middle(fleet: Fleet) -> None:
    """What its target does not have by then is computed elsewhere, from what the client has."""
    relay = Relay(fleet)
    await relay.linked()
    for request in range(1, 6):
        relay.submit(0, submission(request, [request, *PROMPT], 60))
    await relay.until_heard(5, 2)
    for request in range(1, 6):
        relay.move(request, target=1)
    fleet.kill(relay.instances[0].adapter)
    await relay.until(lambda: relay.instances[0].lost)
    for request in range(1, 6):
        relay.tell(1, Abandon(request))
    await relay.until(lambda: not relay.under_way)
    for request in range(1, 6):
        if relay.homes[request] == 0:
            submit = submission(request, [request, *PROMPT], 60, emitted=list(relay.tokens[request]))
            relay.submit(1, submit)
    await relay.until_ended(*range(1, 6))
    for request in range(1, 6):
        relay.submit(1, submission(100 + request, [request, *PROMPT], 60))
        await relay.until_ended(100 + request)
        assert_alike(relay, request, 100 + request)
    await relay.check_empty()
    relay.close()


@contract
async def test_target_dies_in_the_middle(fleet: Fleet) -> None:
    relay = Relay(fleet)
    await relay.linked()
    for request in range(1, 6):
        relay.submit(0, submission(request, [request, *PROMPT], 60))
    await relay.until_heard(5, 2)
    for request in range(1, 6):
        relay.move(request, target=1)
    fleet.kill(relay.instances[1].adapter)
    await relay.until(lambda: relay.instances[1].lost)
    for request, (_, target) in relay.under_way.items():
        assert target == 1
        relay.tell(0, Stay(request))
    staying = list(relay.under_way)
    relay.under_way.clear()
    await relay.until_ended(*staying)
    for request in staying:
        relay.submit(0, submission(100 + request, [request, *PROMPT], 60))
        await relay.until_ended(100 + request)
        assert_alike(relay, request, 100 + request)
        assert relay.instances[0].finished[request] is FinishReason.LENGTH
    await relay.check_empty()
    relay.close()


# -- real processes


CHAOS = [
    *SAMPLINGS.values(),
    Sampling(temperature=1.2, seed=6, top_p=0.9, top_k=30, frequency_penalty=0.3),
    Sampling(temperature=0.9, seed=8, prompt_logprobs=True),
    Sampling(temperature=1.0, seed=9, stop_ids=tuple(range(0, 3000, 40)), min_tokens=4, logit_bias={40: 2.0}),
]


@pytest.fixture(scope="module")
def checking_fleet() -> Iterator[NativeFleet]:
    """Where KV that comes is compared with what was sent."""
    made = NativeFleet(checks_transfers=True)
    yield made
    made.close()


async def _chaos(relay: Relay, chance: random.Random, requests: int) -> None:
    for each in relay.instances:
        each.adapter.configure({"prefill_tokens_max": 96, "prefill_tokens_floor": 16})
    shared = [chance.randrange(3000) for _ in range(200)]
    for request in range(1, requests + 1):
        own = [chance.randrange(3000) for _ in range(chance.randint(1, 300))]
        prompt = shared[: chance.choice([0, 0, 64, 200])] + own
        submit = submission(request, prompt, chance.randint(1, 60), sampling=chance.choice(CHAOS))
        relay.submit(chance.randrange(len(relay.instances)), submit)
    while len(relay.ended) < requests:
        still = [i for i in range(1, requests + 1) if i not in relay.ended and i not in relay.under_way]
        if still:
            request = chance.choice(still)
            others = [each.number for each in relay.instances if each.number != relay.homes[request]]
            relay.move(request, target=chance.choice(others))
            if chance.random() < 0.1:
                relay.tell(relay.under_way[request][1], Abandon(request))
        await asyncio.sleep(chance.choice([0.0, 0.0, 0.002, 0.02]))
    await relay.until(lambda: not relay.under_way)


async def _compare(relay: Relay, requests: int) -> None:
    relay.instances[0].adapter.configure({})
    for request in range(1, requests + 1):
        submit = relay.submits[request]
        await unmoved(relay, 1000 + request, (submit.prompt, submit.max_tokens, submit.sampling))
        assert_alike(relay, request, 1000 + request)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_processes_move_requests_at_random(native_fleet: NativeFleet, seed: int) -> None:
    async def play() -> None:
        relay = Relay(native_fleet, instances=3)
        await relay.linked()
        await _chaos(relay, random.Random(seed), 24)
        assert relay.moves - sum(map(len, relay.failed.values())) > 20
        await _compare(relay, 24)
        await relay.check_empty()
        relay.close()

    native_fleet.play(play())


@pytest.mark.slow
def test_processes_check_what_has_come(checking_fleet: NativeFleet) -> None:
    async def play() -> None:
        relay = Relay(checking_fleet)
        await relay.linked()
        await _chaos(relay, random.Random(1), 8)
        assert not any("arrived" in why for whys in relay.failed.values() for why in whys)
        await _compare(relay, 8)
        relay.close()

    checking_fleet.play(play())


@pytest.mark.slow
def test_process_that_has_taken_its_kv_back_is_not_read(native_fleet: NativeFleet) -> None:
    """The lease is revoked between the order and the copy, or recycled: the request goes on where it is."""

    async def play() -> None:
        relay = Relay(native_fleet)
        await relay.linked()
        relay.submit(0, submission(1, LONG, 200))
        await relay.until_heard(1, 1)
        relay.tell(0, Reclaim(1, 1))
        relay.move(1, target=1)
        await relay.until_settled(1)
        assert "was revoked" in relay.failed[1][0]
        await relay.until(lambda: relay.instances[1].links[0])
        assert await relay.link(0, 1, version=2) == ""
        relay.passes_descriptors = False
        relay.tell(0, ExposeKv(1, 3))
        await relay.until(lambda: relay.instances[0].exposed[-1].version == 3)
        relay.move(1, target=1, link_version=2)
        await relay.until_ended(1)
        assert "been recycled" in relay.failed[1][1]
        assert len(relay.tokens[1]) == 200
        await relay.check_empty()
        relay.close()

    native_fleet.play(play())
