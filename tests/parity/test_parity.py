"""Whatever comes, the control plane decides live exactly what it decides in simulation: command for command, with the
same reasons and numbers, at the same instants."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.builders import A100_14B, H100_8B
from hyperflexis.core.commands import Cancel, Conclude, Dispatch, Drain, Hold, Launch, Migrate, Reject, Stop
from hyperflexis.core.instance import Role
from hyperflexis.core.latency import LatencyModel
from hyperflexis.policies import POLICIES
from parity.two_bodies import CLASSES, Ask, World, check_parity, through

PREFILL, DECODE, MIXED = Role.PREFILL, Role.DECODE, Role.MIXED


def slower(model: LatencyModel, share: float) -> LatencyModel:
    return LatencyModel(*(getattr(model, name) * share for name in LatencyModel.__dataclass_fields__))


WORLD = World(H100_8B)
TIGHT = World(A100_14B, slower(A100_14B, 1.1))
"""Where promises bind, and the model is wrong."""


def drawn(seed: int, requests: int, rate: float, *, leave: float = 0.0, prefixes: int = 3) -> list[Ask]:
    """A workload of all classes, some of whose prompts begin alike."""
    rng = random.Random(seed)
    heads = [tuple(rng.randrange(1000) for _ in range(rng.choice((64, 200, 700)))) for _ in range(prefixes)]
    asks, at_s = [], 0.0
    for _ in range(requests):
        at_s += rng.expovariate(rate)
        head = rng.choice(heads)[: rng.randrange(800)] if rng.random() < 0.4 else ()
        prompt = (*head, *(rng.randrange(1000) for _ in range(rng.choice((1, 20, 150, 900)))))
        leaves_after_s = rng.uniform(0.0, 2.0) if rng.random() < leave else None
        asks.append(Ask(at_s, prompt, rng.choice((1, 2, 15, 90, 300)), rng.choice(list(CLASSES)), leaves_after_s))
    return asks


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_decides_alike(policy: str) -> None:
    commands = check_parity(drawn(1, 120, 30.0, leave=0.1), through(TIGHT, policy=policy, instances=3))
    kinds = Counter(type(command) for _, command in commands)
    assert kinds[Launch] == 3
    assert kinds[Dispatch] + kinds[Reject] == 120
    assert kinds[Conclude] + kinds[Reject] == 120


@pytest.mark.parametrize("runs_through", [False, True])
def test_steady_load(runs_through: bool) -> None:
    check_parity(drawn(2, 200, 40.0), through(WORLD, runs_through=runs_through))


def test_bursts_at_one_instant() -> None:
    asks = [
        Ask(burst * 0.5, (burst, *range(20 * (i % 5) + 1)), 1 + 7 * (i % 9), list(CLASSES)[i % len(CLASSES)])
        for burst in range(6)
        for i in range(25)
    ]
    check_parity(asks, WORLD)
    check_parity(asks, through(TIGHT, instances=3))


def test_equal_prompts_share_their_prefix() -> None:
    prompts = [tuple(range(start, start + 640)) for start in (0, 5000)]
    asks = [Ask(0.03 * i, (*prompts[i % 2], i), 40, "code") for i in range(60)]
    commands = check_parity(asks, through(TIGHT, policy="prefix_affinity"))
    assert len({command.instance_id for _, command in commands if isinstance(command, Dispatch)}) == 2


def test_requests_wait_for_the_first_instance() -> None:
    commands = check_parity(drawn(3, 40, 50.0, leave=0.3), through(WORLD, startup_s=1.0))
    assert any(isinstance(command, Hold) for _, command in commands)
    assert any(isinstance(command, Conclude) and command.verdict is None for _, command in commands)


def test_clients_leave() -> None:
    commands = check_parity(drawn(4, 200, 40.0, leave=0.6), TIGHT)
    assert sum(isinstance(command, Cancel) for _, command in commands) > 20


def test_blocks_run_out() -> None:
    """Requests fall back and are computed again. No prefix is shared: the simulator knows no content of answers."""
    check_parity(drawn(5, 120, 30.0, leave=0.1), through(TIGHT, blocks=220, shares_prefixes=False))


def test_seats_run_out() -> None:
    check_parity(drawn(6, 120, 60.0, leave=0.1), through(WORLD, seqs_max=4))


def test_instances_are_lost() -> None:
    commands = check_parity(drawn(7, 120, 30.0, leave=0.2), through(TIGHT, losses_s=(0.4, 1.7, 2.0), startup_s=0.3))
    assert sum(isinstance(command, Launch) for _, command in commands) == 5


ASKS = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.floats(0.0, 0.5)),
        st.integers(0, 2),
        st.integers(1, 700),
        st.integers(1, 120),
        st.sampled_from(list(CLASSES)),
        st.one_of(st.none(), st.floats(0.0, 2.0)),
    ),
    min_size=1,
    max_size=25,
)


def asks_of(words: list[tuple[float, int, int, int, str, float | None]]) -> list[Ask]:
    """Pauses become instants; requests of one family have prompts that begin alike."""
    asks, at_s = [], 0.0
    for pause_s, family, prompt_tokens, answer_tokens, service_class, leaves_after_s in words:
        at_s += pause_s
        prompt = tuple(range(1000 * family, 1000 * family + prompt_tokens))
        asks.append(Ask(at_s, prompt, answer_tokens, service_class, leaves_after_s))
    return asks


@given(words=ASKS, policy=st.sampled_from(list(POLICIES)), is_tight=st.booleans(), instances=st.integers(1, 3))
def test_any_workload(
    words: list[tuple[float, int, int, int, str, float | None]], policy: str, is_tight: bool, instances: int
) -> None:
    check_parity(asks_of(words), through(TIGHT if is_tight else WORLD, policy=policy, instances=instances))


@given(words=ASKS, losses_s=st.lists(st.floats(0.0, 3.0), max_size=3), startup_s=st.floats(0.0, 0.5))
def test_any_workload_with_losses(
    words: list[tuple[float, int, int, int, str, float | None]], losses_s: list[float], startup_s: float
) -> None:
    check_parity(asks_of(words), through(TIGHT, losses_s=tuple(sorted(losses_s)), startup_s=startup_s))


# Requests that move.


@pytest.mark.parametrize("losses_s", [(), (1.0, 2.5)], ids=["calm", "losses"])
@pytest.mark.parametrize("roles", [(PREFILL, DECODE), (PREFILL, DECODE, DECODE), (PREFILL, MIXED, DECODE)])
def test_requests_are_handed_off(roles: tuple[Role, ...], losses_s: tuple[float, ...]) -> None:
    world = through(
        WORLD, policy="distserve", instances=len(roles), roles=roles, losses_s=losses_s, startup_s=0.3 * bool(losses_s)
    )
    commands = check_parity(drawn(9, 160, 30.0, leave=0.2), world)
    assert sum(isinstance(command, Migrate) for _, command in commands) > 50


@given(words=ASKS, roles=st.sampled_from([(PREFILL, DECODE), (PREFILL, PREFILL, DECODE), (MIXED, DECODE)]))
def test_any_workload_is_handed_off(
    words: list[tuple[float, int, int, int, str, float | None]], roles: tuple[Role, ...]
) -> None:
    check_parity(asks_of(words), through(WORLD, policy="distserve", instances=len(roles), roles=roles))


# Sizes. Nothing moves when an instance leaves: what a move takes in virtual time is the bodies' own.


def test_a_fleet_that_follows_demand_does_so_alike() -> None:
    world = through(TIGHT, instances=1, most=6, startup_s=0.3)
    commands = check_parity(drawn(5, 150, 40.0, leave=0.1), world)
    kinds = {type(command) for _, command in commands}
    assert {Launch, Drain, Stop} <= kinds


@given(words=ASKS, instances=st.integers(0, 2), startup_s=st.sampled_from([0.0, 0.25, 1.5]))
def test_any_workload_on_a_fleet_that_follows_demand(
    words: list[tuple[float, int, int, int, str, float | None]], instances: int, startup_s: float
) -> None:
    world = through(TIGHT, instances=instances, most=4, startup_s=startup_s)
    check_parity(asks_of(words), world)
