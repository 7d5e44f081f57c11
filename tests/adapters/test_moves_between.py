"""Moves between instances of one kind: what every kind keeps to, whoever leaves in the middle."""

from __future__ import annotations

import pytest

from adapters.fleets import GREEDY, Fleet, contract, submission
from adapters.relay import Relay
from hyperflexis.wire.messages import Abandon, FinishReason, Reclaim, Sampling, Stay, Unlink

PROMPT = [11 + i for i in range(40)]
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
    relay.submit(0, submission(1, PROMPT, 40, sampling=sampling))
    await relay.until_heard(1, tokens)
    relay.move(1, target=1)
    await relay.until_ended(1)
    assert relay.homes[1] == 1
    await unmoved(relay, 100, (PROMPT, 40, sampling))
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
